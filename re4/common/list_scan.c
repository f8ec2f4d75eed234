/* The scan of inverted lists of four-bit codes for all interests of a request, with one pool of results.

   FAISS packs the codes of an IndexIVFPQFastScan in blocks of 32 vectors. For each pair of sub-quantizers a
   block has 32 bytes: 16 of the first, 16 of the second one. The low half of byte j belongs to vector
   j / 2 + 8 (j % 2), the high half to the vector 16 places later. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __AVX2__
#error "AVX2 is needed"
#endif

#define BLOCK 32

typedef struct {
    int64_t num_lists, dim, num_subs, num_interests, pool_size, num_items;
    int64_t first_row;        /* is added to the rows */
    const uint8_t *is_hidden; /* of each row, without `first_row`; NULL where all may be found */
    const uint8_t *const *codes; /* of each list */
    const int64_t *const *rows;  /* of each list */
    const int64_t *sizes;        /* of each list */
    const float *centroids;      /* [num_lists, dim]; NULL where codes are of whole vectors */
    const float *codebook;       /* [num_subs, 16, dim / num_subs] */
} scan_index;

/* The table of an interest: a score is base + centroid's product + sum / scale. */
typedef struct {
    uint8_t *bytes; /* [num_subs, 16] */
    float base, scale;
    int is_ready;
} table;

/* One interest's part in a list: it scores the vectors whose sum is at least `least`. */
typedef struct {
    const table *table;
    float offset;
    int32_t least;
} reader;

static inline uint64_t key_of(float score, int64_t row) {
    int32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, 4);
    uint32_t rising = (uint32_t)(bits ^ ((bits >> 31) & 0x7FFFFFFF)) ^ 0x80000000u;
    return ((uint64_t)rising << 32) | (0xFFFFFFFFu - (uint32_t)row);
}

static inline float score_of(uint64_t key) {
    uint32_t rising = (uint32_t)(key >> 32) ^ 0x80000000u;
    int32_t bits = (int32_t)rising;
    bits ^= (bits >> 31) & 0x7FFFFFFF;
    float score;
    memcpy(&score, &bits, 4);
    return score;
}

