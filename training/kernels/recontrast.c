/* Users of `training/losses/flows/recontrast.py`, worked through once: the sum over positives, and its gradients.

   DIM, the numbers of a vector, a multiple of 16, is given to the compiler. Sizes below: B users, K
   interests, L positions of a history. */

#include "rows.h"
#include "side_by_side.h"

/* As PyTorch's `normalize` has it: a shorter row is divided by this. */
#define SHORTEST 1e-12f

static void make_unit(const float *from, float *to, float *inverse_length) {
    float length = sqrtf(dot(from, from));
    *inverse_length = 1 / (length > SHORTEST ? length : SHORTEST);
    EACH_VECTOR(d) * (row *)(to + d) = *inverse_length * *(const row *)(from + d);
}

/* Turn the gradient of a row of length 1 into that of the row that it was made from. */
static void go_back_from_unit(const float *unit, float inverse_length, float *gradient) {
    float along = inverse_length < 1 / SHORTEST ? dot(unit, gradient) : 0;
    EACH_VECTOR(d)
    *(row *)(gradient + d) = inverse_length * (*(row *)(gradient + d) - along * *(const row *)(unit + d));
}

/* Some rows of DIM numbers, LANES at a time. */
typedef struct {
    float rows[LANES][DIM]; /* what is not used is 0 */
    lanes vectors[DIM];     /* the same, side by side */
} some_rows;

/* values[k] = interest k times each row. */
static void multiply(int64_t K, const float *interests, const some_rows *with, lanes *values) {
    memset(values, 0, K * sizeof *values);
    weigh(K, DIM, interests, DIM, 1, with->vectors, values);
}

/* Bring the gradients of values back: add to those of the interests; those of the rows take their place. */
static void go_back(int64_t K, const float *interests, some_rows *with, const lanes *values,
                    float *interest_gradients) {
    add_outer(K, values, with->rows, interest_gradients);
    memset(with->vectors, 0, sizeof with->vectors);
    weigh(DIM, K, interests, 1, DIM, values, with->vectors);
    put_in_rows(with->vectors, with->rows);
}

/* What the interests of a user are compared with: the valid history, themselves, then what is outside. */
typedef struct {
    int64_t num, num_own;
    some_rows *rows;   /* of length 1 */
    float **gradients; /* of each row */
} compared;

static void compare_with(compared *list, const float *unit, float *gradient) {
    memcpy(list->rows[list->num / LANES].rows[list->num % LANES], unit, sizeof list->rows->rows[0]);
    list->gradients[list->num++] = gradient;
}

/* The sum over the positives of an interest, by its cosines / temperature, which are `step` apart: the
   gradients of the cosines take their place. `sharpness` is 1 / temperature, `itself` the interest's place
   among the compared. `positives` and `negatives` are room to work in. */
static float contrast(const compared *list, int64_t itself, const uint8_t *is_positive, float sharpness,
                      int64_t step, lanes *values, marks *positives, marks *negatives) {
    const int64_t num_vectors = (list->num + LANES - 1) / LANES;
    lanes best = all(-1e30f), sum = {}, pull = {};
    for (int64_t v = 0; v < num_vectors; v++) {
        const int64_t num_own = list->num_own - v * LANES;
        bytes positive = {};
        if (num_own > 0) memcpy(&positive, is_positive + v * LANES, num_own < LANES ? num_own : LANES);
        positives[v] = __builtin_convertvector(positive, marks) != 0;
        negatives[v] = first_lanes(list->num - v * LANES) & ~positives[v];
        if (v == itself / LANES) negatives[v][itself % LANES] = 0;
        best = either(negatives[v] & (values[v * step] > best), values[v * step], best);
    }
    const float highest = highest_of((const float *)&best, LANES);
    for (int64_t v = 0; v < num_vectors; v++) {
        lanes *some = values + v * step;
        *some = either(negatives[v], exponential(*some - highest), *some);
        sum += either(negatives[v], *some, (lanes){});
    }
    const float among = sum_across(sum), against = among == 0 ? highest : highest + logf(among);
    float total = 0;
    for (int64_t v = 0; v * LANES < list->num_own; v++) {
        lanes *some = values + v * step;
        const lanes excess = against - *some, small = exponential((lanes)((marks)excess | INT32_MIN));
        const lanes slope = either(excess > 0, all(1), small) / (1 + small);
        total += logf(product_across(either(positives[v], 1 + small, all(1)))); /* no more than 2^LANES */
        total += sum_across(either(positives[v] & (excess > 0), excess, (lanes){}));
        pull += either(positives[v], slope, (lanes){});
        *some = either(positives[v], -sharpness * slope, *some);
    }
    const float share = among == 0 ? 0 : sharpness * sum_across(pull) / among;
    for (int64_t v = 0; v < num_vectors; v++) {
        lanes *some = values + v * step;
        *some = either(negatives[v], share * *some, (lanes)((marks)*some & positives[v]));
    }
    return total;
}

