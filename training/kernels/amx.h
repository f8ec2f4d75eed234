/* Matrix products in the tiles of Intel AMX: factors in bfloat16, sums in float32.

   A float32 factor is split into a coarse bfloat16 number and a bfloat16 remainder. Three products (coarse by
   coarse, coarse by remainder, remainder by coarse) give the float32 product but for remainder by remainder,
   which is 2^-16 of it. */

#pragma once

#include "simd.h"

#if defined(__AMX_BF16__) && LANES == 16
#define HAS_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16_pairs __attribute__((vector_size(2 * LANES)));
typedef uint16_t tile[16][32] __attribute__((aligned(64)));

static const struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} all_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Linux enables the tiles of a process on request. */
static inline int amx_available(void) {
    return !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
}

/* Configure all tiles of this thread at full size; amx_end restores the configuration before. */
static inline struct tile_config amx_begin(void) {
    struct tile_config before;
    _tile_storeconfig(&before);
    _tile_loadconfig(&all_tiles);
    return before;
}

static inline void amx_end(struct tile_config before) {
    _tile_loadconfig(&before);
}

/* Round to bfloat16, the upper half of a float32; halfway cases away from 0. */
static inline mask round_bf16(lanes x) {
    return ((mask)x + 0x8000) & (int32_t)0xffff0000;
}

/* Split into a coarse number and a remainder, each the upper half of a float32. */
static inline void split_bf16(lanes x, mask parts[2]) {
    parts[0] = round_bf16(x);
    parts[1] = round_bf16(x - (lanes)parts[0]);
}

/* Split sixteen rows of sixteen words: parts[0] holds the coarse numbers, parts[1] the remainders. A word
   holds a number of `low` and a number of `high`; rows are `row_step` numbers apart. */
static inline void split_words(const float *low, const float *high, int64_t row_step, tile parts[2]) {
    for (int r = 0; r < 16; r++) {
        mask of_low[2], of_high[2];
        split_bf16(*(const row *)(low + r * row_step), of_low);
        split_bf16(*(const row *)(high + r * row_step), of_high);
        for (int i = 0; i < 2; i++) {
            mask both = ((of_low[i] >> 16) & 0xffff) | of_high[i];
            memcpy(parts[i][r], &both, sizeof both);
        }
    }
}

/* One factor of a product: two blocks of tiles, `block` tiles apart; along the sum, tiles are `step` tiles
   apart. The tile of remainders follows the tile of coarse numbers. */
typedef struct {
    const tile *tiles;
    int64_t block, step;
} amx_factor;

/* The sums in memory, and how many numbers apart the left blocks, the right blocks and the rows are. */
typedef struct {
    float *at;
    int64_t left, right, row;
} amx_sums;

/* sums[i, j] = before[i, j] + left[i] right[j], for two left and two right blocks. The sum runs over the
   words of a left tile's row, which are the rows of a right tile, and over `depth` tiles. */
static inline void amx_multiply(int64_t depth, amx_factor left, amx_factor right, amx_sums before,
                                amx_sums sums) {
#define LOAD_TILE(number, from) _tile_loadd(number, from, sizeof(tile) / 16)
#define LOAD_SUMS(number, i, j)                                                                              \
    _tile_loadd(number, before.at + i * before.left + j * before.right, 4 * before.row)
#define STORE_SUMS(number, i, j) _tile_stored(number, sums.at + i * sums.left + j * sums.right, 4 * sums.row)
#define MULTIPLY()                                                                                           \
    _tile_dpbf16ps(4, 0, 2);                                                                                 \
    _tile_dpbf16ps(5, 0, 3);                                                                                 \
    _tile_dpbf16ps(6, 1, 2);                                                                                 \
    _tile_dpbf16ps(7, 1, 3)
    __asm__ volatile("" ::: "memory"); /* the compiler does not know that the tiles are loaded from memory */
    LOAD_SUMS(4, 0, 0);
    LOAD_SUMS(5, 0, 1);
    LOAD_SUMS(6, 1, 0);
    LOAD_SUMS(7, 1, 1);
    for (int64_t k = 0; k < depth; k++) {
        const tile *one = left.tiles + k * left.step, *other = right.tiles + k * right.step;
        LOAD_TILE(0, one);
        LOAD_TILE(1, one + left.block);
        LOAD_TILE(2, other + 1);
        LOAD_TILE(3, other + right.block + 1);
        MULTIPLY();
        LOAD_TILE(2, other);
        LOAD_TILE(3, other + right.block);
        MULTIPLY();
        LOAD_TILE(0, one + 1);
        LOAD_TILE(1, one + left.block + 1);
        MULTIPLY();
    }
    STORE_SUMS(4, 0, 0);
    STORE_SUMS(5, 0, 1);
    STORE_SUMS(6, 1, 0);
    STORE_SUMS(7, 1, 1);
}
#endif
