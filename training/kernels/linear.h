/* A linear layer on vectors of DIM numbers, forward and backward, GROUPS groups of LANES vectors at a time:
   by AMX tiles where the CPU has them, else as structures of arrays. */

#pragma once

#include "amx.h"
#include "soa.h"

#if defined(HAS_AMX) && DIM % 32 == 0
#define LINEAR_BY_AMX
#define GROUPS 4
#else
#define GROUPS 1
#endif

typedef struct {
    const float *weights, *bias; /* [rows, DIM]; [rows], or NULL for none */
    float *weight_gradients;     /* [rows, DIM], added to */
    lanes *bias_gradients;       /* [rows], added to lane by lane; or NULL */
    struct split_weights *parts; /* for AMX; NULL where it is not used */
} linear_layer;

#ifdef LINEAR_BY_AMX
/* Tiles along a sum over DIM numbers. */
#define DEPTH (DIM / 32)

/* The weights of 32 rows. */
struct split_weights {
    tile rows[2][DEPTH][2];    /* a word holds numbers d and d + 16 of a row */
    tile columns[DIM / 16][2]; /* a word holds a number of row r and one of r + 16 */
    lanes bias[32];
};

typedef struct {
    tile vectors[GROUPS][DEPTH][2];     /* a word holds numbers d and d + 16 of a vector */
    tile rows[GROUPS / 2][DIM / 16][2]; /* a word holds numbers of vectors of two groups */
} split_input;
#endif

/* The input of one or more layers, and the sum of the gradients that they return. */
typedef struct {
    float rows[GROUPS * LANES][DIM];
    lanes vectors[GROUPS][DIM], gradients[GROUPS][DIM]; /* structures of arrays */
#ifdef LINEAR_BY_AMX
    split_input parts;
#endif
} linear_input;

/* The output, or its gradients: [rows] for each group; groups are `group_step` vectors apart. */
typedef struct {
    lanes *at;
    int64_t group_step;
} linear_output;

/* Derive the other forms from the rows, and set the gradients to 0. */
static void prepare_input(linear_input *input) {
    memset(input->gradients, 0, sizeof input->gradients);
    for (int g = 0; g < GROUPS; g++) to_soa(input->rows + g * LANES, input->vectors[g]);
#ifdef LINEAR_BY_AMX
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < DEPTH; k++) {
            const float *from = (const float *)(input->vectors[g] + 32 * k);
            split_words(from, from + 16 * LANES, LANES, input->parts.vectors[g][k]);
        }
    for (int g = 0; g < GROUPS; g += 2)
        for (int d = 0; d < DIM; d += 16) {
            const float *from = input->rows[g * LANES] + d;
            split_words(from, from + LANES * DIM, DIM, input->parts.rows[g / 2][d / 16]);
        }
#endif
}

/* Overwrite the rows by their gradients. */
static void gradients_to_rows(linear_input *input) {
    for (int g = 0; g < GROUPS; g++) to_rows(input->gradients[g], input->rows + g * LANES);
}

static void add_bias_gradients(const linear_layer *layer, int64_t first, int64_t last,
                               linear_output gradients) {
    if (layer->bias_gradients)
        for (int64_t r = first; r < last; r++)
            for (int g = 0; g < GROUPS; g++)
                layer->bias_gradients[r] += gradients.at[g * gradients.group_step + r];
}

#ifdef LINEAR_BY_AMX
/* Rows of a layer whose gradients are brought back to the input at a time. */
#define CHUNK_ROWS 128

static void fill_split_weights(int64_t num_rows, const linear_layer *layer) {
    for (int64_t r = 0; r < num_rows; r += 32) {
        const float *weights = layer->weights + r * DIM;
        struct split_weights *parts = layer->parts + r / 32;
        for (int block = 0; block < 2; block++)
            for (int k = 0; k < DEPTH; k++) {
                const float *from = weights + 16 * block * DIM + 32 * k;
                split_words(from, from + 16, DIM, parts->rows[block][k]);
            }
        for (int d = 0; d < DIM; d += 16) {
            split_words(weights + d, weights + 16 * DIM + d, DIM, parts->columns[d / 16]);
            for (int i = 0; i < 2; i++) transpose((lanes *)parts->columns[d / 16][i]);
        }
        for (int i = 0; i < 32; i++) parts->bias[i] = broadcast(layer->bias ? layer->bias[r + i] : 0);
    }
}

static void forward_by_amx(const linear_layer *layer, int64_t num_rows, const linear_input *input,
                           linear_output out) {
    for (int64_t r = 0; r < num_rows; r += 32) {
        const struct split_weights *weights = layer->parts + r / 32;
        for (int g = 0; g < GROUPS; g += 2) {
            const amx_sums bias = {(float *)weights->bias, 16 * LANES, 0, LANES},
                           sums = {(float *)(out.at + g * out.group_step + r), 16 * LANES,
                                   out.group_step * LANES, LANES};
            amx_multiply(DEPTH, (amx_factor){weights->rows[0][0], 2 * DEPTH, 2},
                         (amx_factor){input->parts.vectors[g][0], 2 * DEPTH, 2}, bias, sums);
        }
    }
}

