/* Users of `training/losses/fused_reconstruction.py`, worked through once: reconstructions, squared distances, gradients.

   A pair is a user and one of the user's interests. As many pairs as a vector has lanes go side by side, a
   group, with all of their pieces in the second cache; nothing is summed across lanes before the end. Pieces
   are made for GROUPS groups at a time.

   DIM, the numbers of an interest, and WIDTH, of what is hidden, both multiples of 16, are given to the
   compiler. Sizes below: B users, K interests, L positions of a history, n positions of the longest in a
   group of pairs. */

#include "linear_map.h"

/* Of what is summed by tiles of 4 x 4, so many are taken; what is beyond n counts for nothing. */
#define PADDED(n) (((n) + 3) / 4 * 4)

typedef struct {
    int64_t K, L;
    const float *history, *positives, *queries;
    const int64_t *lengths;
    float *history_gradients;
    double *total;
} users;

/* Room to work in, for histories of L. Of i and j, i counts pieces, j positions. */
typedef struct {
    map_input *interests;
    lanes *hidden;                   /* [group, i, c]; later its gradient */
    lanes *pieces;                   /* [group, i, d]; later its gradient */
    lanes (*history)[DIM];           /* [j, d], of one group: what is rebuilt, then twice its difference */
    lanes *shares;                   /* [i, j], of one group */
    lanes *gradients;                /* [i, j] of the shares, then of their logits */
    lanes (*query_gradients)[WIDTH]; /* [j, c], over all groups */
} room;

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
        for (int64_t i = 0; i < n; i++) shares[i * n + j] *= 1 / sum;
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
static float compare(const users *of, int64_t n, int64_t first, int num_pairs, lanes (*rebuilt)[DIM]) {
    const int64_t K = of->K, L = of->L;
    lanes sum = {};
    for (int64_t j = 0; j < n; j++) {
        lanes counts = {};
        if (j < L)
            for (int lane = 0; lane < num_pairs; lane++) counts[lane] = of->positives[(first + lane) * L + j];
        for (int d = 0; d < DIM; d += LANES) {
            lanes square[LANES] = {};
            if (j < L)
                for (int lane = 0; lane < num_pairs; lane++)
                    square[lane] = *(const row *)(of->history + ((first + lane) / K * L + j) * DIM + d);
            transpose(square);
            for (int i = 0; i < LANES; i++) {
                lanes difference = (rebuilt[j][d + i] - square[i]) * counts;
                sum += difference * difference;
                rebuilt[j][d + i] = square[i] = 2 * difference;
            }
            transpose(square);
            if (j < L)
                for (int lane = 0; lane < num_pairs; lane++)
                    *(row *)(of->history_gradients + ((first + lane) / K * L + j) * DIM + d) -= square[lane];
        }
    }
    return sum_across(sum);
}

/* Rebuild the histories of a group from what is hidden and from pieces; put their gradients in their place.
 */
static void work_group(const users *of, int64_t longest, int64_t first, int num_pairs, lanes (*hidden)[WIDTH],
                       lanes (*pieces)[DIM], const room *at) {
    const int64_t n = PADDED(longest);
    marks lengths = (marks){} + 1;
    for (int lane = 0; lane < num_pairs; lane++) lengths[lane] = of->lengths[(first + lane) / of->K];
    for (int64_t at_c = 0; at_c < longest * WIDTH; at_c++)
        (*hidden)[at_c] = hyperbolic_tangent((*hidden)[at_c]);
    memset(hidden[longest], 0, (n - longest) * sizeof *hidden);
    memset(pieces[longest], 0, (n - longest) * sizeof *pieces);
    memset(at->shares, 0, n * n * sizeof(lanes));
    for (int64_t i = 0; i < longest; i++)
        weigh(longest, WIDTH, of->queries, WIDTH, 1, hidden[i], at->shares + i * n);
    share_out(n, lengths, at->shares);
    contract(0, n, DIM, n, at->shares, 1, n, *pieces, 1, DIM, *at->history, DIM);
    *of->total += compare(of, n, first, num_pairs, at->history);

    contract(0, n, n, DIM, *pieces, DIM, 1, *at->history, DIM, 1, at->gradients, n);
    contract(0, n, DIM, n, at->shares, n, 1, *at->history, 1, DIM, *pieces, DIM);
    go_back_to_logits(n, at->shares, at->gradients);
    contract(1, n, WIDTH, n, at->gradients, 1, n, *hidden, 1, WIDTH, *at->query_gradients, WIDTH);
    for (int64_t i = 0; i < longest; i++) {
        lanes back[WIDTH] = {};
        weigh(WIDTH, longest, of->queries, 1, WIDTH, at->gradients + i * n, back);
        for (int c = 0; c < WIDTH; c++) hidden[i][c] = back[c] * (1 - hidden[i][c] * hidden[i][c]);
    }
}