/* Move the `wanted` largest of the keys to the front. */
static void select_largest(uint64_t *keys, int64_t number, int64_t wanted) {
    int64_t low = 0, high = number - 1;
    while (low < high) {
        uint64_t a = keys[low], b = keys[(low + high) / 2], c = keys[high];
        uint64_t pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
        int64_t i = low, j = high;
        while (i <= j) {
            while (keys[i] > pivot) i++;
            while (keys[j] < pivot) j--;
            if (i <= j) {
                uint64_t other = keys[i];
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

/* Eight sums, which the compiler keeps in one vector. */
static float dot(const float *a, const float *b, int64_t dim) {
    float sums[8] = {0}, rest = 0;
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8)
        for (int lane = 0; lane < 8; lane++) sums[lane] += a[d + lane] * b[d + lane];
    for (; d < dim; d++) rest += a[d] * b[d];
    for (int lane = 0; lane < 8; lane++) rest += sums[lane];
    return rest;
}

static void fill_table(table *out, const scan_index *index, const float *interest) {
    int64_t sub_dim = index->dim / index->num_subs;
    float products[index->num_subs][16], widest = 0;
    out->base = 0;
    for (int64_t m = 0; m < index->num_subs; m++) {
        float least = INFINITY, most = -INFINITY;
        for (int code = 0; code < 16; code++) {
            const float *entry = index->codebook + (m * 16 + code) * sub_dim;
            float product = 0;
            for (int64_t d = 0; d < sub_dim; d++) product += interest[m * sub_dim + d] * entry[d];
            products[m][code] = product;
            least = product < least ? product : least;
            most = product > most ? product : most;
        }
        out->base += least;
        widest = most - least > widest ? most - least : widest;
        for (int code = 0; code < 16; code++) products[m][code] -= least;
    }
    out->scale = widest > 0 ? 255.0f / widest : 1.0f;
    for (int64_t m = 0; m < index->num_subs; m++)
        for (int code = 0; code < 16; code++)
            out->bytes[16 * m + code] = (uint8_t)(products[m][code] * out->scale + 0.5f);
    out->is_ready = 1;
}

/* Sum the table entries of 32 vectors; return which sums are at least `least`. */
static inline uint32_t scan_block(
    const uint8_t *codes, const uint8_t *bytes, int64_t num_subs, int32_t least, uint16_t *sums) {
#ifdef __AVX512BW__
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t byte = 0; byte < 16 * num_subs; byte += 64) {
        __m512i code = _mm512_loadu_si512(codes + byte), entries = _mm512_loadu_si512(bytes + byte);
        __m512i low = _mm512_shuffle_epi8(entries, _mm512_and_si512(code, low_half));
        __m512i high = _mm512_shuffle_epi8(entries, _mm512_and_si512(_mm512_srli_epi16(code, 4), low_half));
        a0 = _mm512_add_epi16(a0, low);
        a1 = _mm512_add_epi16(a1, _mm512_srli_epi16(low, 8));
        a2 = _mm512_add_epi16(a2, high);
        a3 = _mm512_add_epi16(a3, _mm512_srli_epi16(high, 8));
    }
    a0 = _mm512_sub_epi16(a0, _mm512_slli_epi16(a1, 8)); /* only the even bytes */
    a2 = _mm512_sub_epi16(a2, _mm512_slli_epi16(a3, 8));
    __m512i x = _mm512_add_epi16(_mm512_shuffle_i64x2(a0, a1, 0x44), _mm512_shuffle_i64x2(a0, a1, 0xEE));
    __m512i y = _mm512_add_epi16(_mm512_shuffle_i64x2(a2, a3, 0x44), _mm512_shuffle_i64x2(a2, a3, 0xEE));
    __m512i z = _mm512_add_epi16(_mm512_shuffle_i64x2(x, y, 0x88), _mm512_shuffle_i64x2(x, y, 0xDD));
    _mm512_storeu_si512(sums, z);
    return _mm512_cmpge_epu16_mask(z, _mm512_set1_epi16((short)least));
#else
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t byte = 0; byte < 16 * num_subs; byte += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(codes + byte));
        __m256i entries = _mm256_loadu_si256((const __m256i *)(bytes + byte));
        __m256i low = _mm256_shuffle_epi8(entries, _mm256_and_si256(code, low_half));
        __m256i high = _mm256_shuffle_epi8(entries, _mm256_and_si256(_mm256_srli_epi16(code, 4), low_half));
        a0 = _mm256_add_epi16(a0, low);
        a1 = _mm256_add_epi16(a1, _mm256_srli_epi16(low, 8));
        a2 = _mm256_add_epi16(a2, high);
        a3 = _mm256_add_epi16(a3, _mm256_srli_epi16(high, 8));
    }
    a0 = _mm256_sub_epi16(a0, _mm256_slli_epi16(a1, 8)); /* only the even bytes */
    a2 = _mm256_sub_epi16(a2, _mm256_slli_epi16(a3, 8));
    __m256i low = _mm256_add_epi16(
        _mm256_permute2x128_si256(a0, a1, 0x20), _mm256_permute2x128_si256(a0, a1, 0x31));
    __m256i high = _mm256_add_epi16(
        _mm256_permute2x128_si256(a2, a3, 0x20), _mm256_permute2x128_si256(a2, a3, 0x31));
    __m256i bound = _mm256_set1_epi16((short)least);
    _mm256_storeu_si256((__m256i *)sums, low);
    _mm256_storeu_si256((__m256i *)(sums + 16), high);
    __m256i first = _mm256_cmpeq_epi16(_mm256_max_epu16(low, bound), low);
    __m256i second = _mm256_cmpeq_epi16(_mm256_max_epu16(high, bound), high);
    /* Packing interleaves the 128-bit halves. */
    __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xD8);
    return (uint32_t)_mm256_movemask_epi8(both);
#endif
}

