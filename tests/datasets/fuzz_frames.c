/* Damaged frames for datasets/native/frames.c, compiled with it and the sanitisers of the compiler (test_native.py).
 *
 * Usage: fuzz_frames HEIGHT WIDTH PIXEL_BYTES ROUNDS PAYLOAD...   (payloads without checksum, blosc-lz4)
 * Each round damages a payload, puts the right checksum behind it and reads it from a block of exactly its size into one of
 * exactly a frame's: an access outside either ends the process. What is intact must decode; prints how many did not.
 */
#include KINEFLOW_FRAMES_C
#include <stdio.h>

static uint64_t state = 88172645463325252u;

static uint64_t number(uint64_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % below;
}

static void damage(uint8_t *data, size_t *size) {
    switch (number(4)) {
    case 0: /* a bit, more often near the start, where the lengths are */
        data[number(number(2) ? *size : *size < 64 ? *size : 64)] ^= 1 << number(8);
        break;
    case 1: /* a byte of meaning in LZ4 */
        data[number(*size)] = "\x00\xff\xf0\x0f\x10\x01"[number(6)];
        break;
    case 2: /* the end */
        *size = number(*size + 1);
        break;
    default: /* a run of something else */
        for (uint64_t i = number(*size), left = number(40); i < *size && left; i++, left--) data[i] = (uint8_t)number(256);
    }
}

static int64_t read_one(const uint8_t *payload, size_t size, int64_t height, int64_t width, int64_t pixel_bytes) {
    uint8_t *data = malloc(size + 4), *out = malloc((size_t)(height * width * pixel_bytes));
    memcpy(data, payload, size);
    uint32_t crc = kineflow_crc32c(data, size);
    for (int i = 0; i < 4; i++) data[size + i] = (uint8_t)(crc >> 8 * i);
    shard_t shard = {data, size + 4, LZ4};
    place_t place = {0, (int32_t)(size + 4), 0};
    turbojpeg_t none = {0};
    int64_t row = 0, failed, status;
    status = kineflow_read_frames(&shard, 1, &place, 1, &row, 1, out, height, width, pixel_bytes, &none, &failed);
    free(data), free(out);
    return status;
}

int main(int count, char **arguments) {
    if (count < 6) return 2;
    int64_t height = atoll(arguments[1]), width = atoll(arguments[2]), pixel_bytes = atoll(arguments[3]), refused = 0;
    kineflow_prepare(0);
    for (int which = 5; which < count; which++) {
        static uint8_t whole[1 << 20], copy[1 << 20];
        FILE *file = fopen(arguments[which], "rb");
        if (!file) return 2;
        size_t size = fread(whole, 1, sizeof whole, file);
        fclose(file);
        if (read_one(whole, size, height, width, pixel_bytes) != OK) return 3;
        for (int64_t round = 0; round < atoll(arguments[4]); round++) {
            size_t left = size;
            memcpy(copy, whole, size);
            for (uint64_t times = 1 + number(3); times && left; times--) damage(copy, &left);
            if (left > 15 && number(2)) copy[12] = (uint8_t)left, copy[13] = (uint8_t)(left >> 8), copy[14] = (uint8_t)(left >> 16);
            refused += read_one(copy, left, height, width, pixel_bytes) != OK;
        }
    }
    printf("%lld\n", (long long)refused);
    return 0;
}
