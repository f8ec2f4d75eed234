/* One row of DIM numbers at a time, DIM being a multiple of 16. */

#include "lanes.h"

#define EACH_VECTOR(d) for (int d = 0; d < DIM; d += LANES)

static inline float dot(const float *one, const float *other) {
    lanes sum = {};
    EACH_VECTOR(d) sum += *(const row *)(one + d) * *(const row *)(other + d);
    return sum_across(sum);
}

static inline void add_scaled(float scale, const float *from, float *to) {
    EACH_VECTOR(d) * (row *)(to + d) += scale * *(const row *)(from + d);
}
