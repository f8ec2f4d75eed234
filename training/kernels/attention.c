/* The attention of `training/encoders/attention.py`: its logarithm, and back.

   The valid positions of all histories are rows of one list; GROUPS groups of them, each as many as a vector
   has lanes, go through W1 at a time. DIM, the numbers of an item's vector, WIDTH, of what is hidden, both
   multiples of 16, and HEADS, the interests, are given to the compiler. Sizes below: B users, L positions of
   a history.

   Only gradients go by matrix tiles. */

#include "linear_map.h"

#define MOST_ROWS (GROUPS * LANES)

typedef struct {
    int64_t B, L, next_user, next_position;
    const int64_t *lengths;
} valid_positions;

typedef struct {
    int num;
    int64_t users[MOST_ROWS], positions[MOST_ROWS];
} some_rows;

/* The next rows; there are none at the end. */
static int find_next(valid_positions *of, some_rows *rows) {
    rows->num = 0;
    for (; of->next_user < of->B; of->next_user++, of->next_position = 0)
        for (; of->next_position < of->lengths[of->next_user]; of->next_position++) {
            if (rows->num == MOST_ROWS) return 1;
            rows->users[rows->num] = of->next_user;
            rows->positions[rows->num++] = of->next_position;
        }
    return rows->num > 0;
}

/* Room for some rows. */
typedef struct {
    map_input input;
    lanes hidden[GROUPS][WIDTH], hidden_gradients[GROUPS][WIDTH];
    lanes logit_gradients[GROUPS][HEADS], w_sums[HEADS][WIDTH];
} room;

/* Work out what is hidden of these rows: of vectors of items, and of positions where those are not NULL. */
static void hide(const some_rows *rows, int64_t L, const float *history, const float *positions,
                 const linear_map *map, room *at) {
    map_input *input = &at->input;
    for (int i = 0; i < rows->num; i++) {
        memcpy(input->rows[i], history + (rows->users[i] * L + rows->positions[i]) * DIM,
               sizeof *input->rows);
        if (positions)
            for (int d = 0; d < DIM; d += LANES)
                *(row *)(input->rows[i] + d) += *(const row *)(positions + rows->positions[i] * DIM + d);
    }
    memset(input->rows[rows->num], 0, (MOST_ROWS - rows->num) * sizeof *input->rows);
    begin_input(input);
    go_through(map, WIDTH, input, (map_output){*at->hidden, WIDTH});
    for (int h = 0; h < GROUPS * WIDTH; h++) (*at->hidden)[h] = hyperbolic_tangent((*at->hidden)[h]);
}

/* LANES numbers of a row, or those that are left of it. */
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

/* Turn logits of a pair into the logarithms of shares. */
static void share_out(int64_t length, float *logits) {
    const float highest = highest_of(logits, length);
    lanes sum = {};
    for (int64_t j = 0; j < length; j += LANES)
        sum += exponential(load_some(logits + j, length - j, -INFINITY) - highest);
    const float taken = highest + logf(sum_across(sum));
    for (int64_t j = 0; j < length; j++) logits[j] -= taken;
}

/* Turn gradients of logarithms of shares into those of the logits. */
static void go_back_to_logits(int64_t length, const float *logarithms, float *gradients) {
    lanes total = {};
    for (int64_t j = 0; j < length; j += LANES) total += load_some(gradients + j, length - j, 0);
    const float sum = sum_across(total);
    for (int64_t j = 0; j < length; j += LANES) {
        lanes shares = exponential(load_some(logarithms + j, length - j, -INFINITY));
        store_some(load_some(gradients + j, length - j, 0) - shares * sum, gradients + j, length - j);
    }
}

/* Write log_attention [B, HEADS, L], minus infinity on padding. Says 0, or 1 where there is no memory. */
int attend(int64_t B, int64_t L, const float *history, const int64_t *lengths, const float *positions,
           const float *W1, const float *w, float *log_attention) {
    room *at = aligned_alloc(sizeof(lanes), sizeof *at);
    if (!at) return 1;
    const linear_map map = {W1}; /* not by tiles: interests are those of serving, to float32's rounding */
    valid_positions of = {.B = B, .L = L, .lengths = lengths};
    for (some_rows rows; find_next(&of, &rows);) {
        hide(&rows, L, history, positions, &map, at);
        lanes logits[GROUPS][HEADS] = {};
        for (int g = 0; g < GROUPS; g++) weigh(HEADS, WIDTH, w, WIDTH, 1, at->hidden[g], logits[g]);
        for (int i = 0; i < rows.num; i++)
            for (int k = 0; k < HEADS; k++)
                log_attention[(rows.users[i] * HEADS + k) * L + rows.positions[i]] =
                    logits[i / LANES][k][i % LANES];
    }
    for (int64_t pair = 0; pair < B * HEADS; pair++) {
        const int64_t length = lengths[pair / HEADS];
        share_out(length, log_attention + pair * L);
        for (int64_t j = length; j < L; j++) log_attention[pair * L + j] = -INFINITY;
    }
    free(at);
    return 0;
}

/* Go back from the logits to what is hidden; add what w has of it, of each lane, to w_sums. */
static void go_back_to_hidden(const float *w, room *at) {
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

/* Go back from `gradients` by log_attention, which are used up: add to the other gradients, which are 0
   before. Those of positions may be NULL. Says 0, or 1 where there is no memory. */
int go_back(int64_t B, int64_t L, const float *history, const int64_t *lengths, const float *positions,
            const float *W1, const float *w, const float *log_attention, float *gradients,
            float *history_gradients, float *position_gradients, float *W1_gradients, float *w_gradients) {
    room *at = aligned_alloc(sizeof(lanes), sizeof *at);
    if (!at) return 1;
    memset(at, 0, sizeof *at);
    linear_map map = {W1, NULL, W1_gradients};
    begin_map(1, WIDTH, &map);
    for (int64_t pair = 0; pair < B * HEADS; pair++)
        go_back_to_logits(lengths[pair / HEADS], log_attention + pair * L, gradients + pair * L);
    valid_positions of = {.B = B, .L = L, .lengths = lengths};
    for (some_rows rows; find_next(&of, &rows);) {
        hide(&rows, L, history, positions, &map, at);
        memset(at->logit_gradients, 0, sizeof at->logit_gradients);
        for (int i = 0; i < rows.num; i++)
            for (int k = 0; k < HEADS; k++)
                at->logit_gradients[i / LANES][k][i % LANES] =
                    gradients[(rows.users[i] * HEADS + k) * L + rows.positions[i]];
        go_back_to_hidden(w, at);
        go_back_through(&map, WIDTH, &at->input, (map_output){*at->hidden_gradients, WIDTH});
        end_input(&at->input);
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
    add_across(HEADS * WIDTH, *at->w_sums, w_gradients);
    end_map(&map);
    free(at);
    return 0;
}
