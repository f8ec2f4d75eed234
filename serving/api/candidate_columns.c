/* Encode lists of candidates as the three columns of a reply: ids, scores, numbers of interests. */

#include <stdint.h>
#include <string.h>

enum { IDS = 1 << 3 | 2, SCORES = 2 << 3 | 2, NUMBERS = 3 << 3 | 2, ID = 1 << 3 | 2 };

static uint8_t *put_varint(uint8_t *out, uint64_t value)
{
    while (value > 127) {
        *out++ = (uint8_t)(value | 128);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

static int64_t varint_size(uint64_t value)
{
    int64_t size = 1;
    while (value > 127) {
        value >>= 7;
        size++;
    }
    return size;
}

/* Return the bytes of the ids of some rows, of which each begins at its row's offset in `texts`; -1 where a row is
   not below `num_ids`. The ids lie far apart: this reads of each, so that the CPU waits for many at once. */
int64_t size_of_ids(const uint8_t *texts, const uint64_t *offsets, const int64_t *rows, int64_t number,
                    int64_t num_ids, uint8_t *read)
{
    uint64_t size = 0;
    uint8_t all = 0;
    for (int64_t i = 0; i < number; i++) {
        if (rows[i] < 0 || rows[i] >= num_ids)
            return -1;
        const uint64_t begin = offsets[rows[i]];
        size += offsets[rows[i] + 1] - begin;
        all ^= texts[begin];
    }
    *read = all;
    return (int64_t)size;
}

/* Write the lists one after the other. The id of candidate i begins in `texts` at the offset of row rows[i]. `ends`
   has where each list ends among the candidates, and gets where it ends in `out`, which has room for the bytes of
   all ids, 32 more for each candidate, and 40 for each list. */
void encode_columns(const uint8_t *texts, const uint64_t *offsets, const int64_t *rows, const float *scores,
                    const int64_t *numbers, int64_t *ends, int64_t num_lists, uint8_t *out)
{
    uint8_t *next = out;
    int64_t begin = 0;
    for (int64_t list = 0; list < num_lists; list++) {
        const int64_t end = ends[list];
        if (end > begin) {
            int64_t num_id_bytes = 0, num_number_bytes = 0;
            for (int64_t i = begin; i < end; i++) {
                const int64_t length = (int64_t)(offsets[rows[i] + 1] - offsets[rows[i]]);
                num_id_bytes += 1 + varint_size((uint64_t)length) + length;
                num_number_bytes += varint_size((uint64_t)numbers[i]);
            }
            *next++ = IDS;
            next = put_varint(next, (uint64_t)num_id_bytes);
            for (int64_t i = begin; i < end; i++) {
                const size_t length = (size_t)(offsets[rows[i] + 1] - offsets[rows[i]]);
                *next++ = ID;
                next = put_varint(next, length);
                memcpy(next, texts + offsets[rows[i]], length);
                next += length;
            }
            const size_t num_score_bytes = sizeof(float) * (size_t)(end - begin);
            *next++ = SCORES;
            next = put_varint(next, num_score_bytes);
            memcpy(next, scores + begin, num_score_bytes);
            next += num_score_bytes;
            *next++ = NUMBERS;
            next = put_varint(next, (uint64_t)num_number_bytes);
            for (int64_t i = begin; i < end; i++)
                next = put_varint(next, (uint64_t)numbers[i]);
        }
        begin = end;
        ends[list] = next - out;
    }
}
