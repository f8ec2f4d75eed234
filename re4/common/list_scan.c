/* The scan of inverted lists of four-bit codes for all interests of a request, with one pool of results.

   FAISS packs the codes of an IndexIVFPQFastScan in blocks of 32 vectors. For each pair of sub-quantizers a
   block has 32 bytes: 16 of the first, 16 of the second one. The low half of byte j belongs to vector
   j / 2 + 8 (j % 2), the high half to the vector 16 places later. */

#include <immintrin.h>

#include "rescoring.h"

#ifndef __AVX2__
#error "AVX2 is needed"
#endif

#define BLOCK 32
#define ANY_DROP 1e30f

typedef struct {
    int64_t num_lists, dim, num_subs, num_interests, pool_size, num_items;
    int64_t first_row;        /* is added to the rows */
    const uint8_t *is_hidden; /* of each row, without `first_row`; NULL where all may be found */
    const uint8_t *const *codes; /* of each list */
    const int64_t *const *rows;  /* of each list */
    const int64_t *sizes;        /* of each list */
    const float *centroids;      /* [num_lists, dim]; NULL where codes are of whole vectors */
    const float *codebook;       /* [num_subs, 16, dim / num_subs] */
} scan_index;

/* The table of an interest: a score is base + centroid's product + sum / scale. */
typedef struct {
    uint8_t *bytes; /* [num_subs, 16] */
    float base, scale;
    int is_ready;
} table;

/* One interest's part in a list: it scores the vectors whose sum is at least `least`. */
typedef struct {
    const table *table;
    float offset;
    int32_t least;
} reader;

static void fill_table(table *out, const scan_index *index, const float *interest) {
    int64_t sub_dim = index->dim / index->num_subs;
    float products[index->num_subs][16], widest = 0;
    out->base = 0;
    for (int64_t m = 0; m < index->num_subs; m++) {
        float least = INFINITY, most = -INFINITY;
        for (int code = 0; code < 16; code++) {
            const float *entry = index->codebook + (m * 16 + code) * sub_dim;
            float product = 0;
            for (int64_t d = 0; d < sub_dim; d++) product += interest[m * sub_dim + d] * entry[d];
            products[m][code] = product;
            least = product < least ? product : least;
            most = product > most ? product : most;
        }
        out->base += least;
        widest = most - least > widest ? most - least : widest;
        for (int code = 0; code < 16; code++) products[m][code] -= least;
    }
    out->scale = widest > 0 ? 255.0f / widest : 1.0f;
    for (int64_t m = 0; m < index->num_subs; m++)
        for (int code = 0; code < 16; code++)
            out->bytes[16 * m + code] = (uint8_t)(products[m][code] * out->scale + 0.5f);
    out->is_ready = 1;
}

/* Sum the table entries of 32 vectors; return which sums are at least `least`. */
static inline uint32_t scan_block(
    const uint8_t *codes, const uint8_t *bytes, int64_t num_subs, int32_t least, uint16_t *sums) {
#ifdef __AVX512BW__
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t byte = 0; byte < 16 * num_subs; byte += 64) {
        __m512i code = _mm512_loadu_si512(codes + byte), entries = _mm512_loadu_si512(bytes + byte);
        __m512i low = _mm512_shuffle_epi8(entries, _mm512_and_si512(code, low_half));
        __m512i high = _mm512_shuffle_epi8(entries, _mm512_and_si512(_mm512_srli_epi16(code, 4), low_half));
        a0 = _mm512_add_epi16(a0, low);
        a1 = _mm512_add_epi16(a1, _mm512_srli_epi16(low, 8));
        a2 = _mm512_add_epi16(a2, high);
        a3 = _mm512_add_epi16(a3, _mm512_srli_epi16(high, 8));
    }
    a0 = _mm512_sub_epi16(a0, _mm512_slli_epi16(a1, 8)); /* only the even bytes */
    a2 = _mm512_sub_epi16(a2, _mm512_slli_epi16(a3, 8));
    __m512i x = _mm512_add_epi16(_mm512_shuffle_i64x2(a0, a1, 0x44), _mm512_shuffle_i64x2(a0, a1, 0xEE));
    __m512i y = _mm512_add_epi16(_mm512_shuffle_i64x2(a2, a3, 0x44), _mm512_shuffle_i64x2(a2, a3, 0xEE));
    __m512i z = _mm512_add_epi16(_mm512_shuffle_i64x2(x, y, 0x88), _mm512_shuffle_i64x2(x, y, 0xDD));
    _mm512_storeu_si512(sums, z);
    return _mm512_cmpge_epu16_mask(z, _mm512_set1_epi16((short)least));
