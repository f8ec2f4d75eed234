/* Structure of arrays: LANES examples beside each other, number d of all of them in vector d.

   DIM, a multiple of 16, is the length of a row before it becomes a structure of arrays. */

#pragma once

#include "simd.h"

/* out[r] += sum over s of weights[r * row_step + s * sum_step] x[s], for `num_rows` rows in registers. */
static inline __attribute__((always_inline)) void matvec_tile(const int num_rows, int64_t num_terms,
                                                              const float *weights, int64_t row_step,
                                                              int64_t sum_step, const lanes *x, lanes *out) {
    lanes sums[SUMS];
#pragma GCC unroll 24
    for (int r = 0; r < num_rows; r++) sums[r] = out[r];
    for (int64_t s = 0; s < num_terms; s++)
#pragma GCC unroll 24
        for (int r = 0; r < num_rows; r++) sums[r] += weights[r * row_step + s * sum_step] * x[s];
#pragma GCC unroll 24
    for (int r = 0; r < num_rows; r++) out[r] = sums[r];
}

/* The same for any number of rows. */
static inline __attribute__((always_inline)) void matvec(int64_t num_rows, int64_t num_terms,
                                                         const float *weights, const int64_t row_step,
                                                         const int64_t sum_step, const lanes *x, lanes *out) {
    int64_t r = 0;
#define MATVEC_BY(num)                                                                                       \
    for (; num_rows - r >= num; r += num)                                                                    \
    matvec_tile(num, num_terms, weights + r * row_step, row_step, sum_step, x, out + r)
    MATVEC_BY(SUMS);
    MATVEC_BY(8);
    MATVEC_BY(4);
    MATVEC_BY(1);
}

/* The sums that add_outer holds in registers: HIGH rows of WIDE vectors. */
#define WIDE (DIM / LANES % 4 ? 1 : 4)
#define HIGH (SUMS / WIDE < 6 ? SUMS / WIDE : 6)

static inline
    __attribute__((always_inline)) void add_outer_tile(const int num_rows, const lanes *left,
                                                       const float rows[LANES][DIM], float *gradients) {
    for (int d = 0; d < DIM; d += WIDE * LANES) {
        lanes sums[HIGH][WIDE] = {};
        for (int lane = 0; lane < LANES; lane++)
            for (int r = 0; r < num_rows; r++)
                for (int v = 0; v < WIDE; v++)
                    sums[r][v] += ((const float *)(left + r))[lane] * ((const row *)(rows[lane] + d))[v];
        for (int r = 0; r < num_rows; r++)
            for (int v = 0; v < WIDE; v++) ((row *)(gradients + r * DIM + d))[v] += sums[r][v];
    }
}

/* gradients[r, d] += sum over lanes of left[r] rows[lane, d]: an outer product, summed over the examples. */
static inline void add_outer(int64_t num_rows, const lanes *left, const float rows[LANES][DIM],
                             float *gradients) {
    int64_t r = 0;
    for (; r + HIGH <= num_rows; r += HIGH) add_outer_tile(HIGH, left + r, rows, gradients + r * DIM);
    for (; r < num_rows; r++) add_outer_tile(1, left + r, rows, gradients + r * DIM);
}

/* Transpose a square of LANES x LANES numbers. */
static inline void transpose(lanes square[LANES]) {
#ifdef __clang__
    float copy[LANES][LANES];
    memcpy(copy, square, sizeof copy);
    for (int i = 0; i < LANES; i++)
        for (int lane = 0; lane < LANES; lane++) square[i][lane] = copy[lane][i];
#else
#pragma GCC unroll 4
    for (int step = 1; step < LANES; step *= 2) {
#define FROM_LOWER(lane) (lane & step ? LANES + lane - step : lane)
#define FROM_UPPER(lane) (lane & step ? LANES + lane : lane + step)
        const mask lower = EACH_LANE(FROM_LOWER), upper = EACH_LANE(FROM_UPPER); /* known when compiled */
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & step)) {
                lanes one = square[i], other = square[i + step];
                square[i] = __builtin_shuffle(one, other, lower);
                square[i + step] = __builtin_shuffle(one, other, upper);
            }
    }
#endif
}

/* Turn LANES rows into a structure of arrays. */
static inline void to_soa(const float rows[LANES][DIM], lanes vectors[DIM]) {
    for (int d = 0; d < DIM; d += LANES) {
        for (int lane = 0; lane < LANES; lane++) memcpy(vectors + d + lane, rows[lane] + d, sizeof(lanes));
        transpose(vectors + d);
    }
}

/* Turn a structure of arrays into LANES rows; the vectors are overwritten. */
static inline void to_rows(lanes vectors[DIM], float rows[LANES][DIM]) {
    for (int d = 0; d < DIM; d += LANES) {
        transpose(vectors + d);
        for (int lane = 0; lane < LANES; lane++) memcpy(rows[lane] + d, vectors + d + lane, sizeof(lanes));
    }
}

static inline lanes tanh_lanes(lanes x) {
    mask sign = (mask)x & INT32_MIN;
    lanes shrunk = exp_nonpositive(-2 * (lanes)((mask)x & INT32_MAX));
    return (lanes)((mask)((1 - shrunk) / (1 + shrunk)) | sign);
}

/* gradients[i] += the sum of the lanes of sums[i]. */
static inline void add_horizontal_sums(int64_t num, const lanes *sums, float *gradients) {
    for (int64_t i = 0; i < num; i++) gradients[i] += horizontal_sum(sums[i]);
}
