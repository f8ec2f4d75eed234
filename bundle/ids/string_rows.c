/* Rows of string ids: the key of each id, a search among the ascending keys, and a comparison of the text. */

#include <stdint.h>
#include <string.h>

enum { WORD = 8, BLOCK = 32 };

static uint64_t mix(uint64_t word)
{
    word ^= word >> 33;
    word *= 0xFF51AFD7ED558CCDull;
    word ^= word >> 33;
    word *= 0xC4CEB9FE1A85EC53ull;
    return word ^ word >> 33;
}

/* As key_of of string_keys.py. */
static uint64_t key_of(const uint8_t *text, int64_t length, const uint64_t *positions)
{
    uint64_t total = (uint64_t)length * 0x9E3779B97F4A7C15ull;
    int64_t start = 0;
    for (; start + WORD <= length; start += WORD) {
        uint64_t word;
        memcpy(&word, text + start, WORD);
        total += mix(word * positions[start / WORD]);
    }
    if (start < length) {
        uint64_t word = 0;
        memcpy(&word, text + start, (size_t)(length - start));
        total += mix(word * positions[start / WORD]);
    }
    return mix(total);
}

/* Keys are evenly spread, so that a key is near its share of the list. */
static int64_t near(uint64_t key, int64_t num_keys)
{
    return (int64_t)((unsigned __int128)key * (uint64_t)num_keys >> 64);
}

/* Return the first place whose key is not below `key`. */
static int64_t place_of(uint64_t key, const uint64_t *keys, int64_t num_keys)
{
    int64_t low = near(key, num_keys), high = low, step = 16;
    while (low > 0 && keys[low - 1] >= key) {
        low = low > step ? low - step : 0;
        step *= 2;
    }
    step = 16;
    while (high < num_keys && keys[high] < key) {
        high = num_keys - high > step ? high + step : num_keys;
        step *= 2;
    }
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (keys[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Write the row of each id, -1 where it is unknown. `ends` has where each id ends in `texts`. Ids longer than
   `max_bytes` are unknown. */
void rows_of_texts(const uint8_t *texts, const int64_t *ends, int64_t num_ids, const uint64_t *positions,
                   int64_t max_bytes, const uint64_t *keys, const int32_t *key_rows, int64_t num_keys,
                   const uint8_t *item_texts, const uint64_t *item_offsets, int64_t *rows)
{
    for (int64_t first = 0; first < num_ids; first += BLOCK) {
        int64_t stop = num_ids - first > BLOCK ? first + BLOCK : num_ids;
        uint64_t wanted[BLOCK];
        int64_t places[BLOCK];
        for (int64_t i = first; i < stop; i++) {
            int64_t start = i ? ends[i - 1] : 0, length = ends[i] - start;
            wanted[i - first] = length > max_bytes ? 0 : key_of(texts + start, length, positions);
            __builtin_prefetch(keys + near(wanted[i - first], num_keys));
        }
        for (int64_t i = first; i < stop; i++) {
            places[i - first] = place_of(wanted[i - first], keys, num_keys);
            if (places[i - first] < num_keys)
                __builtin_prefetch(item_offsets + key_rows[places[i - first]]);
        }
        for (int64_t i = first; i < stop; i++) {
            int64_t start = i ? ends[i - 1] : 0, length = ends[i] - start;
            rows[i] = -1;
            for (int64_t at = places[i - first]; at < num_keys && keys[at] == wanted[i - first]; at++) {
                int64_t row = key_rows[at];
                const uint64_t begin = item_offsets[row];
                if ((int64_t)(item_offsets[row + 1] - begin) == length && length > 0 && length <= max_bytes &&
                    !memcmp(item_texts + begin, texts + start, (size_t)length)) {
                    rows[i] = row;
                    break;
                }
            }
        }
    }
}
