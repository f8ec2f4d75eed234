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

/* Write the lists one after the other. texts is [candidates, width], with the bytes of each id first. `ends` has
   where each list ends among the candidates, and gets where it ends in `out`, which has room for
   candidates * (width + 32) + num_lists * 40 bytes. */
void encode_columns(const uint8_t *texts, int64_t width, const int64_t *lengths, const float *scores,
                    const int64_t *numbers, int64_t *ends, int64_t num_lists, uint8_t *out)
{
    uint8_t *next = out;
    int64_t begin = 0;
    for (int64_t list = 0; list < num_lists; list++) {
        const int64_t end = ends[list];
        if (end > begin) {
            int64_t num_id_bytes = 0, num_number_bytes = 0;
            for (int64_t i = begin; i < end; i++) {
                num_id_bytes += 1 + varint_size((uint64_t)lengths[i]) + lengths[i];
                num_number_bytes += varint_size((uint64_t)numbers[i]);
            }
            *next++ = IDS;
            next = put_varint(next, (uint64_t)num_id_bytes);
            for (int64_t i = begin; i < end; i++) {
                *next++ = ID;
                next = put_varint(next, (uint64_t)lengths[i]);
                memcpy(next, texts + i * width, (size_t)lengths[i]);
                next += lengths[i];
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
