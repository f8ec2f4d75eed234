/* The re-attend flow of `training/losses/flows/reattend.py`: the sum of cross entropies, and its gradients.

   The compiler is given DIM, the width of a vector, a multiple of 16. Sizes below: B users, K interests, L
   positions of a history. */

#include "simd.h"

/* Add to `total`; write the gradients, of which those of interests and history are 0 before. `scores` (L
   floats) is work space. Return 0. */
int reattend(int64_t B, int64_t K, int64_t L, const float *interests, const float *history,
             const float *log_attention, const int64_t *lengths, float *scores, double *total,
             float *interest_gradients, float *history_gradients, float *log_attention_gradients) {
    for (int64_t pair = 0; pair < B * K; pair++) {
        const int64_t b = pair / K, length = lengths[b];
        const float *interest = interests + pair * DIM, *vectors = history + b * L * DIM;
        const float *log_attention_of = log_attention + pair * L;
        float *share_gradients = log_attention_gradients + pair * L;
        float highest = -INFINITY, sum = 0, entropy = 0;
        for (int64_t j = 0; j < length; j++) {
            scores[j] = dot(interest, vectors + j * DIM);
            if (!(scores[j] <= highest)) highest = scores[j];
        }
        for (int64_t j = 0; j < length; j++) sum += scores[j] = expf(scores[j] - highest);
        for (int64_t j = 0; j < length; j++) {
            scores[j] /= sum;
            entropy -= scores[j] * log_attention_of[j];
            share_gradients[j] = -scores[j];
        }
        for (int64_t j = length; j < L; j++) share_gradients[j] = 0;
        *total += entropy;
        for (int64_t j = 0; j < length; j++) {
            float gradient = scores[j] * (-log_attention_of[j] - entropy);
            add_scaled(gradient, vectors + j * DIM, interest_gradients + pair * DIM);
            add_scaled(gradient, interest, history_gradients + (b * L + j) * DIM);
        }
    }
    return 0;
}
