/* A block of `training/losses/fused_softmax.py`, worked through once: scores, their soft maximum, gradients.

   As many examples as a vector has lanes go side by side, so nothing is ever summed across lanes. What they
   score against all negatives, the best of their rivals each, stays in the second cache. Only the rival that
   scored has a gradient, so going back takes one row in place of RIVALS.

   DIM, the numbers of an interest, a multiple of 16, and RIVALS, interests that compete for each score, at
   most 256, are given to the compiler. Sizes below: B examples, M negatives, P places to leave out. */

#include "lanes.h"

/* Rivals and negatives of a tile. */
#define CHUNK (RIVALS < 4 ? RIVALS : 4)
#define TILE (SUMS / CHUNK)

/* Rivals come in their order: of those that tie the first stays. */
static inline __attribute__((always_inline)) void keep_best(int rival, lanes score, lanes *best,
                                                            marks *winner) {
    if (rival == 0) {
        *best = score;
        *winner = (marks){};
    } else {
        marks is_better = score > *best;
        *best = either(is_better, score, *best);
        *winner = (is_better & rival) | (~is_better & *winner);
    }
}

/* Score some rivals against some negatives, and keep what is above the best so far. */
static inline __attribute__((always_inline)) void score(const int first, const int num_rivals,
                                                        const int num_negatives,
                                                        const lanes rivals[RIVALS][DIM], const float *vectors,
                                                        lanes *best, marks *winner) {
    lanes sums[TILE][CHUNK] = {};
    for (int d = 0; d < DIM; d++)
        for (int k = 0; k < num_rivals; k++)
#pragma GCC unroll 24
            for (int m = 0; m < num_negatives; m++) sums[m][k] += rivals[first + k][d] * vectors[m * DIM + d];
#pragma GCC unroll 24
    for (int m = 0; m < num_negatives; m++)
        for (int k = 0; k < num_rivals; k++) keep_best(first + k, sums[m][k], best + m, winner + m);
}

static inline __attribute__((always_inline)) void score_tile(const int num_negatives,
                                                             const lanes rivals[RIVALS][DIM],
                                                             const float *vectors, lanes *scores,
                                                             bytes *winners) {
    lanes best[TILE];
    marks winner[TILE];
    for (int first = 0; first + CHUNK <= RIVALS; first += CHUNK)
        score(first, CHUNK, num_negatives, rivals, vectors, best, winner);
    if (RIVALS % CHUNK)
        score(RIVALS - RIVALS % CHUNK, RIVALS % CHUNK, num_negatives, rivals, vectors, best, winner);
    for (int m = 0; m < num_negatives; m++) {
        scores[m] = best[m];
        winners[m] = __builtin_convertvector(winner[m], bytes);
    }
}

#include "score_by_tiles.h"

/* Turn scores [M] into their exponentials; give the log of their sum. */
static lanes soften(int64_t M, lanes *scores, lanes *sum) {
    lanes highest = all(-1e30f); /* in place of minus infinity, which would be taken from itself */
    for (int64_t m = 0; m < M; m++) highest = either(scores[m] > highest, scores[m], highest);
    *sum = (lanes){};
    for (int64_t m = 0; m < M; m++) *sum += scores[m] = exponential(scores[m] - highest);
    lanes result = highest;
    for (int lane = 0; lane < LANES; lane++) result[lane] += logf((*sum)[lane]);
    return result;
}

/* Bring the gradients of the scores of some negatives to the rivals that scored, and to the negatives: of one
   negative, or, with a single rival, of several. */
static inline __attribute__((always_inline)) void
go_back_some(const int num_negatives, int num_examples, const lanes *gradients, const bytes *winners,
             const float *rivals, const float *vectors, float *rival_gradients, float *vector_gradients) {
    row vector[num_negatives][DIM / LANES], sum[num_negatives][DIM / LANES];
    memcpy(vector, vectors, sizeof vector);
    memcpy(sum, vector_gradients, sizeof sum);
    const uint8_t *winner = (const uint8_t *)winners;
    for (int b = 0; b < num_examples; b++) {
        int64_t at = (int64_t)(RIVALS == 1 ? b : b * RIVALS + winner[b]) * DIM;
        const row *rival = (const row *)(rivals + at);
        row *rival_gradient = (row *)(rival_gradients + at);
        for (int d = 0; d < DIM / LANES; d++) {
            row new_gradient = rival_gradient[d];
            for (int m = 0; m < num_negatives; m++) {
                const float gradient = ((const float *)(gradients + m))[b];
                sum[m][d] += gradient * rival[d];
                new_gradient += gradient * vector[m][d];
            }
            rival_gradient[d] = new_gradient;
        }
    }
    memcpy(vector_gradients, sum, sizeof sum);
}