#else
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t byte = 0; byte < 16 * num_subs; byte += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(codes + byte));
        __m256i entries = _mm256_loadu_si256((const __m256i *)(bytes + byte));
        __m256i low = _mm256_shuffle_epi8(entries, _mm256_and_si256(code, low_half));
        __m256i high = _mm256_shuffle_epi8(entries, _mm256_and_si256(_mm256_srli_epi16(code, 4), low_half));
        a0 = _mm256_add_epi16(a0, low);
        a1 = _mm256_add_epi16(a1, _mm256_srli_epi16(low, 8));
        a2 = _mm256_add_epi16(a2, high);
        a3 = _mm256_add_epi16(a3, _mm256_srli_epi16(high, 8));
    }
    a0 = _mm256_sub_epi16(a0, _mm256_slli_epi16(a1, 8)); /* only the even bytes */
    a2 = _mm256_sub_epi16(a2, _mm256_slli_epi16(a3, 8));
    __m256i low = _mm256_add_epi16(
        _mm256_permute2x128_si256(a0, a1, 0x20), _mm256_permute2x128_si256(a0, a1, 0x31));
    __m256i high = _mm256_add_epi16(
        _mm256_permute2x128_si256(a2, a3, 0x20), _mm256_permute2x128_si256(a2, a3, 0x31));
    __m256i bound = _mm256_set1_epi16((short)least);
    _mm256_storeu_si256((__m256i *)sums, low);
    _mm256_storeu_si256((__m256i *)(sums + 16), high);
    __m256i first = _mm256_cmpeq_epi16(_mm256_max_epu16(low, bound), low);
    __m256i second = _mm256_cmpeq_epi16(_mm256_max_epu16(high, bound), high);
    /* Packing interleaves the 128-bit halves. */
    __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xD8);
    return (uint32_t)_mm256_movemask_epi8(both);
#endif
}

/* Keep the best of the pool; return the score that a further vector must reach. */
static float shrink(uint64_t *keys, int64_t *number, int64_t pool_size) {
    if (*number > pool_size) {
        select_largest(keys, *number, pool_size);
        *number = pool_size;
    }
    if (*number < pool_size) return -INFINITY;
    uint64_t last = keys[0];
    for (int64_t i = 1; i < pool_size; i++) last = keys[i] < last ? keys[i] : last;
    return score_of(last);
}

static void set_least(reader *readers, int num_readers, float threshold) {
    for (int i = 0; i < num_readers; i++) {
        float least = ceilf((threshold - readers[i].offset) * readers[i].table->scale);
        readers[i].least = least > 0 ? (least < 65536.0f ? (int32_t)least : 65536) : 0;
    }
}

