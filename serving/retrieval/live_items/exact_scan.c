/* The exact comparison of live items, which reads one byte of a component instead of four.

   Each item has codes of seven bits. An upper bound of its scores by the codes excludes nearly all items; the
   others are scored by their vectors. So the result is that of scoring every item by its vector.

   Blocks hold 16 items: the codes, four components of an item beside each other, then of each item its scale,
   the error of the codes, and the norm of the decoded codes. */

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

#include "ranking.h"

#ifndef __AVX2__
#error "AVX2 is needed"
#endif

#define BLOCK 16
#define GROUP 4    /* interests that are compared in one pass over a block */
#define ZERO 64    /* the code of 0 */
#define LARGEST 63 /* codes lie so far around ZERO: sums of pairs of products fit into 16 bits */

typedef struct {
    float scale;      /* of the query's codes */
    float norm, rest; /* of the query; of its difference from the codes */
    int32_t offset;   /* to subtract from a sum of products */
} coded_query;

static inline int64_t num_groups(int64_t dim) { return (dim + 3) / 4; }
static inline int64_t block_bytes(int64_t dim) { return 64 * num_groups(dim) + 3 * BLOCK * sizeof(float); }

/* Write the codes of items first to first + number - 1; `vectors` begins with that of `first`. */
void encode_items(uint8_t *blocks, int64_t first, int64_t number, const float *vectors, int64_t dim) {
    for (int64_t i = 0; i < number; i++) {
        const float *vector = vectors + i * dim;
        uint8_t *block = blocks + (first + i) / BLOCK * block_bytes(dim);
        int64_t place = (first + i) % BLOCK;
        float *facts = (float *)(block + 64 * num_groups(dim));
        float largest = 0;
        for (int64_t d = 0; d < dim; d++) largest = fmaxf(largest, fabsf(vector[d]));
        float scale = largest > 0 ? largest / LARGEST : 1.0f;
        double error = 0, norm = 0, decoded_norm = 0;
        for (int64_t d = 0; d < 4 * num_groups(dim); d++) {
            float value = d < dim ? vector[d] : 0;
            int code = (int)lrintf(value / scale);
            double decoded = (double)code * scale;
            block[64 * (d / 4) + 4 * place + d % 4] = (uint8_t)(ZERO + code);
            error += (value - decoded) * (value - decoded);
            decoded_norm += decoded * decoded;
            norm += (double)value * value;
        }
        facts[place] = scale;
        /* The second term is for the rounding of sums of products in float. */
        facts[BLOCK + place] = (float)(sqrt(error) * 1.001 + sqrt(norm) * 2e-5);
        facts[2 * BLOCK + place] = (float)(sqrt(decoded_norm) * 1.001);
    }
}

static void encode_query(const float *query, int64_t dim, int8_t *codes, coded_query *out) {
    float largest = 0;
    double norm = 0, rest = 0;
    int32_t sum = 0;
    for (int64_t d = 0; d < dim; d++) {
        largest = fmaxf(largest, fabsf(query[d]));
        norm += (double)query[d] * query[d];
    }
    out->scale = largest > 0 ? largest / 127 : 1.0f;
    for (int64_t d = 0; d < 4 * num_groups(dim); d++) {
        float value = d < dim ? query[d] : 0;
        int code = (int)lrintf(value / out->scale);
        double error = value - (double)code * out->scale;
        codes[d] = (int8_t)code;
        sum += code;
        rest += error * error;
    }
    out->norm = (float)(sqrt(norm) * 1.001);
    out->rest = (float)(sqrt(rest) * 1.001 + sqrt(norm) * 1e-6);
    out->offset = ZERO * sum;
}

/* Return which of a block's items may score more than `least` with any of `number` queries. */
static inline __attribute__((always_inline)) uint32_t may_exceed(
    const uint8_t *block, int64_t groups, const int8_t *codes, const coded_query *queries, const int number,
    float least) {
    const float *facts = (const float *)(block + 64 * groups);
    uint32_t found = 0;
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    __m512i sums[GROUP];
    for (int k = 0; k < number; k++) sums[k] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; g++) {
        __m512i items = _mm512_loadu_si512(block + 64 * g);
        for (int k = 0; k < number; k++) {
            int32_t four;
            memcpy(&four, codes + 4 * (k * groups + g), 4);
            sums[k] = _mm512_dpbusd_epi32(sums[k], items, _mm512_set1_epi32(four));
        }
    }
    __m512 scale = _mm512_loadu_ps(facts), error = _mm512_loadu_ps(facts + BLOCK);
    __m512 norm = _mm512_loadu_ps(facts + 2 * BLOCK), bound = _mm512_set1_ps(least);
    for (int k = 0; k < number; k++) {
        __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[k], _mm512_set1_epi32(queries[k].offset)));
        __m512 most = _mm512_mul_ps(norm, _mm512_set1_ps(queries[k].rest));
        most = _mm512_fmadd_ps(error, _mm512_set1_ps(queries[k].norm), most);
        most = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(queries[k].scale)), most);
        found |= _mm512_cmp_ps_mask(most, bound, _CMP_GT_OQ);
    }
