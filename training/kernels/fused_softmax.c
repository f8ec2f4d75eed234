/* A block of `training/losses/fused_softmax.py`: scores, their log-sum-exp and all gradients in one pass.

   LANES examples are worked on side by side, so no sum runs across lanes. Each example scores a negative by
   the best of its RIVALS interests. The scores of a group against all negatives stay in the L2 cache. Only
   the interest that gave the score has a gradient, so the backward pass takes one row instead of RIVALS.

   The compiler is given DIM, the width of an interest, a multiple of 16, and RIVALS, at most 256. Sizes
   below: B examples, M negatives, P accidental hits (places where a target is among its own negatives). */

#include "amx.h"

/* Rivals and negatives whose scores are in registers at a time. */
#define CHUNK (RIVALS < 4 ? RIVALS : 4)
#define TILE (SUMS / CHUNK)

/* Rivals come in ascending order, so the first one wins a tie. */
static inline __attribute__((always_inline)) void keep_best(int rival, lanes score, lanes *best,
                                                            mask *winner) {
    if (rival == 0) {
        *best = score;
        *winner = (mask){};
    } else {
        mask is_better = score > *best;
        *best = select_lanes(is_better, score, *best);
        *winner = (is_better & rival) | (~is_better & *winner);
    }
}

/* Score some rivals against some negatives, and keep the scores above the best so far. */
static inline __attribute__((always_inline)) void score(const int first, const int num_rivals,
                                                        const int num_negatives,
                                                        const lanes rivals[RIVALS][DIM], const float *vectors,
                                                        lanes *best, mask *winner) {
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
    lanes best[TILE] = {}; /* rival 0 overwrites it */
    mask winner[TILE] = {};
    for (int first = 0; first + CHUNK <= RIVALS; first += CHUNK)
        score(first, CHUNK, num_negatives, rivals, vectors, best, winner);
    if (RIVALS % CHUNK)
        score(RIVALS - RIVALS % CHUNK, RIVALS % CHUNK, num_negatives, rivals, vectors, best, winner);
    for (int m = 0; m < num_negatives; m++) {
        scores[m] = best[m];
        winners[m] = __builtin_convertvector(winner[m], bytes);
    }
}

#if defined(HAS_AMX) && DIM % 32 == 0 && RIVALS % CHUNK == 0
#define SCORES_BY_AMX
#define DEPTH (DIM / 32)
/* Blocks of sixteen negatives at a time: four tiles hold sums. */
#define NUM_BLOCKS (4 / CHUNK)

/* Split all negatives, in blocks of sixteen: [M / 16, 2 parts, DEPTH] tiles. The last block may be short. */
static void split_vectors(int64_t M, const float *vectors, tile *parts) {
    for (int64_t m = 0; m < M; m++)
        for (int d = 0; d < DIM; d += LANES) {
            lanes x;
            memcpy(&x, vectors + m * DIM + d, sizeof x);
            mask both[2];
            split_bf16(x, both);
            for (int i = 0; i < 2; i++) {
                bf16_pairs numbers = __builtin_convertvector((both[i] >> 16) & 0xffff, bf16_pairs);
                memcpy(&parts[(m / 16 * 2 + i) * DEPTH + d / 32][m % 16][d % 32], &numbers, sizeof numbers);
            }
        }
}

/* Split the rivals; a word holds two numbers of an example. */
static void split_rivals(const lanes rivals[RIVALS][DIM], tile parts[RIVALS][2][DEPTH]) {
    for (int k = 0; k < RIVALS; k++)
        for (int d = 0; d < DIM; d += 2) {
            mask one[2], other[2];
            split_bf16(rivals[k][d], one);
            split_bf16(rivals[k][d + 1], other);
            for (int i = 0; i < 2; i++) {
                mask both = ((one[i] >> 16) & 0xffff) | other[i];
                memcpy(parts[k][i][d / 32][d % 32 / 2], &both, sizeof both);
            }
        }
}

