/* A step of row-wise Adam (`training/trainer/optimiser.py`) over some rows, each read and written once.

   The compiler is given DIM, the width of a row, a multiple of 16. */

#include "simd.h"

/* How many rows ahead the CPU prefetches. */
#define AHEAD 8

/* Row r of the gradients [R, DIM] belongs to row rows[r] of the weights and moments. `settings`: weight
   decay, beta 1, beta 2, step size / bias correction of the first moment, bias correction of the second
   moment, epsilon. Return 0. */
int row_adam(int64_t R, const int64_t *rows, const float *gradients, float *weights, float *first_moments,
             float *second_moments, const float *settings) {
    const float decay = settings[0], keep_first = settings[1], keep_second = settings[2];
    const float scale = settings[3], bias = settings[4], epsilon = settings[5];
    for (int64_t r = 0; r < R; r++) {
        if (r + AHEAD < R)
            for (int d = 0; d < DIM; d += 16) {
                __builtin_prefetch(weights + rows[r + AHEAD] * DIM + d, 1);
                __builtin_prefetch(first_moments + rows[r + AHEAD] * DIM + d, 1);
            }
        float *weight = weights + rows[r] * DIM, *first = first_moments + rows[r] * DIM;
        row gradient[DIM / LANES];
        lanes squares = {};
        EACH_VECTOR(d) {
            row g = *(const row *)(gradients + r * DIM + d) + decay * *(row *)(weight + d);
            gradient[d / LANES] = g;
            squares += g * g;
        }
        float second =
            keep_second * second_moments[rows[r]] + (1 - keep_second) * horizontal_sum(squares) / DIM;
        second_moments[rows[r]] = second;
        const float step = scale / (sqrtf(second / bias) + epsilon);
        EACH_VECTOR(d) {
            row moment = keep_first * *(row *)(first + d) + (1 - keep_first) * gradient[d / LANES];
            *(row *)(first + d) = moment;
            *(row *)(weight + d) -= step * moment;
        }
    }
    return 0;
}