static void go_back(int64_t M, int num_examples, const lanes *gradients, const bytes *winners,
                    const float *rivals, const float *vectors, float *rival_gradients,
                    float *vector_gradients) {
    int64_t m = 0;
#define GO_BACK_SOME(num)                                                                                    \
    for (; m + num <= M; m += num)                                                                           \
        go_back_some(num, num_examples, gradients + m, winners + m, rivals, vectors + m * DIM,               \
                     rival_gradients, vector_gradients + m * DIM)
    if (RIVALS == 1) GO_BACK_SOME(2);
    GO_BACK_SOME(1);
}

/* Add a block's sum of softplus(n - t) to `total`, and its gradients to `vector_gradients` [M, DIM]; write
   `rival_gradients` [B, RIVALS, DIM] and `target_gradients` [B]. `corrections` [M] may be NULL. Places to
   leave out, `own_examples` and `own_negatives` [P], are in the order of examples. `scores`, 16 M floats, and
   `winners`, 16 M bytes, are room to work in, aligned to 64 bytes. Says 0. */
int work_block(int64_t B, int64_t M, int64_t P, const float *rivals, const float *targets,
               const float *vectors, const float *corrections, const int64_t *own_examples,
               const int64_t *own_negatives, lanes *scores, bytes *winners, double *total,
               float *rival_gradients, float *target_gradients, float *vector_gradients) {
    memset(rival_gradients, 0, sizeof(float) * B * RIVALS * DIM);
#ifdef SCORES_BY_TILES
    struct tile_config before;
    tile *parts = may_use_tiles() ? aligned_alloc(64, sizeof(tile) * 2 * DEPTH * ((M + 63) / 64 * 4)) : NULL;
    if (parts) {
        part_vectors(M, vectors, parts);
        before = take_tiles();
    }
#endif
    int64_t own = 0;
    for (int64_t start = 0; start < B; start += LANES) {
        const int num_examples = B - start < LANES ? B - start : LANES;
        const float *of_group = rivals + start * RIVALS * DIM;
        lanes transposed[RIVALS][DIM] = {};
        for (int b = 0; b < num_examples; b++)
            for (int k = 0; k < RIVALS; k++)
                for (int d = 0; d < DIM; d++) transposed[k][d][b] = of_group[(b * RIVALS + k) * DIM + d];
        int64_t m = 0;
#ifdef SCORES_BY_TILES
        tile parts_of_rivals[RIVALS][2][DEPTH];
        if (parts) {
            part_rivals(transposed, parts_of_rivals);
            score_by_tiles(M, parts_of_rivals, parts, scores, winners);
            m = M;
        }
#endif
        for (; m + TILE <= M; m += TILE)
            score_tile(TILE, transposed, vectors + m * DIM, scores + m, winners + m);
        for (; m < M; m++) score_tile(1, transposed, vectors + m * DIM, scores + m, winners + m);
        if (corrections)
            for (m = 0; m < M; m++) scores[m] -= all(corrections[m]);
        for (; own < P && own_examples[own] < start + LANES; own++)
            scores[own_negatives[own]][own_examples[own] - start] = -INFINITY;

        lanes sum, against = soften(M, scores, &sum), factor = {};
        for (int b = 0; b < num_examples; b++) {
            float excess = against[b] - targets[start + b];
            *total += excess > 0 ? excess + log1pf(expf(-excess)) : log1pf(expf(excess));
            float slope = 1 / (1 + expf(-excess));
            target_gradients[start + b] = -slope;
            factor[b] = slope / (sum[b] > 1e-30f ? sum[b] : 1e-30f);
        }
        for (m = 0; m < M; m++) scores[m] *= factor;
        go_back(M, num_examples, scores, winners, of_group, vectors, rival_gradients + start * RIVALS * DIM,
                vector_gradients);
    }
#ifdef SCORES_BY_TILES
    if (parts) {
        give_back_tiles(before);
        free(parts);
    }
#endif
    return 0;
}