/* Add to the sums, tiles 4 to 7, the products of one part of some negatives and one part of some rivals. */
static inline __attribute__((always_inline)) void add_products(const tile *vectors[4],
                                                               const tile *rivals[4]) {
#define LOAD(number, from) _tile_loadd(number, *(from), sizeof *(from)[0])
#if NUM_BLOCKS == 1
    LOAD(0, vectors[0]);
    LOAD(1, rivals[0]);
    _tile_dpbf16ps(4, 0, 1);
    LOAD(2, rivals[1]);
    _tile_dpbf16ps(5, 0, 2);
    LOAD(3, rivals[2]);
    _tile_dpbf16ps(6, 0, 3);
    if (CHUNK == 4) {
        LOAD(1, rivals[3]);
        _tile_dpbf16ps(7, 0, 1);
    }
#elif NUM_BLOCKS == 2
    LOAD(0, vectors[0]);
    LOAD(1, vectors[1]);
    LOAD(2, rivals[0]);
    _tile_dpbf16ps(4, 0, 2);
    _tile_dpbf16ps(6, 1, 2);
    LOAD(3, rivals[1]);
    _tile_dpbf16ps(5, 0, 3);
    _tile_dpbf16ps(7, 1, 3);
#else
    LOAD(0, rivals[0]);
    LOAD(1, vectors[0]);
    _tile_dpbf16ps(4, 1, 0);
    LOAD(2, vectors[1]);
    _tile_dpbf16ps(5, 2, 0);
    LOAD(3, vectors[2]);
    _tile_dpbf16ps(6, 3, 0);
    LOAD(1, vectors[3]);
    _tile_dpbf16ps(7, 1, 0);
#endif
}

static void score_by_amx(int64_t M, const tile rivals[RIVALS][2][DEPTH], const tile *vectors, lanes *scores,
                         bytes *winners) {
    lanes sums[4][16];
    __asm__ volatile("" ::: "memory"); /* write registers back before tiles are loaded from memory */
    for (int64_t start = 0; start < M; start += 16 * NUM_BLOCKS) {
        const int num_negatives = M - start < 16 * NUM_BLOCKS ? M - start : 16 * NUM_BLOCKS;
        lanes best[16 * NUM_BLOCKS];
        mask winner[16 * NUM_BLOCKS];
        for (int first = 0; first < RIVALS; first += CHUNK) {
            _tile_zero(4);
            _tile_zero(5);
            _tile_zero(6);
            _tile_zero(7);
            for (int d = 0; d < DEPTH; d++)
                for (int parts = 0; parts < 3; parts++) {
                    const tile *left[4], *right[4];
                    for (int i = 0; i < NUM_BLOCKS; i++)
                        left[i] = &vectors[((start / 16 + i) * 2 + (parts == 1)) * DEPTH + d];
                    for (int k = 0; k < CHUNK; k++) right[k] = &rivals[first + k][parts == 2][d];
                    add_products(left, right);
                }
            _tile_stored(4, sums[0], sizeof *sums[0]);
            _tile_stored(5, sums[1], sizeof *sums[0]);
            _tile_stored(6, sums[2], sizeof *sums[0]);
            _tile_stored(7, sums[3], sizeof *sums[0]);
            for (int m = 0; m < 16 * NUM_BLOCKS; m++)
                for (int k = 0; k < CHUNK; k++)
                    keep_best(first + k, sums[m / 16 * CHUNK + k][m % 16], best + m, winner + m);
        }
        for (int m = 0; m < num_negatives; m++) {
            scores[start + m] = best[m];
            winners[start + m] = __builtin_convertvector(winner[m], bytes);
        }
    }
}
#endif

/* Turn scores [M] into their exponentials, shifted by the highest score; return the log of the sum. */
static lanes logsumexp(int64_t M, lanes *scores, lanes *sum) {
    lanes highest = broadcast(-1e30f); /* finite: minus infinity minus itself is NaN */
    for (int64_t m = 0; m < M; m++) highest = select_lanes(scores[m] > highest, scores[m], highest);
    *sum = (lanes){};
    for (int64_t m = 0; m < M; m++) *sum += scores[m] = exp_nonpositive(scores[m] - highest);
    lanes result = highest;
    for (int lane = 0; lane < LANES; lane++) result[lane] += logf((*sum)[lane]);
    return result;
}

/* Bring the gradients of the scores of some negatives back to the best rivals and to the negatives. Several
   negatives at a time are possible with a single rival only. */