/* `positives` [B, K, L] and `outside` [B, L] are bytes, 0 or 1; `other` [B] says where in the batch a user's
   other is. Adds to `total`; writes the gradients, which are 0 before. `sharpness` is 1 / temperature. Says
   0, or 1 where there is no memory. */
int contrast_users(int64_t B, int64_t K, int64_t L, const float *interests, const float *history,
                   const uint8_t *positives, const int64_t *lengths, const int64_t *other,
                   const uint8_t *outside, const float *sharpness, double *total, float *interest_gradients,
                   float *history_gradients) {
    const int64_t most = (2 * L + K + LANES - 1) / LANES;
    float **gradients = malloc(sizeof *gradients * most * LANES + sizeof(float) * B * (K + L) * (DIM + 1));
    some_rows *rows = aligned_alloc(sizeof(lanes), most * (sizeof *rows + (K + 2) * sizeof(lanes)));
    if (!gradients || !rows) {
        free(gradients);
        free(rows);
        return 1;
    }
    compared list = {.rows = rows, .gradients = gradients};
    float *interest_units = (float *)(gradients + most * LANES), *history_units = interest_units + B * K * DIM;
    float *interest_lengths = history_units + B * L * DIM, *history_lengths = interest_lengths + B * K;
    lanes *values = (lanes *)(rows + most);
    marks *scratch = (marks *)(values + most * K);
    for (int64_t i = 0; i < B * K; i++)
        make_unit(interests + i * DIM, interest_units + i * DIM, interest_lengths + i);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            make_unit(history + j * DIM, history_units + j * DIM, history_lengths + j);

    for (int64_t b = 0; b < B; b++) {
        const float *units = interest_units + b * K * DIM;
        list.num = 0, list.num_own = lengths[b];
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            compare_with(&list, history_units + j * DIM, history_gradients + j * DIM);
        for (int64_t k = 0; k < K; k++)
            compare_with(&list, units + k * DIM, interest_gradients + (b * K + k) * DIM);
        for (int64_t i = 0; i < lengths[other[b]]; i++)
            if (outside[b * L + i])
                compare_with(&list, history_units + (other[b] * L + i) * DIM,
                             history_gradients + (other[b] * L + i) * DIM);
        const int64_t num_vectors = (list.num + LANES - 1) / LANES, last = list.num % LANES;
        if (last) memset(rows[num_vectors - 1].rows[last], 0, (LANES - last) * sizeof rows->rows[0]);
        for (int64_t v = 0; v < num_vectors; v++) {
            put_side_by_side(rows[v].rows, rows[v].vectors);
            multiply(K, units, rows + v, values + v * K);
            for (int64_t k = 0; k < K; k++) values[v * K + k] *= *sharpness;
        }
        for (int64_t k = 0; k < K; k++)
            *total += contrast(&list, lengths[b] + k, positives + (b * K + k) * L, *sharpness, K, values + k,
                               scratch, scratch + most);
        for (int64_t v = 0; v < num_vectors; v++) {
            go_back(K, units, rows + v, values + v * K, interest_gradients + b * K * DIM);
            for (int64_t i = v * LANES; i < list.num && i < (v + 1) * LANES; i++)
                add_scaled(1, rows[v].rows[i % LANES], list.gradients[i]);
        }
    }
    for (int64_t i = 0; i < B * K; i++)
        go_back_from_unit(interest_units + i * DIM, interest_lengths[i], interest_gradients + i * DIM);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            go_back_from_unit(history_units + j * DIM, history_lengths[j], history_gradients + j * DIM);
    free(gradients);
    free(rows);
    return 0;
}
