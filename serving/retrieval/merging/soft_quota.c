/* The merge of a soft quota: the interests choose one candidate at a time. `soft_quota.py` defines it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t num_interests, depth; /* the lists are [num_interests, depth], best first; row -1 for none */
    const float *scores;
    const int64_t *rows;
    const int64_t *excluded; /* ascending */
    int64_t num_excluded;
    const uint8_t *is_present; /* of each interest */
} lists;

typedef struct {
    int64_t *rows;
    uint64_t mask;
} row_set;

static void clear(row_set *set) { memset(set->rows, 0xFF, (set->mask + 1) * sizeof *set->rows); }

/* Add a row; return whether it is new. */
static int add(row_set *set, int64_t row) {
    uint64_t at = ((uint64_t)row * 0x9E3779B97F4A7C15u >> 32) & set->mask;
    while (set->rows[at] >= 0 && set->rows[at] != row) at = (at + 1) & set->mask;
    if (set->rows[at] == row) return 0;
    set->rows[at] = row;
    return 1;
}

/* Return the first place of a list, from one on, with an item that is not excluded. */
static int64_t next_allowed(const lists *in, int64_t interest, int64_t place) {
    for (; place < in->depth; place++) {
        int64_t row = in->rows[interest * in->depth + place], low = 0, high = in->num_excluded;
        if (row < 0) continue;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (in->excluded[middle] < row)
                low = middle + 1;
            else
                high = middle;
        }
        if (low == in->num_excluded || in->excluded[low] != row) return place;
    }
    return in->depth;
}

/* Choose up to `wanted` items, each time the one with the largest score minus the cost of its interest's next
   candidate. `places` gets the positions in the lists. Return how many were chosen. */
static int64_t choose(
    const lists *in, const double *costs, int only_present, int64_t wanted, row_set *taken, int64_t *next,
    int64_t *num_of, int64_t *places) {
    int64_t number = 0;
    clear(taken);
    for (int64_t k = 0; k < in->num_interests; k++) {
        num_of[k] = 0;
        next[k] = only_present && !in->is_present[k] ? in->depth : next_allowed(in, k, 0);
    }
    while (number < wanted) {
        int64_t best = -1;
        double most = 0;
        for (int64_t k = 0; k < in->num_interests; k++) {
            if (next[k] == in->depth) continue;
            double worth = (double)in->scores[k * in->depth + next[k]] - (costs ? costs[num_of[k]] : 0);
            if (best < 0 || worth > most) most = worth, best = k;
        }
        if (best < 0) break;
        int64_t place = best * in->depth + next[best];
        if (add(taken, in->rows[place])) {
            places[number++] = place;
            num_of[best]++;
        }
        next[best] = next_allowed(in, best, next[best] + 1);
    }
    return number;
}

/* Return how many candidates were chosen; -1 without memory. The first, second, … candidate of an interest costs
   penalty x spread x growth[0], growth[1], …; `growth` and `places` have `wanted` elements. */
int64_t soft_quota(
    int64_t num_interests, int64_t depth, const float *scores, const int64_t *rows, int64_t num_excluded,
    const int64_t *excluded, const uint8_t *is_present, double penalty, const double *growth, int64_t wanted,
    int64_t *places) {
    lists in = {num_interests, depth, scores, rows, excluded, num_excluded, is_present};
    row_set taken = {.mask = 15};
    while ((int64_t)taken.mask < 2 * wanted) taken.mask = 2 * taken.mask + 1;
    taken.rows = malloc((taken.mask + 1) * sizeof *taken.rows);
    int64_t *next = malloc(2 * num_interests * sizeof *next);
    double *costs = malloc(wanted * sizeof *costs);
    int64_t number = -1;
    if (taken.rows && next && costs) {
        int64_t *num_of = next + num_interests;
        number = choose(&in, NULL, 0, wanted, &taken, next, num_of, places);
        float spread = number ? scores[places[0]] - scores[places[number - 1]] : 0;
        for (int64_t i = 0; i < wanted; i++) costs[i] = penalty * spread * growth[i];
        number = choose(&in, costs, 1, wanted, &taken, next, num_of, places);
    }
    free(taken.rows);
    free(next);
    free(costs);
    return number;
}
