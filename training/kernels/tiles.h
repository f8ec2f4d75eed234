/* A processor's matrix tiles (AMX), where it has them: products of bfloat16, summed in float32.

   A factor is the sum of a coarse number and of what that leaves, so that three products give what float32
   would, but for the product of two remainders, 2^-16 of it. */

#if defined(__AMX_BF16__) && LANES == 16
#define HAS_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t tile[16][32] __attribute__((aligned(64)));

static const struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} all_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* The system lends a process its tiles when it asks for them. */
static int may_use_tiles(void) {
    return !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
}

/* A thread's tiles are all of full size until they are given back, as they were before. */
static inline struct tile_config take_tiles(void) {
    struct tile_config before;
    _tile_storeconfig(&before);
    _tile_loadconfig(&all_tiles);
    return before;
}

static inline void give_back_tiles(struct tile_config before) {
    _tile_loadconfig(&before);
}

/* To the nearest number that the upper half of a float holds; of two as near, away from 0. */
static inline marks rounded(lanes x) {
    return ((marks)x + 0x8000) & (int32_t)0xffff0000;
}

/* A coarse number and what it leaves, each the upper half of a float. */
static inline void part(lanes x, marks parts[2]) {
    parts[0] = rounded(x);
    parts[1] = rounded(x - (lanes)parts[0]);
}

/* Both parts of sixteen rows of sixteen words, of which each holds two numbers, one of `low` and one of
   `high`. Rows are so many numbers apart. */
static inline void part_words(const float *low, const float *high, int64_t row_step, tile parts[2]) {
    for (int r = 0; r < 16; r++) {
        marks of_low[2], of_high[2];
        part(*(const row *)(low + r * row_step), of_low);
        part(*(const row *)(high + r * row_step), of_high);
        for (int i = 0; i < 2; i++) {
            marks both = ((of_low[i] >> 16) & 0xffff) | of_high[i];
            memcpy(parts[i][r], &both, sizeof both);
        }
    }
}

/* Two blocks of tiles, `block` tiles apart, each of them `step` tiles apart along the sum. A tile of
   remainders comes after that of the coarse numbers. */
typedef struct {
    const tile *tiles;
    int64_t block, step;
} factor;

/* Where sums are: those of a left or a right block, and rows, are so many numbers apart. */
typedef struct {
    float *at;
    int64_t left, right, row;
} place;

/* sums[i, j] = before[i, j] + left[i] right[j], for two left and two right blocks. What is summed goes over
   the words of a left tile's row, the rows of a right tile, and `depth` tiles. */
static inline void add_product(int64_t depth, factor left, factor right, place before, place sums) {
#define LOAD_TILE(number, from) _tile_loadd(number, from, sizeof(tile) / 16)
#define LOAD_SUMS(number, i, j)                                                                              \
    _tile_loadd(number, before.at + i * before.left + j * before.right, 4 * before.row)
#define STORE_SUMS(number, i, j) _tile_stored(number, sums.at + i * sums.left + j * sums.right, 4 * sums.row)
#define MULTIPLY()                                                                                           \
    _tile_dpbf16ps(4, 0, 2);                                                                                 \
    _tile_dpbf16ps(5, 0, 3);                                                                                 \
    _tile_dpbf16ps(6, 1, 2);                                                                                 \
    _tile_dpbf16ps(7, 1, 3)
    __asm__ volatile("" ::: "memory"); /* a compiler does not see that tiles are read */
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
