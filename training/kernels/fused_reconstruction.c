/* A block of `training/losses/fused_reconstruction.py`: reconstructions, squared distances and all gradients.

   A pair is a user and one of the user's interests; a group is LANES pairs, worked on side by side, with all
   of their pieces in the L2 cache. No sum runs across lanes before the end. The linear layers take GROUPS
   groups at a time.

   The compiler is given DIM, the width of an interest, and WIDTH, the width of the hidden layer, both
   multiples of 16. Sizes below: B users, K interests, L positions of a history, n positions of the longest
   history in a group. */

#include "linear.h"

/* contract works on tiles of 4 x 4; numbers beyond n are 0 or are not used. */
#define PADDED(n) (((n) + 3) / 4 * 4)

typedef struct {
    int64_t K, L;
    const float *history, *positives, *queries;
    const int64_t *lengths;
    float *history_gradients;
    double *total;
} users;

/* Buffers for histories of L; i counts pieces, j positions. */
typedef struct {
    linear_input *interests;
    lanes *hidden;                   /* [group, i, c]; later its gradient */
    lanes *pieces;                   /* [group, i, d]; later its gradient */
    lanes (*history)[DIM];           /* [j, d], of one group: the reconstruction, then twice its difference */
    lanes *shares;                   /* [i, j], of one group */
    lanes *gradients;                /* [i, j] of the shares, then of their logits */
    lanes (*query_gradients)[WIDTH]; /* [j, c], over all groups */
} workspace;

/* out[r, s] = (or +=, with `adds`) sum over t of left[r, t] right[s, t], lane by lane. Numbers of rows and
   columns are multiples of four. */
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

/* Softmax over the pieces i that a pair has, in place. */
static void softmax(int64_t n, mask lengths, lanes *shares) {
    for (int64_t j = 0; j < n; j++) {
        lanes highest = broadcast(-INFINITY), sum = {};
        for (int64_t i = 0; i < n; i++) {
            lanes logit = select_lanes(lengths > (int32_t)i, shares[i * n + j], broadcast(-INFINITY));
            shares[i * n + j] = logit;
            highest = select_lanes(logit > highest, logit, highest);
        }
        for (int64_t i = 0; i < n; i++)
            sum += shares[i * n + j] = exp_nonpositive(shares[i * n + j] - highest);
        for (int64_t i = 0; i < n; i++) shares[i * n + j] *= 1 / sum;
    }
}

/* Turn gradients by the softmax into gradients by its logits, in place. */
static void softmax_backward(int64_t n, const lanes *shares, lanes *gradients) {
    for (int64_t j = 0; j < n; j++) {
        lanes mean = {};
        for (int64_t i = 0; i < n; i++) mean += shares[i * n + j] * gradients[i * n + j];
        for (int64_t i = 0; i < n; i++)
            gradients[i * n + j] = shares[i * n + j] * (gradients[i * n + j] - mean);
    }
}

/* Overwrite the reconstruction by twice its difference from the true history on positives, by 0 elsewhere;
   return the sum of squared differences; subtract twice the differences from the history's gradient. */
static float squared_distances(const users *of, int64_t n, int64_t first, int num_pairs,
                               lanes (*rebuilt)[DIM]) {
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
    return horizontal_sum(sum);
}

/* Reconstruct the histories of a group from the hidden layer and the pieces; overwrite both by their
 * gradients. */
static void reconstruct_group(const users *of, int64_t longest, int64_t first, int num_pairs,
                              lanes (*hidden)[WIDTH], lanes (*pieces)[DIM], const workspace *at) {
    const int64_t n = PADDED(longest);
    mask lengths = (mask){} + 1;
    for (int lane = 0; lane < num_pairs; lane++) lengths[lane] = of->lengths[(first + lane) / of->K];
    for (int64_t i = 0; i < longest; i++)
        for (int c = 0; c < WIDTH; c++) hidden[i][c] = tanh_lanes(hidden[i][c]);
    memset(hidden[longest], 0, (n - longest) * sizeof *hidden);
    memset(pieces[longest], 0, (n - longest) * sizeof *pieces);
    memset(at->shares, 0, n * n * sizeof(lanes));
    for (int64_t i = 0; i < longest; i++)
        matvec(longest, WIDTH, of->queries, WIDTH, 1, hidden[i], at->shares + i * n);
    softmax(n, lengths, at->shares);
    contract(0, n, DIM, n, at->shares, 1, n, *pieces, 1, DIM, *at->history, DIM);
    *of->total += squared_distances(of, n, first, num_pairs, at->history);

    contract(0, n, n, DIM, *pieces, DIM, 1, *at->history, DIM, 1, at->gradients, n);
    contract(0, n, DIM, n, at->shares, n, 1, *at->history, 1, DIM, *pieces, DIM);
    softmax_backward(n, at->shares, at->gradients);
    contract(1, n, WIDTH, n, at->gradients, 1, n, *hidden, 1, WIDTH, *at->query_gradients, WIDTH);
    for (int64_t i = 0; i < longest; i++) {
        lanes back[WIDTH] = {};
        matvec(WIDTH, longest, of->queries, 1, WIDTH, at->gradients + i * n, back);
        for (int c = 0; c < WIDTH; c++) hidden[i][c] = back[c] * (1 - hidden[i][c] * hidden[i][c]);
    }
}

