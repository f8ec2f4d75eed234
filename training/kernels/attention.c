/* The attention of `training/encoders/attention.py`: its logarithm, and its backward pass.

   The valid positions of all histories are the rows of one list. GROUPS groups of LANES rows go through W1 at
   a time. The compiler is given DIM, the width of an item vector, WIDTH, the width of the hidden layer, both
   multiples of 16, and HEADS, the number of interests. Sizes below: B users, L positions of a history.

   AMX computes gradients only. The forward pass stays in float32, so that the interests are those of serving
   to float32's rounding. */

#include "linear.h"

#define MOST_ROWS (GROUPS * LANES)

typedef struct {
    int64_t B, L, next_user, next_position;
    const int64_t *lengths;
} position_iterator;

typedef struct {
    int num;
    int64_t users[MOST_ROWS], positions[MOST_ROWS];
} some_rows;

/* Collect the next rows; return 0 at the end. */
static int next_rows(position_iterator *of, some_rows *rows) {
    rows->num = 0;
    for (; of->next_user < of->B; of->next_user++, of->next_position = 0)
        for (; of->next_position < of->lengths[of->next_user]; of->next_position++) {
            if (rows->num == MOST_ROWS) return 1;
            rows->users[rows->num] = of->next_user;
            rows->positions[rows->num++] = of->next_position;
        }
    return rows->num > 0;
}

/* Buffers for some rows. */
typedef struct {
    linear_input input;
    lanes hidden[GROUPS][WIDTH], hidden_gradients[GROUPS][WIDTH];
    lanes logit_gradients[GROUPS][HEADS], w_sums[HEADS][WIDTH];
} workspace;

/* Compute the hidden layer of these rows: of the item vectors plus, unless NULL, the position vectors. */
static void hidden_forward(const some_rows *rows, int64_t L, const float *history, const float *positions,
                           const linear_layer *layer, workspace *at) {
    linear_input *input = &at->input;
    for (int i = 0; i < rows->num; i++) {
        memcpy(input->rows[i], history + (rows->users[i] * L + rows->positions[i]) * DIM,
               sizeof *input->rows);
        if (positions)
            for (int d = 0; d < DIM; d += LANES)
                *(row *)(input->rows[i] + d) += *(const row *)(positions + rows->positions[i] * DIM + d);
    }
    memset(input->rows[rows->num], 0, (MOST_ROWS - rows->num) * sizeof *input->rows);
    prepare_input(input);
    linear_forward(layer, WIDTH, input, (linear_output){*at->hidden, WIDTH});
    for (int g = 0; g < GROUPS; g++)
        for (int h = 0; h < WIDTH; h++) at->hidden[g][h] = tanh_lanes(at->hidden[g][h]);
}

/* Load LANES numbers of a row; past its end, `otherwise`. */
static inline lanes load_some(const float *from, int64_t num, float otherwise) {
    float some[LANES];
    for (int i = 0; i < LANES; i++) some[i] = i < num ? from[i] : otherwise;
    return *(const row *)some;
}

static inline void store_some(lanes x, float *to, int64_t num) {
    const float *some = (const float *)&x;
    for (int i = 0; i < LANES; i++)
        if (i < num) to[i] = some[i];
}

/* Turn logits into the log of their softmax, in place. */
static void log_softmax(int64_t length, float *logits) {
    const float highest = max_of(logits, length);
    lanes sum = {};
    for (int64_t j = 0; j < length; j += LANES)
        sum += exp_nonpositive(load_some(logits + j, length - j, -INFINITY) - highest);
    const float taken = highest + logf(horizontal_sum(sum));
    for (int64_t j = 0; j < length; j++) logits[j] -= taken;
}

/* Turn gradients by log_softmax into gradients by the logits, in place. */
static void log_softmax_backward(int64_t length, const float *logarithms, float *gradients) {
    lanes total = {};
    for (int64_t j = 0; j < length; j += LANES) total += load_some(gradients + j, length - j, 0);
    const float sum = horizontal_sum(total);
    for (int64_t j = 0; j < length; j += LANES) {
        lanes shares = exp_nonpositive(load_some(logarithms + j, length - j, -INFINITY));
        store_some(load_some(gradients + j, length - j, 0) - shares * sum, gradients + j, length - j);
    }
}

