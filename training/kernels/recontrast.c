/* The re-contrast flow of `training/losses/flows/recontrast.py`: the sum over positives, and its gradients.

   The compiler is given DIM, the width of a vector, a multiple of 16. Sizes below: B users, K interests, L
   positions of a history. */

#include "soa.h"

/* A shorter row is divided by this length, as by PyTorch's `normalize`. */
#define SHORTEST 1e-12f

static void normalize(const float *from, float *to, float *inverse_length) {
    float length = sqrtf(dot(from, from));
    *inverse_length = 1 / (length > SHORTEST ? length : SHORTEST);
    EACH_VECTOR(d) * (row *)(to + d) = *inverse_length * *(const row *)(from + d);
}

/* Turn the gradient by the normalized row into the gradient by the row, in place. */
static void normalize_backward(const float *unit, float inverse_length, float *gradient) {
    float along = inverse_length < 1 / SHORTEST ? dot(unit, gradient) : 0;
    EACH_VECTOR(d)
    *(row *)(gradient + d) = inverse_length * (*(row *)(gradient + d) - along * *(const row *)(unit + d));
}

/* LANES rows of DIM numbers. */
typedef struct {
    float rows[LANES][DIM]; /* unused rows are 0 */
    lanes vectors[DIM];     /* the same as a structure of arrays */
} some_rows;

/* values[k] = the inner product of interest k and each row. */
static void multiply(int64_t K, const float *interests, const some_rows *with, lanes *values) {
    memset(values, 0, K * sizeof *values);
    matvec(K, DIM, interests, DIM, 1, with->vectors, values);
}

/* Bring the gradients of the values back: add to those of the interests; overwrite the rows by theirs. */
static void multiply_backward(int64_t K, const float *interests, some_rows *with, const lanes *values,
                              float *interest_gradients) {
    add_outer(K, values, with->rows, interest_gradients);
    memset(with->vectors, 0, sizeof with->vectors);
    matvec(DIM, K, interests, 1, DIM, values, with->vectors);
    to_rows(with->vectors, with->rows);
}

/* The rows that a user's interests are compared with: the history, the interests, then items outside. */
typedef struct {
    int64_t num, num_own;
    some_rows *rows;   /* normalized */
    float **gradients; /* of each row */
} compared;

static void add_compared(compared *list, const float *unit, float *gradient) {
    memcpy(list->rows[list->num / LANES].rows[list->num % LANES], unit, sizeof list->rows->rows[0]);
    list->gradients[list->num++] = gradient;
}

/* Return the sum over the positives of an interest. `values` are its cosines / temperature, `step` vectors
   apart, and are overwritten by the gradients of the cosines. `sharpness` is 1 / temperature, `itself` the
   interest's place among the compared rows. `positives` and `negatives` are work space. */
static float contrast(const compared *list, int64_t itself, const uint8_t *is_positive, float sharpness,
                      int64_t step, lanes *values, mask *positives, mask *negatives) {
    const int64_t num_vectors = (list->num + LANES - 1) / LANES;
    lanes best = broadcast(-1e30f), sum = {}, pull = {};
    for (int64_t v = 0; v < num_vectors; v++) {
        const int64_t num_own = list->num_own - v * LANES;
        bytes positive = {};
        if (num_own > 0) memcpy(&positive, is_positive + v * LANES, num_own < LANES ? num_own : LANES);
        positives[v] = __builtin_convertvector(positive, mask) != 0;
        negatives[v] = first_lanes(list->num - v * LANES) & ~positives[v];
        if (v == itself / LANES) negatives[v][itself % LANES] = 0;
        best = select_lanes(negatives[v] & (values[v * step] > best), values[v * step], best);
    }
    const float highest = max_of((const float *)&best, LANES);
    for (int64_t v = 0; v < num_vectors; v++) {
        lanes *some = values + v * step;
        *some = select_lanes(negatives[v], exp_nonpositive(*some - highest), *some);
        sum += select_lanes(negatives[v], *some, (lanes){});
    }
    const float among = horizontal_sum(sum), against = among == 0 ? highest : highest + logf(among);
    float total = 0;
    for (int64_t v = 0; v * LANES < list->num_own; v++) {
        lanes *some = values + v * step;
        const lanes excess = against - *some, small = exp_nonpositive((lanes)((mask)excess | INT32_MIN));
        const lanes slope = select_lanes(excess > 0, broadcast(1), small) / (1 + small);
        total += logf(
            horizontal_product(select_lanes(positives[v], 1 + small, broadcast(1)))); /* at most 2^LANES */
        total += horizontal_sum(select_lanes(positives[v] & (excess > 0), excess, (lanes){}));
        pull += select_lanes(positives[v], slope, (lanes){});
        *some = select_lanes(positives[v], -sharpness * slope, *some);
    }
    const float share = among == 0 ? 0 : sharpness * horizontal_sum(pull) / among;
    for (int64_t v = 0; v < num_vectors; v++) {
        lanes *some = values + v * step;
        *some = select_lanes(negatives[v], share * *some, (lanes)((mask)*some & positives[v]));
    }
    return total;
}

