/* Part of `against_negatives.c`: scores by a processor's matrix tiles (AMX), where it has them. */

#include "tiles.h"

#if defined(HAS_TILES) && DIM % 32 == 0 && RIVALS % CHUNK == 0
#define SCORES_BY_TILES
#define DEPTH (DIM / 32)
/* Four tiles of sums are under way at a time: of so many blocks of sixteen negatives. */
#define NUM_BLOCKS (4 / CHUNK)

/* Both parts of all negatives, in blocks of sixteen: [M / 16, 2 parts, DEPTH] tiles. The last block may be
   short. */
static void part_vectors(int64_t M, const float *vectors, tile *parts) {
    for (int64_t m = 0; m < M; m++)
        for (int d = 0; d < DIM; d += LANES) {
            lanes x;
            memcpy(&x, vectors + m * DIM + d, sizeof x);
            marks both[2];
            part(x, both);
            for (int i = 0; i < 2; i++) {
                halves numbers = __builtin_convertvector((both[i] >> 16) & 0xffff, halves);
                memcpy(&parts[(m / 16 * 2 + i) * DEPTH + d / 32][m % 16][d % 32], &numbers, sizeof numbers);
            }
        }
}

/* Both parts of the rivals, two numbers of an example beside each other. */
static void part_rivals(const lanes rivals[RIVALS][DIM], tile parts[RIVALS][2][DEPTH]) {
    for (int k = 0; k < RIVALS; k++)
        for (int d = 0; d < DIM; d += 2) {
            marks one[2], other[2];
            part(rivals[k][d], one);
            part(rivals[k][d + 1], other);
            for (int i = 0; i < 2; i++) {
                marks both = ((one[i] >> 16) & 0xffff) | other[i];
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

static void score_by_tiles(int64_t M, const tile rivals[RIVALS][2][DEPTH], const tile *vectors, lanes *scores,
                           bytes *winners) {
    lanes sums[4][16];
    __asm__ volatile("" ::: "memory"); /* what is loaded below is in memory, and not still in registers */
    for (int64_t start = 0; start < M; start += 16 * NUM_BLOCKS) {
        const int num_negatives = M - start < 16 * NUM_BLOCKS ? M - start : 16 * NUM_BLOCKS;
        lanes best[16 * NUM_BLOCKS];
        marks winner[16 * NUM_BLOCKS];
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
