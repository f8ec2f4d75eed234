/* A processor's matrix tiles (AMX), where it has them: products of bfloat16, summed in float32.

   A factor is the sum of a coarse number and of what that leaves, so that three products give what float32
   would, but for the product of two remainders, 2^-16 of it. */

#if defined(__AMX_BF16__) && LANES == 16
#define HAS_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t tile[16][32];

static const struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} all_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* The system lends a process its tiles when it asks for them. */
static int may_use_tiles(void) {
    return !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
}

static inline marks rounded(lanes x) {
    marks bits = (marks)x;
    return (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
}

/* A coarse number and what it leaves, each the upper half of a float. */
static inline void part(lanes x, marks parts[2]) {
    parts[0] = rounded(x);
    parts[1] = rounded(x - (lanes)parts[0]);
}
#endif
