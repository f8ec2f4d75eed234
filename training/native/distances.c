/* Users of `training/flows/distances.py`, worked through once: reconstructions, squared distances, gradients.

   A pair is a user and one of the user's interests. As many pairs as a vector has lanes go side by side, with
   all of their pieces in the second cache; nothing is summed across lanes before the end.

   DIM, the numbers of an interest, and WIDTH, of what is hidden, both multiples of 16, are given to the
   compiler. Sizes below: B users, K interests, L positions of a history, n positions of the longest in a
   group of pairs. */

#include "lanes.h"

/* Of what is summed by tiles of 4 x 4, so many are taken; what is beyond n counts for nothing. */
#define PADDED(n) (((n) + 3) / 4 * 4)

typedef struct {
    const float *to_hidden, *hidden_bias, *to_pieces, *pieces_bias, *queries;
} decoder;

typedef struct {
    float *to_hidden, *hidden_bias, *to_pieces, *pieces_bias, *queries;
} decoder_gradients;

/* Room for one group, for histories of L. Of i and j, i counts pieces, j positions. */
typedef struct {
    lanes (*hidden)[WIDTH];           /* [i, c]; later its gradient */
    lanes (*pieces)[DIM];             /* [i, d]; later its gradient */
    lanes (*history)[DIM];            /* [j, d]: what is rebuilt, then twice its difference */
    lanes *shares;                    /* [i, j] */
    lanes *gradients;                 /* [i, j] of the shares, then of their logits */
    lanes (*query_gradients)[WIDTH];  /* [j, c], over all groups */
    lanes *hidden_bias, *pieces_bias; /* [i * c], [i * d], over all groups */
} room;

/* out[r] = bias[r] + sum over s of weights[r * row_step + s * sum_step] x[s], some rows at a time. */
static inline __attribute__((always_inline)) void weigh_tile(const int num_rows, int64_t num_terms,
                                                             const float *weights, int64_t row_step,
                                                             int64_t sum_step, const float *bias,
                                                             const lanes *x, lanes *out) {
    lanes sums[SUMS];
#pragma GCC unroll 24
    for (int r = 0; r < num_rows; r++) sums[r] = bias ? all(bias[r]) : out[r];
    for (int64_t s = 0; s < num_terms; s++)
#pragma GCC unroll 24
        for (int r = 0; r < num_rows; r++) sums[r] += weights[r * row_step + s * sum_step] * x[s];
#pragma GCC unroll 24
    for (int r = 0; r < num_rows; r++) out[r] = sums[r];
}

/* The same for any number of rows; without a bias it is added to what is there. */
static inline __attribute__((always_inline)) void weigh(int64_t num_rows, int64_t num_terms,
                                                        const float *weights, const int64_t row_step,
                                                        const int64_t sum_step, const float *bias,
                                                        const lanes *x, lanes *out) {
    int64_t r = 0;
    for (; r + SUMS <= num_rows; r += SUMS)
        weigh_tile(SUMS, num_terms, weights + r * row_step, row_step, sum_step, bias ? bias + r : NULL, x,
                   out + r);
    for (; r + 8 <= num_rows; r += 8)
        weigh_tile(8, num_terms, weights + r * row_step, row_step, sum_step, bias ? bias + r : NULL, x,
                   out + r);
    for (; r < num_rows; r++)
        weigh_tile(1, num_terms, weights + r * row_step, row_step, sum_step, bias ? bias + r : NULL, x,
                   out + r);
}

/* out[r, s] = or += sum over t of left[r, t] right[s, t], lane by lane; each with its steps.
   Rows and columns are multiples of four. */
static inline __attribute__((always_inline)) void
contract(const int adds, int64_t num_rows, int64_t num_columns, int64_t num_terms, const lanes *left,
         int64_t left_row, int64_t left_term, const lanes *right, int64_t right_row, int64_t right_term,
         lanes *out, int64_t out_row) {
    for (int64_t r = 0; r < num_rows; r += 4)
        for (int64_t s = 0; s < num_columns; s += 4) {
            lanes sums[4][4];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sums[i][j] = adds ? out[(r + i) * out_row + s + j] : (lanes){};
            for (int64_t t = 0; t < num_terms; t++)
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++)
                        sums[i][j] += left[(r + i) * left_row + t * left_term] *
                                      right[(s + j) * right_row + t * right_term];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) out[(r + i) * out_row + s + j] = sums[i][j];
        }
}