/* `positives` [B, K, L] and `outside` [B, L] are bytes, 0 or 1; `other` [B] is the place in the batch of the
   user whose history is outside. Add to `total`; write the gradients, which are 0 before. `sharpness` is
   1 / temperature. Return 0, or 1 without memory. */
int recontrast(int64_t B, int64_t K, int64_t L, const float *interests, const float *history,
               const uint8_t *positives, const int64_t *lengths, const int64_t *other, const uint8_t *outside,
               const float *sharpness, double *total, float *interest_gradients, float *history_gradients) {
    const int64_t most = (2 * L + K + LANES - 1) / LANES;
    float **gradients = malloc(sizeof *gradients * most * LANES + sizeof(float) * B * (K + L) * (DIM + 1));
    some_rows *rows = aligned_alloc(sizeof(lanes), most * (sizeof *rows + (K + 2) * sizeof(lanes)));
    if (!gradients || !rows) {
        free(gradients);
        free(rows);
        return 1;
    }
    compared list = {.rows = rows, .gradients = gradients};
    float *interest_units = (float *)(gradients + most * LANES),
          *history_units = interest_units + B * K * DIM;
    float *interest_lengths = history_units + B * L * DIM, *history_lengths = interest_lengths + B * K;
    lanes *values = (lanes *)(rows + most);
    mask *scratch = (mask *)(values + most * K);
    for (int64_t i = 0; i < B * K; i++)
        normalize(interests + i * DIM, interest_units + i * DIM, interest_lengths + i);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            normalize(history + j * DIM, history_units + j * DIM, history_lengths + j);

    for (int64_t b = 0; b < B; b++) {
        const float *units = interest_units + b * K * DIM;
        list.num = 0, list.num_own = lengths[b];
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            add_compared(&list, history_units + j * DIM, history_gradients + j * DIM);
        for (int64_t k = 0; k < K; k++)
            add_compared(&list, units + k * DIM, interest_gradients + (b * K + k) * DIM);
        for (int64_t i = 0; i < lengths[other[b]]; i++)
            if (outside[b * L + i])
                add_compared(&list, history_units + (other[b] * L + i) * DIM,
                             history_gradients + (other[b] * L + i) * DIM);
        const int64_t num_vectors = (list.num + LANES - 1) / LANES, last = list.num % LANES;
        if (last) memset(rows[num_vectors - 1].rows[last], 0, (LANES - last) * sizeof rows->rows[0]);
        for (int64_t v = 0; v < num_vectors; v++) {
            to_soa(rows[v].rows, rows[v].vectors);
            multiply(K, units, rows + v, values + v * K);
            for (int64_t k = 0; k < K; k++) values[v * K + k] *= *sharpness;
        }
        for (int64_t k = 0; k < K; k++)
            *total += contrast(&list, lengths[b] + k, positives + (b * K + k) * L, *sharpness, K, values + k,
                               scratch, scratch + most);
        for (int64_t v = 0; v < num_vectors; v++) {
            multiply_backward(K, units, rows + v, values + v * K, interest_gradients + b * K * DIM);
            for (int64_t i = v * LANES; i < list.num && i < (v + 1) * LANES; i++)
                add_scaled(1, rows[v].rows[i % LANES], list.gradients[i]);
        }
    }
    for (int64_t i = 0; i < B * K; i++)
        normalize_backward(interest_units + i * DIM, interest_lengths[i], interest_gradients + i * DIM);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            normalize_backward(history_units + j * DIM, history_lengths[j], history_gradients + j * DIM);
    free(gradients);
    free(rows);
    return 0;
}
