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

/* Write the lists one after the other. The id of candidate i begins in `texts` at the offset of row rows[i]. `ends`
   has where each list ends among the candidates, and gets where it ends in `out`. Returns 0; the bytes that `out`
   must have room for, where it has not `room` for them; -1 where a row is not below `num_ids`. */
int64_t encode_columns(const uint8_t *texts, const uint64_t *offsets, const int64_t *rows, int64_t num_ids,
                       const float *scores, const int64_t *numbers, int64_t *ends, int64_t num_lists, uint8_t *out,
                       int64_t room)
{
    const int64_t number = ends[num_lists - 1];
    int64_t most = 40 * num_lists + 32 * number;
    /* The ids lie far apart: they are fetched here, so that the CPU waits for many at once. */
    for (int64_t i = 0; i < number; i++) {
        if (rows[i] < 0 || rows[i] >= num_ids)
            return -1;
        most += (int64_t)(offsets[rows[i] + 1] - offsets[rows[i]]);
        __builtin_prefetch(texts + offsets[rows[i]]);
    }
    if (most > room)
        return most;
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
    return 0;
}
