/* Scores of rows as integers that sort by score, and inner products. */

#include <stdint.h>
#include <string.h>

/* A key of a score and a row below 2^32: the higher score is larger, among equal ones the lower row. */
static inline uint64_t key_of(float score, int64_t row) {
    int32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, 4);
    const uint32_t rising = (uint32_t)(bits ^ ((bits >> 31) & 0x7FFFFFFF)) ^ 0x80000000u;
    return ((uint64_t)rising << 32) | (0xFFFFFFFFu - (uint32_t)row);
}

static inline float score_of(uint64_t key) {
    int32_t bits = (int32_t)((uint32_t)(key >> 32) ^ 0x80000000u);
    bits ^= (bits >> 31) & 0x7FFFFFFF;
    float score;
    memcpy(&score, &bits, 4);
    return score;
}

static inline int64_t row_of(uint64_t key) { return (int64_t)(0xFFFFFFFFu - (uint32_t)key); }

/* Move the `wanted` largest of the keys to the front. */
static inline void select_largest(uint64_t *keys, int64_t number, int64_t wanted) {
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

/* Eight sums, which the compiler keeps in one vector. */
static inline float dot(const float *a, const float *b, int64_t dim) {
    float sums[8] = {0}, rest = 0;
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8)
        for (int lane = 0; lane < 8; lane++) sums[lane] += a[d + lane] * b[d + lane];
    for (; d < dim; d++) rest += a[d] * b[d];
    for (int lane = 0; lane < 8; lane++) rest += sums[lane];
    return rest;
}