/* Write log_attention [B, HEADS, L], minus infinity on padding. Return 0, or 1 without memory. */
int attention_forward(int64_t B, int64_t L, const float *history, const int64_t *lengths,
                      const float *positions, const float *W1, const float *w, float *log_attention) {
    workspace *at = aligned_alloc(sizeof(lanes), sizeof *at);
    if (!at) return 1;
    const linear_layer layer = {.weights = W1}; /* no linear_begin: without AMX */
    position_iterator of = {.B = B, .L = L, .lengths = lengths};
    for (some_rows rows; next_rows(&of, &rows);) {
        hidden_forward(&rows, L, history, positions, &layer, at);
        lanes logits[GROUPS][HEADS] = {};
        for (int g = 0; g < GROUPS; g++) matvec(HEADS, WIDTH, w, WIDTH, 1, at->hidden[g], logits[g]);
        for (int i = 0; i < rows.num; i++)
            for (int k = 0; k < HEADS; k++)
                log_attention[(rows.users[i] * HEADS + k) * L + rows.positions[i]] =
                    logits[i / LANES][k][i % LANES];
    }
    for (int64_t pair = 0; pair < B * HEADS; pair++) {
        const int64_t length = lengths[pair / HEADS];
        log_softmax(length, log_attention + pair * L);
        for (int64_t j = length; j < L; j++) log_attention[pair * L + j] = -INFINITY;
    }
    free(at);
    return 0;
}

/* Bring the gradients of the logits back to the hidden layer; add those of w to w_sums, lane by lane. */
static void hidden_backward(const float *w, workspace *at) {
    for (int h = 0; h < WIDTH; h++) {
        lanes sums[GROUPS] = {};
        for (int k = 0; k < HEADS; k++)
            for (int g = 0; g < GROUPS; g++) {
                sums[g] += w[k * WIDTH + h] * at->logit_gradients[g][k];
                at->w_sums[k][h] += at->hidden[g][h] * at->logit_gradients[g][k];
            }
        for (int g = 0; g < GROUPS; g++)
            at->hidden_gradients[g][h] = sums[g] * (1 - at->hidden[g][h] * at->hidden[g][h]);
    }
}

/* Bring `gradients`, those by log_attention, which are overwritten, back: add to the other gradients, which
   are 0 before. `position_gradients` may be NULL. Return 0, or 1 without memory. */
int attention_backward(int64_t B, int64_t L, const float *history, const int64_t *lengths,
                       const float *positions, const float *W1, const float *w, const float *log_attention,
                       float *gradients, float *history_gradients, float *position_gradients,
                       float *W1_gradients, float *w_gradients) {
    workspace *at = aligned_alloc(sizeof(lanes), sizeof *at);
    if (!at) return 1;
    memset(at, 0, sizeof *at);
    linear_layer layer = {.weights = W1, .weight_gradients = W1_gradients};
    linear_begin(1, WIDTH, &layer);
    for (int64_t pair = 0; pair < B * HEADS; pair++)
        log_softmax_backward(lengths[pair / HEADS], log_attention + pair * L, gradients + pair * L);
    position_iterator of = {.B = B, .L = L, .lengths = lengths};
    for (some_rows rows; next_rows(&of, &rows);) {
        hidden_forward(&rows, L, history, positions, &layer, at);
        memset(at->logit_gradients, 0, sizeof at->logit_gradients);
        for (int i = 0; i < rows.num; i++)
            for (int k = 0; k < HEADS; k++)
                at->logit_gradients[i / LANES][k][i % LANES] =
                    gradients[(rows.users[i] * HEADS + k) * L + rows.positions[i]];
        hidden_backward(w, at);
        linear_backward(&layer, WIDTH, &at->input, (linear_output){*at->hidden_gradients, WIDTH});
        gradients_to_rows(&at->input);
        for (int i = 0; i < rows.num; i++) {
            const float *gradient = at->input.rows[i];
            memcpy(history_gradients + (rows.users[i] * L + rows.positions[i]) * DIM, gradient,
                   sizeof *at->input.rows);
            if (position_gradients)
                for (int d = 0; d < DIM; d += LANES)
                    *(row *)(position_gradients + rows.positions[i] * DIM + d) +=
                        *(const row *)(gradient + d);
        }
    }
    add_horizontal_sums(HEADS * WIDTH, *at->w_sums, w_gradients);
    linear_end(&layer);
    free(at);
    return 0;
}
