/* A linear map of vectors of DIM numbers, forward and back, some groups of LANES vectors at a time: by matrix
   tiles, where a processor has them, else side by side. */

#include "side_by_side.h"

#include "tiles.h"

#if defined(HAS_TILES) && DIM % 32 == 0
#define MAPS_BY_TILES
#define GROUPS 4
#else
#define GROUPS 1
#endif

typedef struct {
    const float *weights, *bias;    /* [rows, DIM]; [rows], or NULL for none */
    float *weight_gradients;        /* [rows, DIM], added to */
    lanes *bias_gradients;          /* [rows], added to, each lane to its own; or NULL */
    struct parts_of_weights *parts; /* for tiles; NULL to go without */
} linear_map;

#ifdef MAPS_BY_TILES
/* A sum over d takes DEPTH tiles. */
#define DEPTH (DIM / 32)

/* Of 32 rows. */
struct parts_of_weights {
    tile rows[2][DEPTH][2];    /* numbers d and d + 16 of a row are in a word */
    tile columns[DIM / 16][2]; /* numbers of rows r and r + 16 are in a word */
    lanes bias[32];
};

typedef struct {
    tile vectors[GROUPS][DEPTH][2];     /* numbers d and d + 16 of a vector are in a word */
    tile rows[GROUPS / 2][DIM / 16][2]; /* numbers of vectors of two groups are in a word */
} parts_of_input;
#endif

/* What goes through maps, and the gradients that come back from all of them. */
typedef struct {
    float rows[GROUPS * LANES][DIM];
    lanes vectors[GROUPS][DIM], gradients[GROUPS][DIM]; /* side by side */
#ifdef MAPS_BY_TILES
    parts_of_input parts;
#endif
} map_input;

/* What comes out, or its gradients: for each group [rows], groups being so many lanes apart. */
typedef struct {
    lanes *at;
    int64_t group_step;
} map_output;

/* Make ready what the rows are to be multiplied with; they have no gradients yet. */
static void begin_input(map_input *input) {
    memset(input->gradients, 0, sizeof input->gradients);
    for (int g = 0; g < GROUPS; g++) put_side_by_side(input->rows + g * LANES, input->vectors[g]);
#ifdef MAPS_BY_TILES
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < DEPTH; k++) {
            const float *from = (const float *)(input->vectors[g] + 32 * k);
            part_words(from, from + 16 * LANES, LANES, input->parts.vectors[g][k]);
        }
    for (int g = 0; g < GROUPS; g += 2)
        for (int d = 0; d < DIM; d += 16) {
            const float *from = input->rows[g * LANES] + d;
            part_words(from, from + LANES * DIM, DIM, input->parts.rows[g / 2][d / 16]);
        }
#endif
}

/* Put the gradients in place of the rows. */
static void end_input(map_input *input) {
    for (int g = 0; g < GROUPS; g++) put_in_rows(input->gradients[g], input->rows + g * LANES);
}

static void add_bias_gradients(const linear_map *map, int64_t first, int64_t last, map_output gradients) {
    if (map->bias_gradients)
        for (int64_t r = first; r < last; r++)
            for (int g = 0; g < GROUPS; g++)
                map->bias_gradients[r] += gradients.at[g * gradients.group_step + r];
}

#ifdef MAPS_BY_TILES
/* Rows of a map whose gradients go back to the input at a time. */
#define SOME_ROWS 128

static void part_weights(int64_t num_rows, const linear_map *map) {
    for (int64_t r = 0; r < num_rows; r += 32) {
        const float *weights = map->weights + r * DIM;
        struct parts_of_weights *parts = map->parts + r / 32;
        for (int block = 0; block < 2; block++)
            for (int k = 0; k < DEPTH; k++) {
                const float *from = weights + 16 * block * DIM + 32 * k;
                part_words(from, from + 16, DIM, parts->rows[block][k]);
            }
        for (int d = 0; d < DIM; d += 16) {
            part_words(weights + d, weights + 16 * DIM + d, DIM, parts->columns[d / 16]);
            for (int i = 0; i < 2; i++) transpose((lanes *)parts->columns[d / 16][i]);
        }
        for (int i = 0; i < 32; i++) parts->bias[i] = all(map->bias ? map->bias[r + i] : 0);
    }
}

static void go_by_tiles(const linear_map *map, int64_t num_rows, const map_input *input, map_output out) {
    for (int64_t r = 0; r < num_rows; r += 32) {
        const struct parts_of_weights *weights = map->parts + r / 32;
        for (int g = 0; g < GROUPS; g += 2) {
            const place bias = {(float *)weights->bias, 16 * LANES, 0, LANES},
                        sums = {(float *)(out.at + g * out.group_step + r), 16 * LANES,
                                out.group_step * LANES, LANES};
            add_product(DEPTH, (factor){weights->rows[0][0], 2 * DEPTH, 2},
                        (factor){input->parts.vectors[g][0], 2 * DEPTH, 2}, bias, sums);
        }
    }
}