/* Scan one list for its readers; every vector enters the pool once, with its best score. */
static float scan_list(
    const scan_index *index, int64_t list, reader *readers, int num_readers, uint64_t *keys, int64_t *number,
    float threshold) {
    const uint8_t *codes = index->codes[list];
    const int64_t *rows = index->rows[list];
    int64_t size = index->sizes[list];
    uint16_t sums[num_readers][BLOCK];
    set_least(readers, num_readers, threshold);
    for (int64_t first = 0; first < size; first += BLOCK, codes += 16 * index->num_subs) {
        uint32_t passing = 0, own[num_readers];
        for (int i = 0; i < num_readers; i++) {
            own[i] = readers[i].least > 65535 ? 0
                                              : scan_block(codes, readers[i].table->bytes, index->num_subs,
                                                           readers[i].least, sums[i]);
            passing |= own[i];
        }
        for (int place = 0; place < BLOCK; place += 8) __builtin_prefetch(rows + first + place);
        if (size - first < BLOCK) passing &= (1u << (size - first)) - 1;
        for (; passing; passing &= passing - 1) {
            int place = __builtin_ctz(passing);
            int64_t row = rows[first + place];
            if (row < 0 || row >= index->num_items || (index->is_hidden && index->is_hidden[row])) continue;
            float best = -INFINITY;
            for (int i = 0; i < num_readers; i++)
                if (own[i] >> place & 1) {
                    float score = readers[i].offset + sums[i][place] / readers[i].table->scale;
                    best = score > best ? score : best;
                }
            keys[(*number)++] = key_of(best, index->first_row + row);
        }
        if (*number >= 2 * index->pool_size) {
            threshold = shrink(keys, number, index->pool_size);
            set_least(readers, num_readers, threshold);
        }
    }
    return threshold;
}

/* Sort a few keys by insertion, in runs that are merged where there are many; `spare` has as many places. */
static void sort_keys(uint64_t *keys, uint64_t *spare, int64_t number) {
    const int64_t run = 16;
    for (int64_t first = 0; first < number; first += run) {
        const int64_t end = first + run < number ? first + run : number;
        for (int64_t i = first + 1; i < end; i++) {
            const uint64_t moved = keys[i];
            int64_t to = i;
            for (; to > first && keys[to - 1] < moved; to--) keys[to] = keys[to - 1];
            keys[to] = moved;
        }
    }
    for (int64_t width = run; width < number; width *= 2) {
        for (int64_t first = 0; first < number; first += 2 * width) {
            const int64_t middle = first + width < number ? first + width : number;
            const int64_t end = middle + width < number ? middle + width : number;
            int64_t left = first, right = middle;
            for (int64_t i = first; i < end; i++)
                spare[i] =
                    left < middle && (right == end || keys[left] > keys[right]) ? keys[left++] : keys[right++];
        }
        memcpy(keys, spare, (size_t)number * sizeof *keys);
    }
}

/* Find the pairs to read: at most `most`, of a reach at most `drop` below the best; the best pair comes
   first. Return their number; `keys` and `spare` have a place for every pair. */
static int64_t promising(
    const float *reaches, int64_t num_pairs, int64_t most, float drop, uint64_t *keys, uint64_t *spare) {
    float lanes[16], best;
    int64_t pair = 0, number = 0;
    for (int lane = 0; lane < 16; lane++) lanes[lane] = -INFINITY;
    for (; pair + 16 <= num_pairs; pair += 16)
        for (int lane = 0; lane < 16; lane++)
            lanes[lane] = reaches[pair + lane] > lanes[lane] ? reaches[pair + lane] : lanes[lane];
    best = lanes[0];
    for (int lane = 1; lane < 16; lane++) best = lanes[lane] > best ? lanes[lane] : best;
    for (; pair < num_pairs; pair++) best = reaches[pair] > best ? reaches[pair] : best;
    float least = best - drop * fabsf(best);
    for (pair = 0; pair < num_pairs; pair++)
        if (reaches[pair] >= least) keys[number++] = key_of(reaches[pair], pair);
    if (number > most) {
        select_largest(keys, number, most);
        number = most;
    }
    sort_keys(keys, spare, number);
    return number;
}

/* What the pools of some requests share. */
typedef struct {
    const scan_index *index, *more; /* `more` may be NULL */
    int64_t most_pairs;
    float reach_drop;
    uint8_t *bytes;
    uint64_t *keys; /* the pool */
    uint64_t *pairs, *spare;
    table *tables;
    reader *readers;
    int32_t *last; /* of the pairs of each list; -1 for none */
    int32_t *next; /* of the same list, for each pair; the pair itself where it is the last */
    uint8_t *is_first;
} scanning;

