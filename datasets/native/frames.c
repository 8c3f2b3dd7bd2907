/* One call reads a batch of frames: crc32c, then blosc-lz4 or JPEG, straight into the caller's buffer.
 *
 * Plain C11 without Python.h: kineflow/datasets/native/library.py calls it through ctypes, which lets go of the GIL. LZ4
 * blocks and the blosc 1 container are decoded here, so that nothing has to be installed; JPEG by the functions of a
 * libturbojpeg that the caller has found. Every length read from the data is checked before it is used: whatever the
 * bytes are, nothing outside the given buffers is read or written.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INTERFACE_VERSION 1 /* library.py refuses any other: the file was built from another source */

enum { OK = 0, OUT_OF_RANGE = 1, BAD_CHECKSUM = 2, BAD_FRAME = 3, NO_MEMORY = 4 };
enum { LZ4 = 0, JPEG = 1 };

typedef struct {
    int64_t offset;
    int32_t length; /* crc32c included */
    int32_t shard;
} place_t;

typedef struct {
    const uint8_t *data;
    uint64_t size;
    uint64_t codec;
} shard_t;

/* The functions of libturbojpeg 1.2 to 3 that are needed; all null where there is none. */
typedef struct {
    void *(*init)(void);
    int (*header)(void *, const uint8_t *, unsigned long, int *, int *, int *, int *);
    int (*decompress)(void *, const uint8_t *, unsigned long, uint8_t *, int, int, int, int, int);
    int (*destroy)(void *);
} turbojpeg_t;

int64_t kineflow_interface_version(void) { return INTERFACE_VERSION; }

/* ---- crc32c (Castagnoli, reflected polynomial 0x82f63b78) ---- */

static uint32_t table[8][256];

static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
        table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slice = 1; slice < 8; slice++) table[slice][byte] = (table[slice - 1][byte] >> 8) ^ table[0][table[slice - 1][byte] & 255];
}