static void add_weight_gradients(const linear_map *map, int64_t num_rows, const map_input *input,
                                 map_output gradients) {
    for (int64_t r = 0; r < num_rows; r += 32) {
        tile parts[2][GROUPS / 2][2]; /* of two groups in a word */
        for (int block = 0; block < 2; block++)
            for (int g = 0; g < GROUPS; g += 2) {
                const lanes *from = gradients.at + g * gradients.group_step + r + 16 * block;
                part_words((const float *)from, (const float *)(from + gradients.group_step), LANES,
                           parts[block][g / 2]);
            }
        for (int d = 0; d < DIM; d += 32) {
            const place sums = {map->weight_gradients + r * DIM + d, 16 * DIM, 16, DIM};
            add_product(GROUPS / 2, (factor){parts[0][0], GROUPS, 2},
                        (factor){input->parts.rows[0][d / 16], 2, DIM / 8}, sums, sums);
        }
        add_bias_gradients(map, r, r + 32, gradients);
    }
}

static void add_input_gradients(const linear_map *map, int64_t num_rows, map_input *input,
                                map_output gradients) {
    for (int64_t start = 0; start < num_rows; start += SOME_ROWS) {
        const struct parts_of_weights *weights = map->parts + start / 32;
        const int64_t depth = (num_rows - start < SOME_ROWS ? num_rows - start : SOME_ROWS) / 32;
        for (int g = 0; g < GROUPS; g += 2) {
            tile parts[SOME_ROWS / 32][2][2]; /* of rows r and r + 16 in a word */
            for (int64_t k = 0; k < depth; k++)
                for (int i = 0; i < 2; i++) {
                    const lanes *from = gradients.at + (g + i) * gradients.group_step + start + 32 * k;
                    part_words((const float *)from, (const float *)(from + 16), LANES, parts[k][i]);
                }
            for (int d = 0; d < DIM; d += 32) {
                const place sums = {(float *)(input->gradients[g] + d), 16 * LANES, DIM * LANES, LANES};
                add_product(depth, (factor){weights->columns[d / 16], 2, sizeof *weights / sizeof(tile)},
                            (factor){parts[0][0], 2, 4}, sums, sums);
            }
        }
    }
}
#endif

/* Make the first pieces of a map, of so many rows each, ready for tiles, where there are some that take such
   pieces, and memory. */
static void begin_map(int64_t num_pieces, int64_t piece_rows, linear_map *map) {
    map->parts = NULL;
#ifdef MAPS_BY_TILES
    if (piece_rows % 32 || !may_use_tiles()) return;
    map->parts = aligned_alloc(64, num_pieces * piece_rows / 32 * sizeof *map->parts);
    if (map->parts) part_weights(num_pieces * piece_rows, map);
#endif
}

static void end_map(linear_map *map) {
    free(map->parts);
}

/* out[g, r] = bias[r] + sum over d of weights[r, d] vectors[g, d], for the rows of the first pieces. */
static void go_through(const linear_map *map, int64_t num_rows, const map_input *input, map_output out) {
#ifdef MAPS_BY_TILES
    if (map->parts) {
        const struct tile_config before = take_tiles();
        go_by_tiles(map, num_rows, input, out);
        give_back_tiles(before);
        return;
    }
#endif
    for (int g = 0; g < GROUPS; g++) {
        lanes *of_group = out.at + g * out.group_step;
        for (int64_t r = 0; r < num_rows; r++) of_group[r] = all(map->bias ? map->bias[r] : 0);
        weigh(num_rows, DIM, map->weights, DIM, 1, input->vectors[g], of_group);
    }
}

/* Add to the gradients of these rows, and to those of what went through them. */
static void go_back_through(const linear_map *map, int64_t num_rows, map_input *input, map_output gradients) {
#ifdef MAPS_BY_TILES
    if (map->parts) {
        const struct tile_config before = take_tiles();
        add_weight_gradients(map, num_rows, input, gradients);
        add_input_gradients(map, num_rows, input, gradients);
        give_back_tiles(before);
        return;
    }
#endif
    add_bias_gradients(map, 0, num_rows, gradients);
    for (int g = 0; g < GROUPS; g++) {
        const lanes *of_group = gradients.at + g * gradients.group_step;
        add_outer(num_rows, of_group, input->rows + g * LANES, map->weight_gradients);
        weigh(DIM, num_rows, map->weights, 1, DIM, of_group, input->gradients[g]);
    }
}