#else
    const __m256i ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        __m256i sums[GROUP];
        for (int k = 0; k < number; k++) sums[k] = _mm256_setzero_si256();
        for (int64_t g = 0; g < groups; g++) {
            __m256i items = _mm256_loadu_si256((const __m256i *)(block + 64 * g + 32 * half));
            for (int k = 0; k < number; k++) {
                int32_t four;
                memcpy(&four, codes + 4 * (k * groups + g), 4);
                __m256i pairs = _mm256_maddubs_epi16(items, _mm256_set1_epi32(four));
                sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(pairs, ones));
            }
        }
        const float *own = facts + 8 * half;
        __m256 scale = _mm256_loadu_ps(own), error = _mm256_loadu_ps(own + BLOCK);
        __m256 norm = _mm256_loadu_ps(own + 2 * BLOCK), bound = _mm256_set1_ps(least);
        for (int k = 0; k < number; k++) {
            __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[k], _mm256_set1_epi32(queries[k].offset)));
            __m256 most = _mm256_mul_ps(norm, _mm256_set1_ps(queries[k].rest));
            most = _mm256_add_ps(_mm256_mul_ps(error, _mm256_set1_ps(queries[k].norm)), most);
            __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(queries[k].scale));
            most = _mm256_add_ps(_mm256_mul_ps(sum, factor), most);
            found |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(most, bound, _CMP_GT_OQ)) << (8 * half);
        }
    }
#endif
    return found;
}

static inline int has_zero(const uint8_t *bytes) {
    __m128i is_zero = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)bytes), _mm_setzero_si128());
    return _mm_movemask_epi8(is_zero);
}

/* Put each item first to end - 1 that scores more than the last one of a list into the list, behind equal
   scores. A list has `size` rows, best score first; the score of an item is its best one over the interests.
   `is_hidden` may be NULL, and `numbers`, the interest of each row, too. Returns 0, or 1 without memory. */
int merge_items(
    const uint8_t *blocks, const float *vectors, const uint8_t *is_hidden, int64_t first, int64_t end,
    int64_t dim, int64_t first_row, int64_t num_lists, int64_t num_interests, const float *interests,
    int64_t size, int64_t *rows, float *scores, int64_t *numbers) {
    int64_t groups = num_groups(dim), width = 4 * groups;
    int8_t *codes = malloc(num_interests * width + 1);
    coded_query *queries = malloc((num_interests + 1) * sizeof *queries);
    int has_memory = codes && queries;
    for (int64_t list = 0; has_memory && list < num_lists; list++) {
        const float *own = interests + list * num_interests * dim;
        int64_t *own_rows = rows + list * size, *own_numbers = numbers ? numbers + list * size : NULL;
        float *own_scores = scores + list * size;
        for (int64_t k = 0; k < num_interests; k++)
            encode_query(own + k * dim, dim, codes + k * width, queries + k);
        for (int64_t start = first / BLOCK * BLOCK; start < end; start += BLOCK) {
            if (is_hidden && start + BLOCK <= end && !has_zero(is_hidden + start)) continue;
            const uint8_t *block = blocks + start / BLOCK * block_bytes(dim);
            float least = own_scores[size - 1];
            uint32_t found = 0;
            for (int64_t k = 0; k < num_interests; k += GROUP) {
                const int8_t *own_codes = codes + k * width;
                switch (num_interests - k) {
                case 1: found |= may_exceed(block, groups, own_codes, queries + k, 1, least); break;
                case 2: found |= may_exceed(block, groups, own_codes, queries + k, 2, least); break;
                case 3: found |= may_exceed(block, groups, own_codes, queries + k, 3, least); break;
                default: found |= may_exceed(block, groups, own_codes, queries + k, GROUP, least);
                }
            }
            for (; found; found &= found - 1) {
                int64_t item = start + __builtin_ctz(found);
                if (item < first || item >= end || (is_hidden && is_hidden[item])) continue;
                int64_t best_k = 0;
                float best = -INFINITY;
                for (int64_t k = 0; k < num_interests; k++) {
                    float score = dot(own + k * dim, vectors + item * dim, dim);
                    if (score > best) best = score, best_k = k;
                }
                if (!(best > own_scores[size - 1])) continue;
                int64_t low = 0, high = size - 1; /* the first place with a lower score */
                while (low < high) {
                    int64_t middle = (low + high) / 2;
                    if (own_scores[middle] < best)
                        high = middle;
                    else
                        low = middle + 1;
                }
                int64_t behind = size - 1 - low;
                memmove(own_rows + low + 1, own_rows + low, behind * sizeof *own_rows);
                memmove(own_scores + low + 1, own_scores + low, behind * sizeof *own_scores);
                own_rows[low] = first_row + item;
                own_scores[low] = best;
                if (own_numbers) {
                    memmove(own_numbers + low + 1, own_numbers + low, behind * sizeof *own_numbers);
                    own_numbers[low] = best_k;
                }
            }
        }
    }
    free(codes);
    free(queries);
    return !has_memory;
}