/* Vectors and rows of sums that add_outer has in registers. */
#define WIDE (DIM / LANES % 4 ? 1 : 4)
#define HIGH (SUMS / WIDE < 6 ? SUMS / WIDE : 6)

static inline __attribute__((always_inline)) void
add_outer_tile(const int num_rows, const lanes *left, const float rows[LANES][DIM], float *gradients) {
    for (int d = 0; d < DIM; d += WIDE * LANES) {
        lanes sums[HIGH][WIDE] = {};
        for (int lane = 0; lane < LANES; lane++)
            for (int r = 0; r < num_rows; r++)
                for (int v = 0; v < WIDE; v++)
                    sums[r][v] += ((const float *)(left + r))[lane] * ((const row *)(rows[lane] + d))[v];
        for (int r = 0; r < num_rows; r++)
            for (int v = 0; v < WIDE; v++) ((row *)(gradients + r * DIM + d))[v] += sums[r][v];
    }
}

/* gradients[r, d] += sum over lanes of left[r] rows[lane, d]. */
static void add_outer(int64_t num_rows, const lanes *left, const float rows[LANES][DIM], float *gradients) {
    int64_t r = 0;
    for (; r + HIGH <= num_rows; r += HIGH) add_outer_tile(HIGH, left + r, rows, gradients + r * DIM);
    for (; r < num_rows; r++) add_outer_tile(1, left + r, rows, gradients + r * DIM);
}

/* Turn rows of numbers of each lane into vectors of all lanes, or back. */
static inline void transpose(lanes square[LANES]) {
#ifdef __clang__
    float copy[LANES][LANES];
    memcpy(copy, square, sizeof copy);
    for (int i = 0; i < LANES; i++)
        for (int lane = 0; lane < LANES; lane++) square[i][lane] = copy[lane][i];
#else
#pragma GCC unroll 4
    for (int step = 1; step < LANES; step *= 2) {
        marks low, high;
        for (int lane = 0; lane < LANES; lane++) {
            low[lane] = lane & step ? LANES + lane - step : lane;
            high[lane] = lane & step ? LANES + lane : lane + step;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & step)) {
                lanes one = square[i], other = square[i + step];
                square[i] = __builtin_shuffle(one, other, low);
                square[i + step] = __builtin_shuffle(one, other, high);
            }
    }
#endif
}

static lanes hyperbolic_tangent(lanes x) {
    marks sign = (marks)x & INT32_MIN;
    lanes shrunk = exponential(-2 * (lanes)((marks)x & INT32_MAX));
    return (lanes)((marks)((1 - shrunk) / (1 + shrunk)) | sign);
}

/* Turn logits into shares of the pieces that a pair has: they sum to 1 over i. */
static void share_out(int64_t n, marks lengths, lanes *shares) {
    for (int64_t j = 0; j < n; j++) {
        lanes highest = all(-INFINITY), sum = {};
        for (int64_t i = 0; i < n; i++) {
            lanes logit = either(lengths > (int32_t)i, shares[i * n + j], all(-INFINITY));
            shares[i * n + j] = logit;
            highest = either(logit > highest, logit, highest);
        }
        for (int64_t i = 0; i < n; i++) sum += shares[i * n + j] = exponential(shares[i * n + j] - highest);
        for (int64_t i = 0; i < n; i++) shares[i * n + j] /= sum;
    }
}

/* Turn gradients of shares into gradients of their logits. */
static void go_back_to_logits(int64_t n, const lanes *shares, lanes *gradients) {
    for (int64_t j = 0; j < n; j++) {
        lanes mean = {};
        for (int64_t i = 0; i < n; i++) mean += shares[i * n + j] * gradients[i * n + j];
        for (int64_t i = 0; i < n; i++)
            gradients[i * n + j] = shares[i * n + j] * (gradients[i * n + j] - mean);
    }
}