static int at_most(int64_t most, int64_t num_left) {
    return num_left < 0 ? 0 : num_left < most ? num_left : most;
}

/* Work on some groups of pairs: write the gradients of the interests, add to the others. */
static void work_groups(const users *of, int64_t first, int num_pairs, const float *interests,
                        const linear_map *to_hidden, const linear_map *to_pieces, const room *at,
                        float *interest_gradients) {
    int64_t longest = 1;
    for (int64_t user = first / of->K; user <= (first + num_pairs - 1) / of->K; user++)
        if (of->lengths[user] > longest) longest = of->lengths[user];
    const map_output hidden = {at->hidden, PADDED(longest) * WIDTH},
                     pieces = {at->pieces, PADDED(longest) * DIM};
    const size_t num_bytes = num_pairs * sizeof *at->interests->rows;
    memset(at->interests->rows, 0, sizeof at->interests->rows);
    memcpy(at->interests->rows, interests + first * DIM, num_bytes);
    begin_input(at->interests);
    go_through(to_hidden, longest * WIDTH, at->interests, hidden);
    go_through(to_pieces, longest * DIM, at->interests, pieces);
    for (int g = 0; g < GROUPS; g++) {
        lanes *of_hidden = hidden.at + g * hidden.group_step, *of_pieces = pieces.at + g * pieces.group_step;
        work_group(of, longest, first + g * LANES, at_most(LANES, num_pairs - g * LANES), (void *)of_hidden,
                   (void *)of_pieces, at);
    }
    go_back_through(to_hidden, longest * WIDTH, at->interests, hidden);
    go_back_through(to_pieces, longest * DIM, at->interests, pieces);
    end_input(at->interests);
    memcpy(interest_gradients + first * DIM, at->interests->rows, num_bytes);
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
    const users of = {K, L, history, positives, queries, lengths, history_gradients, total};
    linear_map hidden = {to_hidden, hidden_bias, to_hidden_gradients},
               pieces = {to_pieces, pieces_bias, to_pieces_gradients};
    const int64_t n = PADDED(L), num_sums = n * (2 * WIDTH + DIM),
                  num_vectors = num_sums + n * (GROUPS * (WIDTH + DIM) + DIM + 2 * n) +
                                sizeof(map_input) / sizeof(lanes);
    lanes *memory = aligned_alloc(sizeof(lanes), num_vectors * sizeof(lanes));
    if (!memory) return 1;
    memset(memory, 0, num_sums * sizeof(lanes));
    room at;
    lanes *next = memory;
#define TAKE(field, size) field = (void *)next, next += (size)
    TAKE(at.query_gradients, n * WIDTH);
    TAKE(hidden.bias_gradients, n * WIDTH);
    TAKE(pieces.bias_gradients, n * DIM);
    TAKE(at.hidden, GROUPS * n * WIDTH);
    TAKE(at.pieces, GROUPS * n * DIM);
    TAKE(at.history, n * DIM);
    TAKE(at.shares, n * n);
    TAKE(at.gradients, n * n);
    TAKE(at.interests, sizeof(map_input) / sizeof(lanes));
    begin_map(L, WIDTH, &hidden);
    begin_map(L, DIM, &pieces);
    for (int64_t first = 0; first < B * K; first += GROUPS * LANES) {
        const int num_pairs = at_most(GROUPS * LANES, B * K - first);
        work_groups(&of, first, num_pairs, interests, &hidden, &pieces, &at, interest_gradients);
    }
    end_map(&hidden);
    end_map(&pieces);
    add_across(L * WIDTH, *at.query_gradients, query_gradients);
    add_across(L * WIDTH, hidden.bias_gradients, hidden_bias_gradients);
    add_across(L * DIM, pieces.bias_gradients, pieces_bias_gradients);
    free(memory);
    return 0;
}