/* Keep the best of the pool; return the score that a further vector must reach. */
static float shrink(uint64_t *keys, int64_t *number, int64_t pool_size) {
    if (*number > pool_size) {
        select_largest(keys, *number, pool_size);
        *number = pool_size;
    }
    if (*number < pool_size) return -INFINITY;
    uint64_t last = keys[0];
    for (int64_t i = 1; i < pool_size; i++) last = keys[i] < last ? keys[i] : last;
    return score_of(last);
}

static void set_least(reader *readers, int num_readers, float threshold) {
    for (int i = 0; i < num_readers; i++) {
        float least = ceilf((threshold - readers[i].offset) * readers[i].table->scale);
        readers[i].least = least > 0 ? (least < 65536.0f ? (int32_t)least : 65536) : 0;
    }
}

/* Scan one list for its readers; every vector enters the pool once, with its best score. */
static float scan_list(
    const scan_index *index, int64_t list, reader *readers, int num_readers, uint64_t *keys, int64_t *number,
    float threshold) {
    const uint8_t *codes = index->codes[list];
    const int64_t *rows = index->rows[list];
    int64_t size = index->sizes[list];
    uint16_t sums[num_readers][BLOCK];
    set_least(readers, num_readers, threshold);
    for (int64_t first = 0; first < size; first += BLOCK, codes += 16 * index->num_subs) {
        uint32_t passing = 0, own[num_readers];
        for (int i = 0; i < num_readers; i++) {
            own[i] = readers[i].least > 65535 ? 0
                                              : scan_block(codes, readers[i].table->bytes, index->num_subs,
                                                           readers[i].least, sums[i]);
            passing |= own[i];
        }
        for (int place = 0; place < BLOCK; place += 8) __builtin_prefetch(rows + first + place);
        if (size - first < BLOCK) passing &= (1u << (size - first)) - 1;
        for (; passing; passing &= passing - 1) {
            int place = __builtin_ctz(passing);
            int64_t row = rows[first + place];
            if (row < 0 || row >= index->num_items || (index->is_hidden && index->is_hidden[row])) continue;
            float best = -INFINITY;
            for (int i = 0; i < num_readers; i++)
                if (own[i] >> place & 1) {
                    float score = readers[i].offset + sums[i][place] / readers[i].table->scale;
                    best = score > best ? score : best;
                }
            keys[(*number)++] = key_of(best, index->first_row + row);
        }
        if (*number >= 2 * index->pool_size) {
            threshold = shrink(keys, number, index->pool_size);
            set_least(readers, num_readers, threshold);
        }
    }
    return threshold;
}

static int by_key_descending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Find the pairs to read: at most `most`, of a reach at most `drop` below the best; the best pair comes
   first. Return their number; `keys` has a place for every pair. */
static int64_t promising(const float *reaches, int64_t num_pairs, int64_t most, float drop, uint64_t *keys) {
    float lanes[16], best;
    int64_t pair = 0, number = 0;
    for (int lane = 0; lane < 16; lane++) lanes[lane] = -INFINITY;
    for (; pair + 16 <= num_pairs; pair += 16)
        for (int lane = 0; lane < 16; lane++)
            lanes[lane] = reaches[pair + lane] > lanes[lane] ? reaches[pair + lane] : lanes[lane];
    best = lanes[0];
    for (int lane = 1; lane < 16; lane++) best = lanes[lane] > best ? lanes[lane] : best;
    for (; pair < num_pairs; pair++) best = reaches[pair] > best ? reaches[pair] : best;
    float least = best - drop * fabsf(best);
    for (pair = 0; pair < num_pairs; pair++)
        if (reaches[pair] >= least) keys[number++] = key_of(reaches[pair], pair);
    if (number > most) {
        select_largest(keys, number, most);
        number = most;
    }
    qsort(keys, number, sizeof *keys, by_key_descending);
    return number;
}