/* Prepare to fill pools; return whether there is memory. */
static int open_scanning(
    scanning *own, const scan_index *index, const scan_index *more, int64_t most_pairs, float reach_drop) {
    const int64_t all_pairs = index->num_interests * index->num_lists;
    *own = (scanning){.index = index, .more = more, .most_pairs = most_pairs, .reach_drop = reach_drop};
    own->bytes = malloc(16 * index->num_subs * index->num_interests);
    own->keys = malloc((2 * index->pool_size + BLOCK) * sizeof *own->keys);
    own->pairs = malloc(all_pairs * sizeof *own->pairs);
    own->spare = malloc(all_pairs * sizeof *own->spare);
    own->tables = malloc(index->num_interests * sizeof *own->tables);
    own->readers = malloc(index->num_interests * sizeof *own->readers);
    own->last = malloc(index->num_lists * sizeof *own->last);
    own->next = malloc(all_pairs * sizeof *own->next);
    own->is_first = malloc(all_pairs);
    if (own->last) memset(own->last, -1, index->num_lists * sizeof *own->last);
    return own->bytes && own->keys && own->pairs && own->spare && own->tables && own->readers && own->last &&
           own->next && own->is_first;
}

static void close_scanning(scanning *own) {
    free(own->bytes);
    free(own->keys);
    free(own->pairs);
    free(own->spare);
    free(own->tables);
    free(own->readers);
    free(own->last);
    free(own->next);
    free(own->is_first);
}

static void prefetch_codes(const scan_index *index, int64_t list) {
    const uint8_t *codes = index->codes[list];
    for (int line = 0; line < 2048; line += 64) __builtin_prefetch(codes + line);
}

/* Fill `own->keys` with the best of a request's lists, in no order; return their number. */
static int64_t fill_pool(scanning *own, const float *interests, const float *reaches, const float *bonuses) {
    const scan_index *index = own->index, *more = own->more;
    const int64_t num_interests = index->num_interests, num_lists = index->num_lists, dim = index->dim;
    const int64_t num_pairs = promising(
        reaches, num_interests * num_lists, own->most_pairs, own->reach_drop, own->pairs, own->spare);
    int64_t number = 0;
    float threshold = -INFINITY;
    for (int64_t k = 0; k < num_interests; k++)
        own->tables[k] = (table){.bytes = own->bytes + 16 * index->num_subs * k};
    for (int64_t p = 0; p < num_pairs; p++) { /* a list is read once, for all interests that want it */
        int32_t *last = own->last + row_of(own->pairs[p]) % num_lists;
        own->is_first[p] = *last < 0;
        if (*last >= 0) own->next[*last] = p;
        own->next[p] = p;
        *last = p;
    }
    for (int64_t p = 0, following; p < num_pairs; p = following) {
        const int64_t list = row_of(own->pairs[p]) % num_lists;
        int num_readers = 0;
        own->last[list] = -1;
        for (int64_t own_pair = p, before = -1; own_pair != before;
             before = own_pair, own_pair = own->next[own_pair]) {
            const int64_t k = row_of(own->pairs[own_pair]) / num_lists;
            if (!own->tables[k].is_ready) fill_table(&own->tables[k], index, interests + k * dim);
            float product = index->centroids ? dot(interests + k * dim, index->centroids + list * dim, dim) : 0;
            float offset = product + own->tables[k].base + (bonuses ? bonuses[k] : 0);
            own->readers[num_readers++] = (reader){.table = &own->tables[k], .offset = offset};
        }
        for (following = p + 1; following < num_pairs && !own->is_first[following];) following++;
        if (following < num_pairs) { /* the next list's first codes are loaded meanwhile */
            const int64_t next_list = row_of(own->pairs[following]) % num_lists;
            prefetch_codes(index, next_list);
            if (more) prefetch_codes(more, next_list);
        }
        threshold = scan_list(index, list, own->readers, num_readers, own->keys, &number, threshold);
        if (more) threshold = scan_list(more, list, own->readers, num_readers, own->keys, &number, threshold);
    }
    shrink(own->keys, &number, index->pool_size);
    return number;
}