static uint32_t crc32c_portable(const uint8_t *data, size_t size) {
    uint32_t crc = 0xffffffffu;
    for (; size >= 8; size -= 8, data += 8) {
        uint32_t low = crc ^ ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24);
        crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
              table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    }
    for (; size; size--, data++) crc = (crc >> 8) ^ table[0][(crc ^ *data) & 255];
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(const uint8_t *data, size_t size) {
    uint64_t crc = 0xffffffffu, word;
    for (; size >= 8; size -= 8, data += 8) {
        memcpy(&word, data, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    uint32_t rest = (uint32_t)crc;
    for (; size; size--, data++) rest = __builtin_ia32_crc32qi(rest, *data);
    return ~rest;
}
#endif

static uint32_t (*crc32c)(const uint8_t *, size_t) = crc32c_portable;

/* Once, before the first batch; `portable` leaves the processor's own instruction alone. Returns 1 when that is used. */
int64_t kineflow_prepare(int64_t portable) {
    fill_table();
    crc32c = crc32c_portable;
#if defined(__x86_64__) && defined(__GNUC__)
    if (!portable && __builtin_cpu_supports("sse4.2")) crc32c = crc32c_sse42;
#endif
    return crc32c != crc32c_portable;
}

uint32_t kineflow_crc32c(const uint8_t *data, uint64_t size) { return crc32c(data, size); }

/* ---- LZ4 block ---- */

enum { SLACK = 32 }; /* bytes behind a match that may be written, and are overwritten by what follows */

/* Read before written: the two may overlap. */
static inline void copy16(uint8_t *to, const uint8_t *from) {
    uint8_t held[16];
    memcpy(held, from, 16);
    memcpy(to, held, 16);
}

/* The rest of a length whose four bits are all set; -1 where the input ends first or the sum is beyond any frame. */
static inline int64_t longer(const uint8_t **in, const uint8_t *in_end, int64_t length) {
    uint8_t byte;
    do {
        if (*in >= in_end || length > INT32_MAX) return -1;
        byte = *(*in)++;
        length += byte;
    } while (byte == 255);
    return length;
}

/* `length` bytes from `distance` bytes before `out`, which may overlap with what is written; `SLACK` bytes behind are free. */
static inline void copy_match(uint8_t *out, int64_t distance, int64_t length) {
    uint8_t *end = out + length;
    if (distance >= 16) {
        const uint8_t *match = out - distance; /* two at a time: more read at once wait for what was just written */
        do {
            copy16(out, match), copy16(out + 16, match + 16);
            out += 32, match += 32;
        } while (out < end);
    } else if (distance == 1) {
        memset(out, out[-1], (size_t)length);
    } else {
        const uint8_t *match = out - distance;
        for (; out - match < 16 && out < end; out += out - match) copy16(out, match); /* the distance doubles each time */
        for (distance = out - match; out < end; out += 16) copy16(out, out - distance);
    }
}

/* 1 when `in` is a block that decodes to exactly `out_size` bytes. */
static int lz4_block(const uint8_t *in, int64_t in_size, uint8_t *out_start, int64_t out_size) {
    const uint8_t *in_end = in + in_size, *out_end = out_start + out_size;
    uint8_t *out = out_start;
    while (in < in_end) {
        int token = *in++;
        int64_t literals = token >> 4, match = (token & 15) + 4, distance;
        if (literals < 15 && in_end - in >= 18 && out_end - out >= 32 + 15) {
            copy16(out, in); /* most sequences go this way, with few branches that cannot be foreseen */
            in += literals, out += literals;
            distance = in[0] | in[1] << 8;
            in += 2;
            if (match < 19 && distance >= 16 && distance <= out - out_start) {
                copy16(out, out - distance), copy16(out + 16, out + 16 - distance);
                out += match;
                continue;
            }
        } else {
            if (literals == 15 && (literals = longer(&in, in_end, literals)) < 0) return 0;
            if (literals > in_end - in || literals > out_end - out) return 0;
            memcpy(out, in, (size_t)literals);
            in += literals, out += literals;
            if (in == in_end) return out == out_end; /* the last sequence has literals only */
            if (in_end - in < 2) return 0;
            distance = in[0] | in[1] << 8;
            in += 2;
        }
        if (match == 19 && (match = longer(&in, in_end, match)) < 0) return 0;
        if (distance == 0 || distance > out - out_start || match > out_end - out) return 0;
        if (out_end - out - match >= SLACK)
            copy_match(out, distance, match);
        else
            for (int64_t i = 0; i < match; i++) out[i] = out[i - distance];
        out += match;
    }
    return 0;
}

/* ---- blosc 1 container ---- */

static int64_t int32_at(const uint8_t *data) {
    return (int32_t)((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24);
}

/* One block at `in`: `splits` streams, each its size and then LZ4, or the bytes themselves where that was no longer. */
static int blosc_block(const uint8_t *in, int64_t in_size, uint8_t *out, int64_t size, int64_t splits) {
    int64_t part = size / splits;
    if (part * splits != size) return 0;
    for (int64_t split = 0; split < splits; split++, out += part) {
        if (in_size < 4) return 0;
        int64_t length = int32_at(in);
        in += 4, in_size -= 4;
        if (length < 0 || length > in_size) return 0;
        if (length == part)
            memcpy(out, in, (size_t)part);
        else if (!lz4_block(in, length, out, part))
            return 0;
        in += length, in_size -= length;
    }
    return 1;
}

static void unshuffle(const uint8_t *from, uint8_t *to, int64_t size, int64_t width) {
    int64_t count = size / width;
    if (width == 2) { /* uint16 depth: a loop that compilers make vectors of */
        for (int64_t i = 0; i < count; i++) to[2 * i] = from[i], to[2 * i + 1] = from[count + i];
    }
    for (int64_t byte = 0; width != 2 && byte < width; byte++)
        for (int64_t i = 0; i < count; i++) to[i * width + byte] = from[byte * count + i];
    memcpy(to + count * width, from + count * width, (size_t)(size - count * width));
}

/* 1 when `in` is a blosc buffer with LZ4 inside that decodes to exactly `size` bytes; `scratch` holds `size` bytes too. */
static int blosc_frame(const uint8_t *in, int64_t in_size, uint8_t *out, int64_t size, uint8_t *scratch) {
    if (in_size < 16 || int32_at(in + 4) != size || int32_at(in + 12) != in_size) return 0;
    int flags = in[2], width = in[3];
    int64_t block = int32_at(in + 8);
    if (flags & 2) { /* stored as it is */
        if (in_size - 16 != size) return 0;
        memcpy(out, in + 16, (size_t)size);
        return 1;
    }
    int shuffled = flags & 1 && width > 1;
    if (flags & 12 || flags >> 5 != 1 || block <= 0 || width == 0) return 0; /* bits shuffled, another codec */
    int64_t blocks = (size + block - 1) / block;
    if (blocks > (in_size - 16) / 4) return 0;
    for (int64_t number = 0; number < blocks; number++) {
        int64_t start = int32_at(in + 16 + 4 * number), first = number * block;
        int64_t length = size - first < block ? size - first : block;
        int split = !(flags & 16) && width <= 16 && block / width >= 128 && length == block;
        if (start < 16 || start > in_size) return 0;
        if (!blosc_block(in + start, in_size - start, (shuffled ? scratch : out) + first, length, split ? width : 1)) return 0;
        if (shuffled) unshuffle(scratch + first, out + first, length, width);
    }
    return 1;
}

/* ---- frames ---- */

static int jpeg_frame(const turbojpeg_t *jpeg, void *handle, const uint8_t *in, int64_t in_size, uint8_t *out, int height, int width) {
    int found_width, found_height, subsampling, colours;
    if (jpeg->header(handle, in, (unsigned long)in_size, &found_width, &found_height, &subsampling, &colours)) return 0;
    if (found_width != width || found_height != height) return 0;
    return jpeg->decompress(handle, in, (unsigned long)in_size, out, width, 3 * width, height, 0, 0) == 0; /* 0: RGB, exact */
}

static int read_frame(const shard_t *shard, const place_t *place, uint8_t *out, int64_t height, int64_t width, int64_t pixel_bytes,
                      uint8_t *scratch, const turbojpeg_t *jpeg, void *handle) {
    if (place->offset < 0 || place->length < 4 || (uint64_t)place->length > shard->size ||
        (uint64_t)place->offset > shard->size - (uint64_t)place->length)
        return OUT_OF_RANGE;
    const uint8_t *data = shard->data + place->offset;
    int64_t size = place->length - 4;
    if (crc32c(data, (size_t)size) != (uint32_t)int32_at(data + size)) return BAD_CHECKSUM;
    int good = shard->codec == LZ4 ? blosc_frame(data, size, out, height * width * pixel_bytes, scratch)
               : handle            ? jpeg_frame(jpeg, handle, data, size, out, (int)height, (int)width)
                                   : 0;
    return good ? OK : BAD_FRAME;
}

/* Ask for the first bytes of the next frame while this one is decoded: at random rows they are seldom in the cache. */
static void prefetch(const shard_t *shards, int64_t num_shards, const place_t *places, int64_t num_places, int64_t row) {
#if defined(__GNUC__)
    if (row < 0 || row >= num_places || places[row].shard < 0 || places[row].shard >= num_shards) return;
    const uint8_t *data = shards[places[row].shard].data + places[row].offset;
    for (int64_t i = 0; i < 1024 && i < places[row].length; i += 64) __builtin_prefetch(data + i); /* never faults */
#endif
}

/* Read frames `rows` [count] of `places` [num_places] into `out` [count, height, width, pixel_bytes]. Returns what is wrong
 * with the first frame that cannot be read, whose position in `rows` is then `*failed`; all before it are in `out`. */
int64_t kineflow_read_frames(const shard_t *shards, int64_t num_shards, const place_t *places, int64_t num_places,
                             const int64_t *rows, int64_t count, uint8_t *out, int64_t height, int64_t width,
                             int64_t pixel_bytes, const turbojpeg_t *jpeg, int64_t *failed) {
    int64_t frame = height * width * pixel_bytes, status = OK;
    uint8_t *scratch = malloc((size_t)frame);
    void *handle = jpeg->init ? jpeg->init() : NULL;
    if (!scratch) status = NO_MEMORY;
    for (*failed = 0; status == OK && *failed < count; ++*failed) {
        int64_t row = rows[*failed];
        if (row < 0 || row >= num_places || places[row].shard < 0 || places[row].shard >= num_shards) {
            status = OUT_OF_RANGE;
            break;
        }
        if (*failed + 1 < count) prefetch(shards, num_shards, places, num_places, rows[*failed + 1]);
        status = read_frame(&shards[places[row].shard], &places[row], out + *failed * frame, height, width, pixel_bytes, scratch,
                            jpeg, handle);
        if (status) break;
    }
    if (handle) jpeg->destroy(handle);
    free(scratch);
    return status;
}
