/* From the search results of an index to the best items of each request by their exact scores.

   The same as `rescore` and `best_candidates` of rescoring.py, without an array for each step. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8 /* interests that are scored in one pass */

typedef float lanes __attribute__((vector_size(4 * LANES)));

typedef struct {
    const float *vectors;
    int64_t first_row, num_rows;
} items;

/* Keys sort by score, then by row: the larger one is better. */
static inline uint64_t key_of(float score, int64_t row) {
    int32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, 4);
    const uint32_t rising = (uint32_t)(bits ^ ((bits >> 31) & 0x7FFFFFFF)) ^ 0x80000000u;
    return ((uint64_t)rising << 32) | (0xFFFFFFFFu - (uint32_t)row);
}

static inline int64_t row_of(uint64_t key) { return (int64_t)(0xFFFFFFFFu - (uint32_t)key); }

typedef struct {
    uint64_t key;
    float score;
    int32_t number; /* of the interest with this score */
} item;

/* Sort numbers below 2^32, byte by byte; `spare` has as many places. */
static void sort_ascending(uint64_t *keys, uint64_t *spare, int64_t number) {
    for (int shift = 0; shift < 32; shift += 8) {
        int32_t ends[257] = {0};
        for (int64_t i = 0; i < number; i++) ends[(keys[i] >> shift & 255) + 1]++;
        for (int i = 0; i < 256; i++) ends[i + 1] += ends[i];
        for (int64_t i = 0; i < number; i++) spare[ends[keys[i] >> shift & 255]++] = keys[i];
        uint64_t *other = keys;
        keys = spare;
        spare = other;
    }
}

/* Sort a few items by insertion, in runs that are merged where there are many. */
static void sort_descending(item *items, item *spare, int64_t number) {
    const int64_t run = 16;
    for (int64_t first = 0; first < number; first += run) {
        const int64_t end = first + run < number ? first + run : number;
        for (int64_t i = first + 1; i < end; i++) {
            const item moved = items[i];
            int64_t to = i;
            for (; to > first && items[to - 1].key < moved.key; to--) items[to] = items[to - 1];
            items[to] = moved;
        }
    }
    for (int64_t width = run; width < number; width *= 2) {
        for (int64_t first = 0; first < number; first += 2 * width) {
            const int64_t middle = first + width < number ? first + width : number;
            const int64_t end = middle + width < number ? middle + width : number;
            int64_t left = first, right = middle;
            for (int64_t i = first; i < end; i++)
                spare[i] = left < middle && (right == end || items[left].key > items[right].key) ? items[left++]
                                                                                               : items[right++];
        }
        memcpy(items, spare, (size_t)number * sizeof(item));
    }
}

/* Move the `wanted` largest of the keys to the front. */
static void select_largest(uint64_t *keys, int64_t number, int64_t wanted) {
    int64_t low = 0, high = number - 1;
    while (low < high) {
        const uint64_t a = keys[low], b = keys[(low + high) / 2], c = keys[high];
        const uint64_t pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
        int64_t i = low, j = high;
        while (i <= j) {
            while (keys[i] > pivot) i++;
            while (keys[j] < pivot) j--;
            if (i <= j) {
                const uint64_t other = keys[i];
                keys[i++] = keys[j];
                keys[j--] = other;
            }
        }
        if (wanted - 1 <= j)
            high = j;
        else if (wanted - 1 >= i)
            low = i;
        else
            return;
    }
}

/* The vector of a row; NULL where there is none. */
static inline const float *vector_of(int64_t row, const items *parts, int64_t dim) {
    for (int part = 0; part < 2; part++) {
        const int64_t place = row - parts[part].first_row;
        if (place >= 0 && place < parts[part].num_rows) return parts[part].vectors + place * dim;
    }
    return NULL;
}

/* The best score of a vector over the interests, which lie in groups of LANES, component by component. */
static inline float best_score(
    const float *vector, const lanes *interests, int64_t num_interests, int64_t dim, int64_t *number) {
    float best = -INFINITY;
    *number = 0;
    for (int64_t first = 0; first < num_interests; first += LANES, interests += dim) {
        lanes sums[4] = {{0}, {0}, {0}, {0}};
        int64_t d = 0;
        for (; d + 4 <= dim; d += 4)
            for (int part = 0; part < 4; part++) sums[part] += vector[d + part] * interests[d + part];
        for (; d < dim; d++) sums[0] += vector[d] * interests[d];
        const lanes scores = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int lane = 0; lane < LANES && first + lane < num_interests; lane++)
            if (scores[lane] > best) {
                best = scores[lane];
                *number = first + lane;
            }
    }
    return best;
}

