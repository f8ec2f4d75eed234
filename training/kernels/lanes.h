/* As many numbers at a time as a processor's vector has lanes. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* SUMS that are held in registers, a few being left for factors. */
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
typedef int32_t marks __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef float row __attribute__((vector_size(4 * LANES), aligned(4)));

static inline lanes all(float value) {
    return value - (lanes){};
}

/* Halve by halve, so that the rounding is that of log2 LANES operations. */
#define ACROSS(x, operator)                                                                                  \
    float part[LANES];                                                                                       \
    memcpy(part, &x, sizeof part);                                                                           \
    for (int size = LANES / 2; size; size /= 2)                                                              \
        for (int lane = 0; lane < size; lane++) part[lane] operator part[lane + size];                       \
    return part[0]

static inline float sum_across(lanes x) {
    ACROSS(x, +=);
}

static inline float product_across(lanes x) {
    ACROSS(x, *=);
}

static inline float highest_of(const float *numbers, int64_t num) {
    float highest = -INFINITY;
    for (int64_t i = 0; i < num; i++)
        if (numbers[i] > highest) highest = numbers[i];
    return highest;
}

/* Mark the first so many lanes. */
static inline marks first_lanes(int64_t num) {
#define ITSELF(lane) lane
    return (marks)EACH_LANE(ITSELF) < (int32_t)(num < LANES ? num : LANES);
}

static inline lanes either(marks which, lanes left, lanes right) {
    return (lanes)((which & (marks)left) | (~which & (marks)right));
}

/* e^x for x <= 0, to within two units in the last place; 0 where a float has no room for it. */
static inline lanes exponential(lanes x) {
    const lanes lowest = all(-87.0f);
    marks has_room = x >= lowest;
    marks is_too_low = x < lowest; /* not the same: NaN is neither, and stays */
    x = either(is_too_low, lowest, x);
    lanes scaled = x * all(1.44269504f) - all(0.5f);
    marks power =
        __builtin_convertvector(scaled, marks); /* towards 0: the nearest integer, x being negative */
    lanes whole = __builtin_convertvector(power, lanes);
    lanes rest = x - whole * all(0.693359375f) + whole * all(2.12194440e-4f);
    lanes sum = all(1.9875691500e-4f);
    sum = sum * rest + all(1.3981999507e-3f);
    sum = sum * rest + all(8.3334519073e-3f);
    sum = sum * rest + all(4.1665795894e-2f);
    sum = sum * rest + all(1.6666665459e-1f);
    sum = sum * rest + all(5.0000001201e-1f);
    sum = sum * rest * rest + rest + all(1.0f);
    lanes result = sum * (lanes)((power + 127) << 23);
    return either(has_room | (x != x), result, all(0.0f));
}
