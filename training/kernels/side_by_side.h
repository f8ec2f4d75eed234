/* Vectors side by side, each in a lane of its own, and what all of them go through alike.

   DIM, a multiple of 16, is how many numbers a vector has before it does. */

#include "lanes.h"

/* out[r] += sum over s of weights[r * row_step + s * sum_step] x[s], some rows at a time. */
static inline __attribute__((always_inline)) void weigh_tile(const int num_rows, int64_t num_terms,
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
static inline __attribute__((always_inline)) void weigh(int64_t num_rows, int64_t num_terms,
                                                        const float *weights, const int64_t row_step,
                                                        const int64_t sum_step, const lanes *x, lanes *out) {
    int64_t r = 0;
#define WEIGH_BY(num)                                                                                        \
    for (; r + num <= num_rows; r += num)                                                                    \
    weigh_tile(num, num_terms, weights + r * row_step, row_step, sum_step, x, out + r)
    WEIGH_BY(SUMS);
    WEIGH_BY(8);
    WEIGH_BY(4);
    WEIGH_BY(1);
}

/* Vectors and rows of sums that add_outer has in registers. */
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

/* gradients[r, d] += sum over lanes of left[r] rows[lane, d]. */
static inline void add_outer(int64_t num_rows, const lanes *left, const float rows[LANES][DIM],
                             float *gradients) {
    int64_t r = 0;
    for (; r + HIGH <= num_rows; r += HIGH) add_outer_tile(HIGH, left + r, rows, gradients + r * DIM);
    for (; r < num_rows; r++) add_outer_tile(1, left + r, rows, gradients + r * DIM);
}

/* Turn rows of numbers of each lane into vectors of all lanes, or back. */
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
        const marks lower = EACH_LANE(FROM_LOWER), upper = EACH_LANE(FROM_UPPER); /* known when compiled */
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

/* Put rows side by side. */
static inline void put_side_by_side(const float rows[LANES][DIM], lanes vectors[DIM]) {
    for (int d = 0; d < DIM; d += LANES) {
        for (int lane = 0; lane < LANES; lane++) memcpy(vectors + d + lane, rows[lane] + d, sizeof(lanes));
        transpose(vectors + d);
    }
}

/* The other way round; the vectors are used up. */
static inline void put_in_rows(lanes vectors[DIM], float rows[LANES][DIM]) {
    for (int d = 0; d < DIM; d += LANES) {
        transpose(vectors + d);
        for (int lane = 0; lane < LANES; lane++) memcpy(rows[lane] + d, vectors + d + lane, sizeof(lanes));
    }
}

static inline lanes hyperbolic_tangent(lanes x) {
    marks sign = (marks)x & INT32_MIN;
    lanes shrunk = exponential(-2 * (lanes)((marks)x & INT32_MAX));
    return (lanes)((marks)((1 - shrunk) / (1 + shrunk)) | sign);
}

/* gradients[i] += the sum of all lanes of sums[i]. */
static inline void add_across(int64_t num, const lanes *sums, float *gradients) {
    for (int64_t at = 0; at < num; at++) gradients[at] += sum_across(sums[at]);
}
