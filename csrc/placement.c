/* placement.c: see placement.h. */
#include "placement.h"

bool placement_give(mera_context *ctx, placement *s, int64_t at, int64_t size)
{
    const placement_hole h = {at, placement_bytes(size)};
    if (size == 0) return true;
    size_t i = 0;
    while (i < s->holes.count && s->holes.at[i].at < h.at) i++;
    const bool joins_before = i > 0 && s->holes.at[i - 1].at + s->holes.at[i - 1].bytes == h.at;
    const bool joins_after = i < s->holes.count && h.at + h.bytes == s->holes.at[i].at;
    if (joins_before && joins_after) {
        s->holes.at[i - 1].bytes += h.bytes + s->holes.at[i].bytes;
        memmove(&s->holes.at[i], &s->holes.at[i + 1], (s->holes.count - i - 1) * sizeof h);
        s->holes.count--;
    } else if (joins_before) {
        s->holes.at[i - 1].bytes += h.bytes;
    } else if (joins_after) {
        s->holes.at[i].at = h.at;
        s->holes.at[i].bytes += h.bytes;
    } else {
        if (!vec_push(ctx, &s->holes, h)) return false;
        memmove(&s->holes.at[i + 1], &s->holes.at[i], (s->holes.count - i - 1) * sizeof h);
        s->holes.at[i] = h;
    }
    return true;
}

int64_t placement_take(placement *s, int64_t size)
{
    const int64_t bytes = placement_bytes(size);
    for (size_t i = 0; i < s->holes.count; i++) {
        placement_hole *h = &s->holes.at[i];
        if (h->bytes < bytes) continue;
        const int64_t at = h->at;
        h->at += bytes;
        h->bytes -= bytes;
        if (h->bytes == 0) {
            memmove(h, h + 1, (s->holes.count - i - 1) * sizeof *h);
            s->holes.count--;
        }
        return at;
    }
    const int64_t at = s->end;
    s->end += bytes;
    return at;
}