/* For each request, find the vectors with the best approximate scores in its lists.

   `interests` is [num_requests, num_interests, dim]. `reaches` is [num_requests, num_interests, num_lists],
   of which the pairs to read are chosen. `bonuses`, [num_requests, num_interests] or NULL, are added to
   the scores of each interest. `more`, which may be NULL, has further vectors in lists of the same
   centroids and codebook. `scores` and `rows` are [num_requests, pool_size], in no order; rows
   are -1 where no more was found. Returns 0, or 1 without memory. */
int scan_lists(
    const scan_index *index, const scan_index *more, int64_t num_requests, const float *interests,
    const float *reaches, const float *bonuses, int64_t most_pairs, float reach_drop, float *scores,
    int64_t *rows) {
    int64_t num_interests = index->num_interests, pool_size = index->pool_size, dim = index->dim;
    int64_t all_pairs = num_interests * index->num_lists;
    uint8_t *bytes = malloc(16 * index->num_subs * num_interests);
    uint64_t *keys = malloc((2 * pool_size + BLOCK) * sizeof *keys);
    uint64_t *pairs = malloc(all_pairs * sizeof *pairs);
    table *tables = malloc(num_interests * sizeof *tables);
    reader *readers = malloc(num_interests * sizeof *readers);
    uint8_t *is_done = malloc(all_pairs);
    int32_t *pair_interests = malloc(all_pairs * sizeof *pair_interests);
    int32_t *pair_lists = malloc(all_pairs * sizeof *pair_lists);
    int has_memory = bytes && keys && pairs && pair_interests && pair_lists && tables && readers && is_done;
    for (int64_t r = 0; has_memory && r < num_requests; r++) {
        const float *own = interests + r * num_interests * dim;
        int64_t num_pairs = promising(reaches + r * all_pairs, all_pairs, most_pairs, reach_drop, pairs);
        int64_t number = 0;
        float threshold = -INFINITY;
        for (int64_t k = 0; k < num_interests; k++)
            tables[k] = (table){.bytes = bytes + 16 * index->num_subs * k};
        for (int64_t p = 0; p < num_pairs; p++) {
            int64_t pair = 0xFFFFFFFFu - (uint32_t)pairs[p];
            pair_interests[p] = pair / index->num_lists;
            pair_lists[p] = pair % index->num_lists;
            is_done[p] = 0;
        }
        for (int64_t p = 0; p < num_pairs; p++) {
            if (is_done[p]) continue;
            int64_t list = pair_lists[p];
            int num_readers = 0;
            for (int64_t other = p; other < num_pairs; other++) {
                if (pair_lists[other] != list) continue;
                int64_t k = pair_interests[other];
                is_done[other] = 1;
                if (!tables[k].is_ready) fill_table(&tables[k], index, own + k * dim);
                float product = index->centroids ? dot(own + k * dim, index->centroids + list * dim, dim) : 0;
                float offset = product + tables[k].base + (bonuses ? bonuses[r * num_interests + k] : 0);
                readers[num_readers++] = (reader){.table = &tables[k], .offset = offset};
            }
            for (int64_t other = p + 1; other < num_pairs; other++)
                if (!is_done[other]) { /* the next list's first codes are loaded meanwhile */
                    const uint8_t *next = index->codes[pair_lists[other]];
                    for (int line = 0; line < 2048; line += 64) __builtin_prefetch(next + line);
                    if (more) {
                        next = more->codes[pair_lists[other]];
                        for (int line = 0; line < 2048; line += 64) __builtin_prefetch(next + line);
                    }
                    break;
                }
            threshold = scan_list(index, list, readers, num_readers, keys, &number, threshold);
            if (more) threshold = scan_list(more, list, readers, num_readers, keys, &number, threshold);
        }
        shrink(keys, &number, pool_size);
        for (int64_t i = 0; i < pool_size; i++) {
            scores[r * pool_size + i] = i < number ? score_of(keys[i]) : -INFINITY;
            rows[r * pool_size + i] = i < number ? (int64_t)(0xFFFFFFFFu - (uint32_t)keys[i]) : -1;
        }
    }
    free(bytes);
    free(keys);
    free(pairs);
    free(pair_interests);
    free(pair_lists);
    free(tables);
    free(readers);
    free(is_done);
    return !has_memory;
}