static void add_weight_gradients(const linear_layer *layer, int64_t num_rows, const linear_input *input,
                                 linear_output gradients) {
    for (int64_t r = 0; r < num_rows; r += 32) {
        tile parts[2][GROUPS / 2][2]; /* a word holds numbers of two groups */
        for (int block = 0; block < 2; block++)
            for (int g = 0; g < GROUPS; g += 2) {
                const lanes *from = gradients.at + g * gradients.group_step + r + 16 * block;
                split_words((const float *)from, (const float *)(from + gradients.group_step), LANES,
                            parts[block][g / 2]);
            }
        for (int d = 0; d < DIM; d += 32) {
            const amx_sums sums = {layer->weight_gradients + r * DIM + d, 16 * DIM, 16, DIM};
            amx_multiply(GROUPS / 2, (amx_factor){parts[0][0], GROUPS, 2},
                         (amx_factor){input->parts.rows[0][d / 16], 2, DIM / 8}, sums, sums);
        }
        add_bias_gradients(layer, r, r + 32, gradients);
    }
}

static void add_input_gradients(const linear_layer *layer, int64_t num_rows, linear_input *input,
                                linear_output gradients) {
    for (int64_t start = 0; start < num_rows; start += CHUNK_ROWS) {
        const struct split_weights *weights = layer->parts + start / 32;
        const int64_t depth = (num_rows - start < CHUNK_ROWS ? num_rows - start : CHUNK_ROWS) / 32;
        for (int g = 0; g < GROUPS; g += 2) {
            tile parts[CHUNK_ROWS / 32][2][2]; /* a word holds numbers of rows r and r + 16 */
            for (int64_t k = 0; k < depth; k++)
                for (int i = 0; i < 2; i++) {
                    const lanes *from = gradients.at + (g + i) * gradients.group_step + start + 32 * k;
                    split_words((const float *)from, (const float *)(from + 16), LANES, parts[k][i]);
                }
            for (int d = 0; d < DIM; d += 32) {
                const amx_sums sums = {(float *)(input->gradients[g] + d), 16 * LANES, DIM * LANES, LANES};
                amx_multiply(depth, (amx_factor){weights->columns[d / 16], 2, sizeof *weights / sizeof(tile)},
                             (amx_factor){parts[0][0], 2, 4}, sums, sums);
            }
        }
    }
}
#endif

/* Prepare the rows of a layer for AMX, where the CPU has it and memory suffices. They are used in pieces of
   `piece_rows` rows, which must be a multiple of 32. */
static void linear_begin(int64_t num_pieces, int64_t piece_rows, linear_layer *layer) {
    layer->parts = NULL;
#ifdef LINEAR_BY_AMX
    if (piece_rows % 32 || !amx_available()) return;
    layer->parts = aligned_alloc(64, num_pieces * piece_rows / 32 * sizeof *layer->parts);
    if (layer->parts) fill_split_weights(num_pieces * piece_rows, layer);
#else
    (void)num_pieces, (void)piece_rows;
#endif
}

static void linear_end(linear_layer *layer) {
    free(layer->parts);
}

/* out[g, r] = bias[r] + sum over d of weights[r, d] vectors[g, d], for the first `num_rows` rows. */
static void linear_forward(const linear_layer *layer, int64_t num_rows, const linear_input *input,
                           linear_output out) {
#ifdef LINEAR_BY_AMX
    if (layer->parts) {
        const struct tile_config before = amx_begin();
        forward_by_amx(layer, num_rows, input, out);
        amx_end(before);
        return;
    }
#endif
    for (int g = 0; g < GROUPS; g++) {
        lanes *of_group = out.at + g * out.group_step;
        for (int64_t r = 0; r < num_rows; r++) of_group[r] = broadcast(layer->bias ? layer->bias[r] : 0);
        matvec(num_rows, DIM, layer->weights, DIM, 1, input->vectors[g], of_group);
    }
}

/* Add to the gradients of these rows, and to the gradients of the input. */
static void linear_backward(const linear_layer *layer, int64_t num_rows, linear_input *input,
                            linear_output gradients) {
#ifdef LINEAR_BY_AMX
    if (layer->parts) {
        const struct tile_config before = amx_begin();
        add_weight_gradients(layer, num_rows, input, gradients);
        add_input_gradients(layer, num_rows, input, gradients);
        amx_end(before);
        return;
    }
#endif
    add_bias_gradients(layer, 0, num_rows, gradients);
    for (int g = 0; g < GROUPS; g++) {
        const lanes *of_group = gradients.at + g * gradients.group_step;
        add_outer(num_rows, of_group, input->rows + g * LANES, layer->weight_gradients);
        matvec(DIM, num_rows, layer->weights, 1, DIM, of_group, input->gradients[g]);
    }
}