/* Put twice the difference from the true history in place of the rebuilt one where that counts, and 0
   elsewhere; give the sum of squares; take the differences from the gradient of the true history. */
static float compare(int64_t K, int64_t L, int64_t n, int64_t first, int num_pairs, const float *history,
                      const float *positives, lanes (*rebuilt)[DIM], float *history_gradients) {
    lanes sum = {};
    for (int64_t j = 0; j < n; j++) {
        lanes counts = {};
        if (j < L)
            for (int lane = 0; lane < num_pairs; lane++) counts[lane] = positives[(first + lane) * L + j];
        for (int d = 0; d < DIM; d += LANES) {
            lanes square[LANES] = {};
            if (j < L)
                for (int lane = 0; lane < num_pairs; lane++)
                    square[lane] = *(const row *)(history + ((first + lane) / K * L + j) * DIM + d);
            transpose(square);
            for (int i = 0; i < LANES; i++) {
                lanes difference = (rebuilt[j][d + i] - square[i]) * counts;
                sum += difference * difference;
                rebuilt[j][d + i] = square[i] = 2 * difference;
            }
            transpose(square);
            if (j < L)
                for (int lane = 0; lane < num_pairs; lane++)
                    *(row *)(history_gradients + ((first + lane) / K * L + j) * DIM + d) -= square[lane];
        }
    }
    return sum_across(sum);
}

static void work_group(int64_t K, int64_t L, int64_t first, int num_pairs, const float *interests,
                       const float *history, const float *positives, const int64_t *lengths,
                       const decoder *with, const room *at, double *total, float *interest_gradients,
                       float *history_gradients, const decoder_gradients *gradients) {
    marks lengths_of = (marks){} + 1;
    float rows[LANES][DIM] = {};
    lanes interest[DIM], interest_gradient[DIM] = {};
    int64_t longest = 1;
    for (int lane = 0; lane < num_pairs; lane++) {
        int64_t length = lengths[(first + lane) / K];
        lengths_of[lane] = length;
        if (length > longest) longest = length;
        memcpy(rows[lane], interests + (first + lane) * DIM, sizeof rows[lane]);
    }
    for (int d = 0; d < DIM; d += LANES) {
        for (int lane = 0; lane < LANES; lane++) memcpy(interest + d + lane, rows[lane] + d, sizeof(lanes));
        transpose(interest + d);
    }
    const int64_t n = PADDED(longest);
    weigh(longest * WIDTH, DIM, with->to_hidden, DIM, 1, with->hidden_bias, interest, *at->hidden);
    for (int64_t at_c = 0; at_c < longest * WIDTH; at_c++)
        (*at->hidden)[at_c] = hyperbolic_tangent((*at->hidden)[at_c]);
    weigh(longest * DIM, DIM, with->to_pieces, DIM, 1, with->pieces_bias, interest, *at->pieces);
    memset(at->hidden[longest], 0, (n - longest) * sizeof *at->hidden);
    memset(at->pieces[longest], 0, (n - longest) * sizeof *at->pieces);
    memset(at->shares, 0, n * n * sizeof(lanes));
    for (int64_t i = 0; i < longest; i++)
        weigh(longest, WIDTH, with->queries, WIDTH, 1, NULL, at->hidden[i], at->shares + i * n);
    share_out(n, lengths_of, at->shares);
    contract(0, n, DIM, n, at->shares, 1, n, *at->pieces, 1, DIM, *at->history, DIM);
    *total += compare(K, L, n, first, num_pairs, history, positives, at->history, history_gradients);

    contract(0, n, n, DIM, *at->pieces, DIM, 1, *at->history, DIM, 1, at->gradients, n);
    contract(0, n, DIM, n, at->shares, n, 1, *at->history, 1, DIM, *at->pieces, DIM);
    go_back_to_logits(n, at->shares, at->gradients);
    contract(1, n, WIDTH, n, at->gradients, 1, n, *at->hidden, 1, WIDTH, *at->query_gradients, WIDTH);
    for (int64_t i = 0; i < longest; i++) {
        lanes back[WIDTH] = {};
        weigh(WIDTH, longest, with->queries, 1, WIDTH, NULL, at->gradients + i * n, back);
        for (int c = 0; c < WIDTH; c++)
            at->hidden[i][c] = back[c] * (1 - at->hidden[i][c] * at->hidden[i][c]);
    }
    add_outer(longest * WIDTH, *at->hidden, rows, gradients->to_hidden);
    add_outer(longest * DIM, *at->pieces, rows, gradients->to_pieces);
    for (int64_t at_c = 0; at_c < longest * WIDTH; at_c++) at->hidden_bias[at_c] += (*at->hidden)[at_c];
    for (int64_t at_d = 0; at_d < longest * DIM; at_d++) at->pieces_bias[at_d] += (*at->pieces)[at_d];
    weigh(DIM, longest * WIDTH, with->to_hidden, 1, DIM, NULL, *at->hidden, interest_gradient);
    weigh(DIM, longest * DIM, with->to_pieces, 1, DIM, NULL, *at->pieces, interest_gradient);
    for (int d = 0; d < DIM; d += LANES) {
        transpose(interest_gradient + d);
        for (int lane = 0; lane < num_pairs; lane++)
            memcpy(interest_gradients + (first + lane) * DIM + d, interest_gradient + d + lane,
                   sizeof(lanes));
    }
}

