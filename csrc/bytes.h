/* bytes.h: reading files that may be anything. A reader never passes its end: it fails, and stays failed. */
#ifndef MERA_BYTES_H
#define MERA_BYTES_H

#include "core.h"

typedef struct reader {
    const uint8_t *at, *end;
    bool failed;
} reader;

static inline const uint8_t *read_bytes(reader *r, uint64_t bytes)
{
    if (r->failed || bytes > (uint64_t)(r->end - r->at)) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *at = r->at;
    r->at += bytes;
    return at;
}

static inline uint32_t read_u32(reader *r)
{
    const uint8_t *p = read_bytes(r, 4);
    return p ? (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24 : 0;
}

static inline uint64_t read_u64(reader *r)
{
    const uint64_t low = read_u32(r);
    return low | (uint64_t)read_u32(r) << 32;
}

static inline double read_f64(reader *r)
{
    const uint64_t bits = read_u64(r);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A string in the arena; NULL if the reader or the arena fails. */
static inline const char *read_text(reader *r, arena *a)
{
    const uint32_t bytes = read_u32(r);
    const uint8_t *from = read_bytes(r, bytes);
    char *to = from ? arena_array(a, (size_t)bytes + 1, 1) : NULL;
    if (to) memcpy(to, from, bytes);
    return to;
}

static inline void write_u32(text *t, uint32_t value)
{
    const uint8_t b[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24)};
    text_bytes(t, b, sizeof b);
}

static inline void write_u64(text *t, uint64_t value)
{
    write_u32(t, (uint32_t)value);
    write_u32(t, (uint32_t)(value >> 32));
}

static inline void write_f64(text *t, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    write_u64(t, bits);
}

static inline void write_text(text *t, const char *value)
{
    const size_t bytes = strlen(value);
    write_u32(t, (uint32_t)bytes);
    text_bytes(t, value, bytes);
}

#endif
