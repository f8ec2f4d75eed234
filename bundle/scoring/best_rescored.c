/* From the search results of an index to the best items of each request by their exact scores.

   The same as `rescore` and `best_candidates` of rescoring.py, without an array for each step. */

#include "rescoring.h"

/* Write the results' rows with a vector, each once, as keys of their best approximate scores; return how many. */
static int64_t unite(
    const float *scores, const int64_t *rows, int64_t num_found, const items *parts, int64_t dim, int32_t *table,
    int64_t table_size, uint64_t *keys) {
    int64_t number = 0;
    memset(table, -1, (size_t)table_size * sizeof(int32_t));
    for (int64_t i = 0; i < num_found; i++) {
        if (rows[i] < 0 || vector_of(rows[i], parts, dim) == NULL) continue;
        const uint64_t key = key_of(scores[i], rows[i]);
        uint64_t slot = ((uint64_t)rows[i] * 0x9E3779B97F4A7C15u >> 32) & (uint64_t)(table_size - 1);
        while (table[slot] >= 0 && row_of(keys[table[slot]]) != rows[i]) slot = (slot + 1) & (uint64_t)(table_size - 1);
        if (table[slot] < 0) {
            table[slot] = (int32_t)number;
            keys[number++] = key;
        } else if (key > keys[table[slot]]) {
            keys[table[slot]] = key;
        }
    }
    return number;
}

/* scores and rows are [requests, num_found], interests [requests, num_interests, dim], and the three results
   [requests, num_wanted], with row -1 where there is no further item. Return 0, or 1 where there is no memory. */
int best_rescored(
    int64_t num_requests, int64_t num_found, int64_t num_interests, int64_t dim, int64_t pool_size, int64_t num_wanted,
    const float *scores, const int64_t *rows, const float *interests, const float *vectors, int64_t num_vectors,
    const float *more_vectors, int64_t more_first, int64_t num_more, int64_t *best_rows, float *best_scores,
    int64_t *best_numbers) {
    const items parts[2] = {{vectors, 0, num_vectors}, {more_vectors, more_first, num_more}};
    int64_t table_size = 16;
    while (table_size < 2 * num_found) table_size *= 2;
    uint64_t *keys = malloc((size_t)(num_found + 1) * sizeof(uint64_t));
    int32_t *table = malloc((size_t)table_size * sizeof(int32_t));
    rescoring own;
    const int has_memory =
        open_rescoring(&own, num_found < pool_size ? num_found : pool_size, parts, num_interests, dim) && keys && table;
    for (int64_t request = 0; has_memory && request < num_requests; request++) {
        const int64_t first = request * num_found, place = request * num_wanted;
        int64_t number = unite(scores + first, rows + first, num_found, parts, dim, table, table_size, keys);
        if (number > pool_size) {
            select_largest(keys, number, pool_size);
            number = pool_size;
        }
        write_best(
            &own, interests + request * num_interests * dim, keys, number, num_wanted, best_rows + place,
            best_scores + place, best_numbers + place);
    }
    close_rescoring(&own);
    free(keys);
    free(table);
    return !has_memory;
}