static void add_across(int64_t num, const lanes *sums, float *gradients) {
    for (int64_t at = 0; at < num; at++) gradients[at] += sum_across(sums[at]);
}

/* Add to `total` the sum over positives of B users, and to the gradients theirs: of the histories, which are
   0 before, and of the decoder; write those of the interests. Lengths are at least 1 and at most L, which the
   decoder has pieces for. Says 0, or 1 where there is no memory. */
int add_users(int64_t B, int64_t K, int64_t L, const float *interests, const float *history,
              const float *positives, const int64_t *lengths, const float *to_hidden,
              const float *hidden_bias, const float *to_pieces, const float *pieces_bias,
              const float *queries, double *total, float *interest_gradients, float *history_gradients,
              float *to_hidden_gradients, float *hidden_bias_gradients, float *to_pieces_gradients,
              float *pieces_bias_gradients, float *query_gradients) {
    const decoder with = {to_hidden, hidden_bias, to_pieces, pieces_bias, queries};
    const decoder_gradients gradients = {to_hidden_gradients, hidden_bias_gradients, to_pieces_gradients,
                                         pieces_bias_gradients, query_gradients};
    const int64_t n = PADDED(L), num_vectors = n * (3 * WIDTH + 3 * DIM + 2 * n) + n * DIM;
    lanes *memory = aligned_alloc(sizeof(lanes), num_vectors * sizeof(lanes));
    if (!memory) return 1;
    memset(memory, 0, num_vectors * sizeof(lanes));
    room at;
    lanes *next = memory;
#define TAKE(field, size) at.field = (void *)next, next += (size)
    TAKE(query_gradients, n * WIDTH);
    TAKE(hidden_bias, n * WIDTH);
    TAKE(pieces_bias, n * DIM);
    TAKE(hidden, n * WIDTH);
    TAKE(pieces, n * DIM);
    TAKE(history, n * DIM);
    TAKE(shares, n * n);
    TAKE(gradients, n * n);
    for (int64_t first = 0; first < B * K; first += LANES)
        work_group(K, L, first, B * K - first < LANES ? B * K - first : LANES, interests, history, positives,
                   lengths, &with, &at, total, interest_gradients, history_gradients, &gradients);
    add_across(L * WIDTH, *at.query_gradients, gradients.queries);
    add_across(L * WIDTH, at.hidden_bias, gradients.hidden_bias);
    add_across(L * DIM, at.pieces_bias, gradients.pieces_bias);
    free(memory);
    return 0;
}