/* Write the results' rows with a vector, each once, as keys of their best approximate scores; return how many. */
static int64_t unite(
    const float *scores, const int64_t *rows, int64_t num_found, const items *parts, int64_t dim, int32_t *table,
    int64_t table_size, uint64_t *keys) {
    int64_t number = 0;
    memset(table, -1, (size_t)table_size * sizeof(int32_t));
    for (int64_t i = 0; i < num_found; i++) {
        if (rows[i] < 0 || vector_of(rows[i], parts, dim) == NULL) continue;
        const uint64_t key = key_of(scores[i], rows[i]);
        uint64_t slot = ((uint64_t)rows[i] * 0x9E3779B97F4A7C15u >> 32) & (uint64_t)(table_size - 1);
        while (table[slot] >= 0 && row_of(keys[table[slot]]) != rows[i]) slot = (slot + 1) & (uint64_t)(table_size - 1);
        if (table[slot] < 0) {
            table[slot] = (int32_t)number;
            keys[number++] = key;
        } else if (key > keys[table[slot]]) {
            keys[table[slot]] = key;
        }
    }
    return number;
}

/* scores and rows are [requests, num_found], interests [requests, num_interests, dim], and the three results
   [requests, num_wanted], with row -1 where there is no further item. Return 0, or 1 where there is no memory. */
int best_rescored(
    int64_t num_requests, int64_t num_found, int64_t num_interests, int64_t dim, int64_t pool_size, int64_t num_wanted,
    const float *scores, const int64_t *rows, const float *interests, const float *vectors, int64_t num_vectors,
    const float *more_vectors, int64_t more_first, int64_t num_more, int64_t *best_rows, float *best_scores,
    int64_t *best_numbers) {
    const items parts[2] = {{vectors, 0, num_vectors}, {more_vectors, more_first, num_more}};
    const int64_t num_groups = (num_interests + LANES - 1) / LANES;
    int64_t table_size = 16;
    while (table_size < 2 * num_found) table_size *= 2;
    const size_t lanes_bytes = (size_t)(num_groups * dim) * sizeof(lanes);
    const size_t keys_bytes = (size_t)(num_found + 1) * sizeof(uint64_t);
    const int64_t most = num_found < pool_size ? num_found : pool_size;
    lanes *grouped = aligned_alloc(sizeof(lanes), lanes_bytes + sizeof(lanes));
    float *pool = malloc((size_t)(most * dim + 1) * sizeof(float));
    uint64_t *keys = malloc(keys_bytes);
    uint64_t *spare = malloc((size_t)(most + 1) * sizeof(item));
    item *found = malloc((size_t)(most + 1) * sizeof(item));
    int32_t *table = malloc((size_t)table_size * sizeof(int32_t));
    const int failed = grouped == NULL || pool == NULL || keys == NULL || spare == NULL || found == NULL || table == NULL;
    for (int64_t request = 0; !failed && request < num_requests; request++) {
        memset(grouped, 0, lanes_bytes);
        for (int64_t k = 0; k < num_interests; k++)
            for (int64_t d = 0; d < dim; d++)
                ((float *)grouped)[(k / LANES * dim + d) * LANES + k % LANES] =
                    interests[(request * num_interests + k) * dim + d];
        int64_t number = unite(
            scores + request * num_found, rows + request * num_found, num_found, parts, dim, table, table_size, keys);
        if (number > pool_size) {
            select_largest(keys, number, pool_size);
            number = pool_size;
        }
        /* The vectors lie far apart. Copies alone, in the order of memory, let the CPU wait for many at once. */
        for (int64_t i = 0; i < number; i++) keys[i] = (uint64_t)row_of(keys[i]);
        sort_ascending(keys, spare, number);
        for (int64_t i = 0; i < number; i++)
            memcpy(pool + i * dim, vector_of((int64_t)keys[i], parts, dim), (size_t)dim * sizeof(float));
        for (int64_t i = 0; i < number; i++) {
            int64_t best_number;
            const float score = best_score(pool + i * dim, grouped, num_interests, dim, &best_number);
            found[i] = (item){key_of(score, (int64_t)keys[i]), score, (int32_t)best_number};
            keys[i] = found[i].key;
        }
        const int64_t num_best = number < num_wanted ? number : num_wanted;
        if (num_best > 0 && num_best < number) {
            select_largest(keys, number, num_best);
            uint64_t least = keys[0];
            for (int64_t i = 1; i < num_best; i++) least = keys[i] < least ? keys[i] : least;
            int64_t kept = 0;
            for (int64_t i = 0; i < number; i++)
                if (found[i].key >= least) found[kept++] = found[i];
        }
        sort_descending(found, (item *)spare, num_best);
        for (int64_t i = 0; i < num_wanted; i++) {
            const int64_t place = request * num_wanted + i;
            best_rows[place] = i < num_best ? row_of(found[i].key) : -1;
            best_scores[place] = i < num_best ? found[i].score : -INFINITY;
            best_numbers[place] = i < num_best ? found[i].number : 0;
        }
    }
    free(grouped);
    free(pool);
    free(spare);
    free(found);
    free(keys);
    free(table);
    return failed;
}