static int at_most(int64_t most, int64_t num_left) {
    return num_left < 0 ? 0 : num_left < most ? num_left : most;
}

/* Work on GROUPS groups of pairs: write the gradients of the interests, add to the others. */
static void reconstruct_groups(const users *of, int64_t first, int num_pairs, const float *interests,
                               const linear_layer *to_hidden, const linear_layer *to_pieces,
                               const workspace *at, float *interest_gradients) {
    int64_t longest = 1;
    for (int64_t user = first / of->K; user <= (first + num_pairs - 1) / of->K; user++)
        if (of->lengths[user] > longest) longest = of->lengths[user];
    const linear_output hidden = {at->hidden, PADDED(longest) * WIDTH},
                        pieces = {at->pieces, PADDED(longest) * DIM};
    const size_t num_bytes = num_pairs * sizeof *at->interests->rows;
    memset(at->interests->rows, 0, sizeof at->interests->rows);
    memcpy(at->interests->rows, interests + first * DIM, num_bytes);
    prepare_input(at->interests);
    linear_forward(to_hidden, longest * WIDTH, at->interests, hidden);
    linear_forward(to_pieces, longest * DIM, at->interests, pieces);
    for (int g = 0; g < GROUPS; g++) {
        lanes *of_hidden = hidden.at + g * hidden.group_step, *of_pieces = pieces.at + g * pieces.group_step;
        reconstruct_group(of, longest, first + g * LANES, at_most(LANES, num_pairs - g * LANES),
                          (void *)of_hidden, (void *)of_pieces, at);
    }
    linear_backward(to_hidden, longest * WIDTH, at->interests, hidden);
    linear_backward(to_pieces, longest * DIM, at->interests, pieces);
    gradients_to_rows(at->interests);
    memcpy(interest_gradients + first * DIM, at->interests->rows, num_bytes);
}

/* Add to `total` the sum over the positives of B users, and to the gradients of the histories, which are 0
   before, and of the decoder; write the gradients of the interests. Lengths are 1 to L, the pieces of the
   decoder. Return 0, or 1 without memory. */
int fused_reconstruction(int64_t B, int64_t K, int64_t L, const float *interests, const float *history,
                         const float *positives, const int64_t *lengths, const float *to_hidden,
                         const float *hidden_bias, const float *to_pieces, const float *pieces_bias,
                         const float *queries, double *total, float *interest_gradients,
                         float *history_gradients, float *to_hidden_gradients, float *hidden_bias_gradients,
                         float *to_pieces_gradients, float *pieces_bias_gradients, float *query_gradients) {
    const users of = {K, L, history, positives, queries, lengths, history_gradients, total};
    linear_layer hidden = {.weights = to_hidden,
                           .bias = hidden_bias,
                           .weight_gradients = to_hidden_gradients},
                 pieces = {
                     .weights = to_pieces, .bias = pieces_bias, .weight_gradients = to_pieces_gradients};
    const int64_t n = PADDED(L), num_sums = n * (2 * WIDTH + DIM),
                  num_vectors = num_sums + n * (GROUPS * (WIDTH + DIM) + DIM + 2 * n) +
                                sizeof(linear_input) / sizeof(lanes);
    lanes *memory = aligned_alloc(sizeof(lanes), num_vectors * sizeof(lanes));
    if (!memory) return 1;
    memset(memory, 0, num_sums * sizeof(lanes));
    workspace at;
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
    TAKE(at.interests, sizeof(linear_input) / sizeof(lanes));
    linear_begin(L, WIDTH, &hidden);
    linear_begin(L, DIM, &pieces);
    for (int64_t first = 0; first < B * K; first += GROUPS * LANES) {
        const int num_pairs = at_most(GROUPS * LANES, B * K - first);
        reconstruct_groups(&of, first, num_pairs, interests, &hidden, &pieces, &at, interest_gradients);
    }
    linear_end(&hidden);
    linear_end(&pieces);
    add_horizontal_sums(L * WIDTH, *at.query_gradients, query_gradients);
    add_horizontal_sums(L * WIDTH, hidden.bias_gradients, hidden_bias_gradients);
    add_horizontal_sums(L * DIM, pieces.bias_gradients, pieces_bias_gradients);
    free(memory);
    return 0;
}
