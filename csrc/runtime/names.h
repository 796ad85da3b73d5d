/* names.h: what each name of a deployment's steps stands for. */
#ifndef MERA_RUNTIME_NAMES_H
#define MERA_RUNTIME_NAMES_H

#include "../core.h"

typedef enum meaning {
    MEANS_TENSOR,   /* value number first */
    MEANS_MANY,     /* a list: values first to first + count - 1 */
    MEANS_CONSTANT, /* flat input number first, which is no tensor */
    MEANS_UNKNOWN   /* a tensor that only PyTorch knows: behind a step that needs it */
} meaning;

typedef struct named {
    const char *name;
    meaning meaning;
    int32_t first, count;
} named;

typedef struct names {
    VEC(named) rows;
    int32_t *table; /* index + 1 of a row, 0 if free; a power of two */
    size_t table_size;
} names;

/* NULL if there is no such name. */
const named *names_find(const names *n, const char *name);
/* MERA_CORRUPT if the name stands for something already. The name must outlive n. */
mera_status names_add(mera_context *ctx, names *n, named row);
void names_free(mera_context *ctx, names *n);

#endif
