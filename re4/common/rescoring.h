/* The exact scores of a pool of rows: each item by its vector, with its best interest. */

#include <math.h>
#include <stdlib.h>

#include "ranking.h"

#define LANES 8 /* interests that are scored in one pass */

typedef float lanes __attribute__((vector_size(4 * LANES)));

typedef struct {
    const float *vectors;
    int64_t first_row, num_rows;
} items;

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

/* What the pools of some requests share. */
typedef struct {
    const items *parts;
    int64_t num_interests, dim;
    lanes *interests;
    float *vectors;
    item *found, *spare;
} rescoring;

/* Prepare to score pools of at most `most` rows; return whether there is memory. */
static int open_rescoring(
    rescoring *own, int64_t most, const items *parts, int64_t num_interests, int64_t dim) {
    const size_t num_lanes = (size_t)((num_interests + LANES - 1) / LANES * dim) + 1;
    *own = (rescoring){.parts = parts, .num_interests = num_interests, .dim = dim};
    own->interests = aligned_alloc(sizeof(lanes), num_lanes * sizeof(lanes));
    own->vectors = malloc((size_t)(most * dim + 1) * sizeof(float));
    own->found = malloc((size_t)(most + 1) * sizeof(item));
    own->spare = malloc((size_t)(most + 1) * sizeof(item));
    if (own->interests) memset(own->interests, 0, num_lanes * sizeof(lanes));
    return own->interests && own->vectors && own->found && own->spare;
}

static void close_rescoring(rescoring *own) {
    free(own->interests);
    free(own->vectors);
    free(own->found);
    free(own->spare);
}

/* Write the best `num_wanted` rows of a pool, best first; row -1 where there is no further item. The keys, of
   which each has the row of a vector, are overwritten. */
static void write_best(
    rescoring *own, const float *interests, uint64_t *keys, int64_t number, int64_t num_wanted, int64_t *best_rows,
    float *best_scores, int64_t *best_numbers) {
    const int64_t dim = own->dim, num_interests = own->num_interests;
    const items parts[2] = {own->parts[0], own->parts[1]};
    lanes *grouped = own->interests;
    float *vectors = own->vectors;
    item *found = own->found;
    /* The vectors lie far apart. All are asked for at first, and then copied in the order of memory, so that the
       CPU waits for many at once. */
    for (int64_t i = 0; i < number; i++) {
        const float *vector = vector_of(row_of(keys[i]), parts, dim);
        for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(vector + d);
    }
    for (int64_t k = 0; k < num_interests; k++)
        for (int64_t d = 0; d < dim; d++)
            ((float *)grouped)[(k / LANES * dim + d) * LANES + k % LANES] = interests[k * dim + d];
    for (int64_t i = 0; i < number; i++) keys[i] = (uint64_t)row_of(keys[i]);
    sort_ascending(keys, (uint64_t *)own->spare, number);
    for (int64_t i = 0; i < number; i++)
        memcpy(vectors + i * dim, vector_of((int64_t)keys[i], parts, dim), (size_t)dim * sizeof(float));
    for (int64_t i = 0; i < number; i++) {
        int64_t best_number;
        const float score = best_score(vectors + i * dim, grouped, num_interests, dim, &best_number);
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
    sort_descending(found, own->spare, num_best);
    for (int64_t i = 0; i < num_wanted; i++) {
        best_rows[i] = i < num_best ? row_of(found[i].key) : -1;
        best_scores[i] = i < num_best ? found[i].score : -INFINITY;
        best_numbers[i] = i < num_best ? found[i].number : 0;
    }
}