static inline __attribute__((always_inline)) void
scores_backward_tile(const int num_negatives, int num_examples, const lanes *gradients, const bytes *winners,
                     const float *rivals, const float *vectors, float *rival_gradients,
                     float *vector_gradients) {
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

static void scores_backward(int64_t M, int num_examples, const lanes *gradients, const bytes *winners,
                            const float *rivals, const float *vectors, float *rival_gradients,
                            float *vector_gradients) {
    int64_t m = 0;
#define BACKWARD_TILE(num)                                                                                   \
    for (; m + num <= M; m += num)                                                                           \
    scores_backward_tile(num, num_examples, gradients + m, winners + m, rivals, vectors + m * DIM,           \
                         rival_gradients, vector_gradients + m * DIM)
    if (RIVALS == 1) BACKWARD_TILE(2);
    BACKWARD_TILE(1);
}

/* Add to `total` the block's sum of softplus(n - t), and to `vector_gradients` [M, DIM] their gradients;
   write `rival_gradients` [B, RIVALS, DIM] and `target_gradients` [B]. `corrections` [M] may be NULL. The
   hits, `hit_examples` and `hit_negatives` [P], are in the order of examples. `scores` (16 M floats) and
   `winners` (16 M bytes) are work space, aligned to 64 bytes. Return 0. */
int fused_softmax_block(int64_t B, int64_t M, int64_t P, const float *rivals, const float *targets,
                        const float *vectors, const float *corrections, const int64_t *hit_examples,
                        const int64_t *hit_negatives, lanes *scores, bytes *winners, double *total,
                        float *rival_gradients, float *target_gradients, float *vector_gradients) {
    memset(rival_gradients, 0, sizeof(float) * B * RIVALS * DIM);
#ifdef SCORES_BY_AMX
    struct tile_config before;
    tile *parts = amx_available() ? aligned_alloc(64, sizeof(tile) * 2 * DEPTH * ((M + 63) / 64 * 4)) : NULL;
    if (parts) {
        split_vectors(M, vectors, parts);
        before = amx_begin();
    }
#endif
    int64_t hit = 0;
    for (int64_t start = 0; start < B; start += LANES) {
        const int num_examples = B - start < LANES ? B - start : LANES;
        const float *of_group = rivals + start * RIVALS * DIM;
        lanes transposed[RIVALS][DIM] = {};
        for (int b = 0; b < num_examples; b++)
            for (int k = 0; k < RIVALS; k++)
                for (int d = 0; d < DIM; d++) transposed[k][d][b] = of_group[(b * RIVALS + k) * DIM + d];
        int64_t m = 0;
#ifdef SCORES_BY_AMX
        tile parts_of_rivals[RIVALS][2][DEPTH];
        if (parts) {
            split_rivals(transposed, parts_of_rivals);
            score_by_amx(M, parts_of_rivals, parts, scores, winners);
            m = M;
        }
#endif
        for (; m + TILE <= M; m += TILE)
            score_tile(TILE, transposed, vectors + m * DIM, scores + m, winners + m);
        for (; m < M; m++) score_tile(1, transposed, vectors + m * DIM, scores + m, winners + m);
        if (corrections)
            for (m = 0; m < M; m++) scores[m] -= broadcast(corrections[m]);
        for (; hit < P && hit_examples[hit] < start + LANES; hit++)
            scores[hit_negatives[hit]][hit_examples[hit] - start] = -INFINITY;

        lanes sum, against = logsumexp(M, scores, &sum), operand = {};
        for (int b = 0; b < num_examples; b++) {
            float excess = against[b] - targets[start + b];
            *total += excess > 0 ? excess + log1pf(expf(-excess)) : log1pf(expf(excess));
            float slope = 1 / (1 + expf(-excess));
            target_gradients[start + b] = -slope;
            operand[b] = slope / (sum[b] > 1e-30f ? sum[b] : 1e-30f);
        }
        for (m = 0; m < M; m++) scores[m] *= operand;
        scores_backward(M, num_examples, scores, winners, of_group, vectors,
                        rival_gradients + start * RIVALS * DIM, vector_gradients);
    }
#ifdef SCORES_BY_AMX
    if (parts) {
        amx_end(before);
        free(parts);
    }
#endif
    return 0;
}
