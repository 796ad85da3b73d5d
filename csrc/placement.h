/* placement.h: places in a block of memory for buffers that come and go: first fit, the block grows at its end. */
#ifndef MERA_PLACEMENT_H
#define MERA_PLACEMENT_H

#include "core.h"

enum { PLACEMENT_ALIGN = 64 };

typedef struct placement_hole {
    int64_t at, bytes;
} placement_hole;

typedef struct placement {
    VEC(placement_hole) holes; /* sorted, none adjacent; freed by the owner */
    int64_t end;               /* the block's size so far */
} placement;

/* Bytes that a buffer of that size takes in the block. */
static inline int64_t placement_bytes(int64_t bytes) { return ceil_div(bytes, PLACEMENT_ALIGN) * PLACEMENT_ALIGN; }

/* The offset of a new buffer. */
int64_t placement_take(placement *p, int64_t bytes);
/* Gives back what placement_take gave; false when out of memory. */
bool placement_give(mera_context *ctx, placement *p, int64_t at, int64_t bytes);

#endif
