/* Users of `training/flows/recontrast.py`, worked through once: the sum over positives, and its gradients.

   DIM, the numbers of a vector, a multiple of 16, is given to the compiler. Sizes below: B users, K
   interests, L positions of a history. */

#include "rows.h"

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

/* Things of one user that an interest is compared with. */
typedef struct {
    const float *units;
    float *gradients;
    float *values; /* cosines / temperature; then their gradients */
    int64_t size;
} compared;

/* `positives` [B, K, L] and `outside` [B, L] are bytes, 0 or 1; `other` [B] says where in the batch a user's
   other is. Adds to `total`; writes the gradients, which are 0 before. `sharpness` is 1 / temperature.
   `scratch` has room for (K + L) (DIM + 1) B + K + 2 L floats. Says 0. */
int contrast_users(int64_t B, int64_t K, int64_t L, const float *interests, const float *history,
                   const uint8_t *positives, const int64_t *lengths, const int64_t *other,
                   const uint8_t *outside, const float *sharpness, float *scratch, double *total,
                   float *interest_gradients, float *history_gradients) {
    float *interest_units = scratch, *history_units = interest_units + B * K * DIM;
    float *interest_lengths = history_units + B * L * DIM, *history_lengths = interest_lengths + B * K;
    float *values = history_lengths + B * L;
    for (int64_t i = 0; i < B * K; i++)
        make_unit(interests + i * DIM, interest_units + i * DIM, interest_lengths + i);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            make_unit(history + j * DIM, history_units + j * DIM, history_lengths + j);

    for (int64_t b = 0; b < B; b++) {
        const int64_t o = other[b];
        const compared groups[3] = {
            {history_units + b * L * DIM, history_gradients + b * L * DIM, values, lengths[b]},
            {interest_units + b * K * DIM, interest_gradients + b * K * DIM, values + L, K},
            {history_units + o * L * DIM, history_gradients + o * L * DIM, values + L + K, lengths[o]},
        };
        for (int64_t k = 0; k < K; k++) {
            const uint8_t *is_positive = positives + (b * K + k) * L, *is_outside = outside + b * L;
            const float *unit = interest_units + (b * K + k) * DIM;
            float *gradient = interest_gradients + (b * K + k) * DIM;
#define COUNTS(group, i) (group == 0 || (group == 1 ? i != k : is_outside[i]))
#define IS_NEGATIVE(group, i) (group == 0 ? !is_positive[i] : COUNTS(group, i))
#define EACH_COMPARED(group, i)                                                                              \
    for (int group = 0; group < 3; group++)                                                                  \
        for (int64_t i = 0; i < groups[group].size; i++)                                                     \
            if (COUNTS(group, i))
            int64_t num_positives = 0;
            for (int64_t j = 0; j < lengths[b]; j++) num_positives += is_positive[j];
            if (!num_positives) continue;
            float highest = -1e30f, sum = 0, pull = 0;
            EACH_COMPARED(group, i) {
                float value = *sharpness * dot(unit, groups[group].units + i * DIM);
                groups[group].values[i] = value;
                if (IS_NEGATIVE(group, i) && !(value <= highest)) highest = value;
            }
            EACH_COMPARED(group, i)
            if (IS_NEGATIVE(group, i)) sum += expf(groups[group].values[i] - highest);
            const float against = sum > 0 || sum != sum ? highest + logf(sum) : -1e30f;
            for (int64_t j = 0; j < lengths[b]; j++)
                if (is_positive[j]) {
                    float excess = against - values[j];
                    *total += soft_plus(excess);
                    pull += values[j] = 1 / (1 + expf(-excess));
                }
            EACH_COMPARED(group, i) {
                float *value = groups[group].values + i;
                *value = *sharpness * (IS_NEGATIVE(group, i) ? pull * expf(*value - against) : -*value);
                add_scaled(*value, groups[group].units + i * DIM, gradient);
                add_scaled(*value, unit, groups[group].gradients + i * DIM);
            }
        }
    }
    for (int64_t i = 0; i < B * K; i++)
        go_back_from_unit(interest_units + i * DIM, interest_lengths[i], interest_gradients + i * DIM);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = b * L; j < b * L + lengths[b]; j++)
            go_back_from_unit(history_units + j * DIM, history_lengths[j], history_gradients + j * DIM);
    return 0;
}