/* For each request, find the vectors with the best approximate scores in its lists.

   `interests` is [num_requests, num_interests, dim]. `reaches` is [num_requests, num_interests, num_lists],
   of which the pairs to read are chosen. `bonuses`, [num_requests, num_interests] or NULL, are added to
   the scores of each interest. `more`, which may be NULL, has further vectors in lists of the same
   centroids and codebook. `scores` and `rows` are [num_requests, pool_size], in no order; rows
   are -1 where no more was found. Returns 0, or 1 without memory. */
int scan_lists(
    const scan_index *index, const scan_index *more, int64_t num_requests, const float *interests,
    const float *reaches, const float *bonuses, int64_t most_pairs, float reach_drop, float *scores,
    int64_t *rows) {
    const int64_t num_interests = index->num_interests, pool_size = index->pool_size;
    scanning own;
    const int has_memory = open_scanning(&own, index, more, most_pairs, reach_drop);
    for (int64_t r = 0; has_memory && r < num_requests; r++) {
        const int64_t number = fill_pool(
            &own, interests + r * num_interests * index->dim, reaches + r * num_interests * index->num_lists,
            bonuses ? bonuses + r * num_interests : NULL);
        for (int64_t i = 0; i < pool_size; i++) {
            scores[r * pool_size + i] = i < number ? score_of(own.keys[i]) : -INFINITY;
            rows[r * pool_size + i] = i < number ? row_of(own.keys[i]) : -1;
        }
    }
    close_scanning(&own);
    return !has_memory;
}

/* Encoders repeat the first interest of a user who has fewer: it is searched once. */
static void drop_repeated(const scan_index *index, const float *interests, float *reaches) {
    const int64_t dim = index->dim;
    for (int64_t k = 1; k < index->num_interests; k++) {
        int64_t d = 0;
        while (d < dim && interests[k * dim + d] == interests[d]) d++;
        for (int64_t list = 0; d == dim && list < index->num_lists; list++)
            reaches[k * index->num_lists + list] = -INFINITY;
    }
}

/* For each request, find the best items by their exact scores among the pool that `scan_lists` returns. Where that
   pool has fewer than `num_wanted`, lists of any reach are read, still at most `most_pairs`.

   `reaches` is overwritten for interests that repeat the first one. `vectors` has those of the index, and `more_vectors` those of `more`. The three results are
   [num_requests, num_wanted], best first; rows are -1 where no more was found. Returns 0, or 1 without memory. */
int best_of_lists(
    const scan_index *index, const scan_index *more, int64_t num_requests, const float *interests,
    float *reaches, int64_t most_pairs, float reach_drop, const float *vectors, const float *more_vectors,
    int64_t num_wanted, int64_t *rows, float *scores, int64_t *numbers) {
    const int64_t num_interests = index->num_interests, dim = index->dim;
    const items parts[2] = {
        {vectors, 0, index->num_items}, {more_vectors, more ? more->first_row : 0, more ? more->num_items : 0}};
    scanning own;
    rescoring best;
    const int can_scan = open_scanning(&own, index, more, most_pairs, reach_drop);
    const int has_memory = open_rescoring(&best, index->pool_size, parts, num_interests, dim) && can_scan;
    for (int64_t r = 0; has_memory && r < num_requests; r++) {
        const float *request = interests + r * num_interests * dim;
        float *own_reaches = reaches + r * num_interests * index->num_lists;
        drop_repeated(index, request, own_reaches);
        int64_t number = fill_pool(&own, request, own_reaches, NULL);
        if (number < num_wanted) {
            own.reach_drop = ANY_DROP;
            number = fill_pool(&own, request, own_reaches, NULL);
            own.reach_drop = reach_drop;
        }
        const int64_t place = r * num_wanted;
        write_best(&best, request, own.keys, number, num_wanted, rows + place, scores + place, numbers + place);
    }
    close_rescoring(&best);
    close_scanning(&own);
    return !has_memory;
}
