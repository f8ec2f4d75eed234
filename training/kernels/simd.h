/* SIMD vectors of the CPU's width, and rows of DIM numbers, DIM being a multiple of 16. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* LANES: float32 numbers of a vector. SUMS: vector sums that fit in the registers, with a few registers left
   for their factors. */
#ifdef __AVX512F__
#define LANES 16
#define SUMS 24
#define EACH_LANE(what)                                                                                      \
    {what(0), what(1), what(2),  what(3),  what(4),  what(5),  what(6),  what(7),                            \
     what(8), what(9), what(10), what(11), what(12), what(13), what(14), what(15)}
#else
#define LANES 8
#define SUMS 12
#define EACH_LANE(what) {what(0), what(1), what(2), what(3), what(4), what(5), what(6), what(7)}
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES))); /* of each lane: all bits set, or none */
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef float row __attribute__((vector_size(4 * LANES), aligned(4))); /* LANES numbers of a row in memory */

static inline lanes broadcast(float value) {
    return value - (lanes){};
}

/* Halves are combined, then halves of these: the rounding is that of log2(LANES) operations. */
#define HORIZONTAL(x, operator)                                                                              \
    float numbers[LANES];                                                                                    \
    memcpy(numbers, &x, sizeof numbers);                                                                     \
    for (int size = LANES / 2; size; size /= 2)                                                              \
        for (int lane = 0; lane < size; lane++) numbers[lane] operator numbers[lane + size];                 \
    return numbers[0]

static inline float horizontal_sum(lanes x) {
    HORIZONTAL(x, +=);
}

static inline float horizontal_product(lanes x) {
    HORIZONTAL(x, *=);
}

static inline float max_of(const float *numbers, int64_t num) {
    float highest = -INFINITY;
    for (int64_t i = 0; i < num; i++)
        if (numbers[i] > highest) highest = numbers[i];
    return highest;
}

/* The mask of the first `num` lanes. */
static inline mask first_lanes(int64_t num) {
#define ITSELF(lane) lane
    return (mask)EACH_LANE(ITSELF) < (int32_t)(num < LANES ? num : LANES);
}

/* Lane by lane, `left` where the mask is set, `right` elsewhere. (`select` is a function of the C library.)
 */
static inline lanes select_lanes(mask which, lanes left, lanes right) {
    return (lanes)((which & (mask)left) | (~which & (mask)right));
}

/* e^x for x <= 0, to within two units in the last place; 0 below the smallest normal float. */
static inline lanes exp_nonpositive(lanes x) {
    const lanes lowest = broadcast(-87.0f);
    mask is_normal = x >= lowest;
    mask is_too_low = x < lowest; /* not the complement: a NaN is in neither mask, and stays a NaN */
    x = select_lanes(is_too_low, lowest, x);
    lanes scaled = x * broadcast(1.44269504f) - broadcast(0.5f);
    /* The conversion rounds towards 0, so that a negative x minus 0.5 gives the nearest integer. */
    mask power = __builtin_convertvector(scaled, mask);
    lanes whole = __builtin_convertvector(power, lanes);
    lanes rest = x - whole * broadcast(0.693359375f) + whole * broadcast(2.12194440e-4f);
    lanes sum = broadcast(1.9875691500e-4f);
    sum = sum * rest + broadcast(1.3981999507e-3f);
    sum = sum * rest + broadcast(8.3334519073e-3f);
    sum = sum * rest + broadcast(4.1665795894e-2f);
    sum = sum * rest + broadcast(1.6666665459e-1f);
    sum = sum * rest + broadcast(5.0000001201e-1f);
    sum = sum * rest * rest + rest + broadcast(1.0f);
    lanes result = sum * (lanes)((power + 127) << 23);
    return select_lanes(is_normal | (x != x), result, broadcast(0.0f));
}

#define EACH_VECTOR(d) for (int d = 0; d < DIM; d += LANES)

static inline float dot(const float *one, const float *other) {
    lanes sum = {};
    EACH_VECTOR(d) sum += *(const row *)(one + d) * *(const row *)(other + d);
    return horizontal_sum(sum);
}

/* to += scale * from, for rows of DIM numbers. */
static inline void add_scaled(float scale, const float *from, float *to) {
    EACH_VECTOR(d) * (row *)(to + d) += scale * *(const row *)(from + d);
}
