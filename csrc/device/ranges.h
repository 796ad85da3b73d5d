/* ranges.h: which parts of a memory are taken: of device memory, and of host memory for DMA. First fit. */
#ifndef MERA_DEVICE_RANGES_H
#define MERA_DEVICE_RANGES_H

#include "../core.h"

typedef struct range {
    int64_t at, bytes;
} range;

typedef struct ranges {
    VEC(range) taken; /* in order of address; none is empty */
    int64_t total;
} ranges;

enum { RANGES_FULL = -1, RANGES_NO_HOST_MEMORY = -2 };

/* Takes `bytes` bytes, at least one, aligned to a power of two: where they are, or one of the above. */
static inline int64_t ranges_take(mera_context *ctx, ranges *r, int64_t bytes, int64_t align)
{
    bytes = bytes < 1 ? 1 : bytes;
    int64_t at = 0;
    size_t place = 0;
    for (; place < r->taken.count; place++) {
        const range *next = &r->taken.at[place];
        if (at <= next->at && bytes <= next->at - at) break;
        at = (next->at + next->bytes + align - 1) & -align;
    }
    if (place == r->taken.count && (at > r->total || bytes > r->total - at)) return RANGES_FULL;
    if (!vec_push(ctx, &r->taken, ((range){0, 0}))) return RANGES_NO_HOST_MEMORY;
    memmove(r->taken.at + place + 1, r->taken.at + place, (r->taken.count - 1 - place) * sizeof *r->taken.at);
    r->taken.at[place] = (range){at, bytes};
    return at;
}

/* Gives back what ranges_take gave; anything else is left alone. */
static inline void ranges_give(ranges *r, int64_t at)
{
    for (size_t k = 0; k < r->taken.count; k++) {
        if (r->taken.at[k].at != at) continue;
        r->taken.count--;
        memmove(r->taken.at + k, r->taken.at + k + 1, (r->taken.count - k) * sizeof *r->taken.at);
        return;
    }
}

static inline int64_t ranges_free_bytes(const ranges *r)
{
    int64_t left = r->total;
    for (size_t k = 0; k < r->taken.count; k++) left -= r->taken.at[k].bytes;
    return left;
}

#endif
