/* core.h: what every file of the C core stands on: the context, its memory, its errors. */
#ifndef MERA_CORE_H
#define MERA_CORE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mera.h"

#if defined(__GNUC__)
#define MERA_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define MERA_PRINTF(fmt, args)
#endif

enum {
#define MERA_ARCH(name, value, doc) DNA_##name = (value),
#include "dna_arch.def"
    DNA_ARCH_END
};

enum {
#define MERA_CYCLE(name, text, doc) CYCLE_##name,
#include "dna_arch.def"
    CYCLE_KINDS
};

/* An arena hands out zeroed memory and frees it all at once. */
typedef struct arena_block arena_block;
typedef struct arena {
    mera_context *ctx;
    arena_block *blocks;
} arena;

/* Returns from the calling function if expr is not MERA_OK. */
#define TRY(expr)                                                                                                           \
    do {                                                                                                                    \
        mera_status try_status_ = (expr);                                                                                   \
        if (try_status_ != MERA_OK) return try_status_;                                                                     \
    } while (0)

/* Sets the context's error message and returns status, so that one can write: return fail(ctx, MERA_CORRUPT, "..."). */
mera_status fail(mera_context *ctx, mera_status status, const char *format, ...) MERA_PRINTF(3, 4);

/* Raw memory, counted against the context's fail_after. NULL when out of memory: report with out_of_memory(). */
void *ctx_alloc(mera_context *ctx, size_t bytes);        /* not zeroed */
void *ctx_alloc_zeroed(mera_context *ctx, size_t bytes); /* pages cost nothing until they are touched */
void *ctx_realloc(mera_context *ctx, void *old, size_t bytes);
void ctx_free(mera_context *ctx, void *memory);
mera_status out_of_memory(mera_context *ctx);

void arena_init(arena *a, mera_context *ctx);
void arena_free(arena *a);
/* Zeroed and 64-byte aligned; NULL when out of memory. count * size is checked for overflow. */
void *arena_array(arena *a, size_t count, size_t size);
char *arena_string(arena *a, const char *text); /* NULL text gives "" */
#define ARENA_NEW(a, type) ((type *)arena_array((a), 1, sizeof(type)))

/* Objects hang off the context, so that destroying it destroys them. */
typedef struct mera_object {
    mera_context *ctx;
    struct mera_object *prev, *next;
    void (*destroy)(struct mera_object *self);
} mera_object;
void object_attach(mera_context *ctx, mera_object *object, void (*destroy)(mera_object *self));
void object_detach(mera_object *object);

/* A growing array: VEC(type) name; vec_push(ctx, &name, value) is false when out of memory. */
#define VEC(type)                                                                                                           \
    struct {                                                                                                                \
        type *at;                                                                                                           \
        size_t count;                                                                                                       \
        size_t space;                                                                                                       \
    }
bool vec_grow(mera_context *ctx, void **at, size_t *space, size_t count, size_t size);
#define vec_push(ctx, v, value)                                                                                             \
    (((v)->count < (v)->space || vec_grow((ctx), (void **)&(v)->at, &(v)->space, (v)->count + 1, sizeof *(v)->at))          \
         ? ((v)->at[(v)->count++] = (value), true)                                                                          \
         : false)
#define vec_free(ctx, v) (ctx_free((ctx), (v)->at), (v)->at = NULL, (v)->count = (v)->space = 0)

/* Text under construction; an allocation failure is remembered and reported by text_finish. */
typedef struct text {
    mera_context *ctx;
    char *at;
    size_t count, space;
    bool failed;
} text;
void text_init(text *t, mera_context *ctx);
void text_add(text *t, const char *format, ...) MERA_PRINTF(2, 3);
void text_bytes(text *t, const void *data, size_t bytes);
mera_status text_finish(text *t, char **out); /* the caller owns *out (mera_free_text); frees it on failure */
void text_drop(text *t);

/* FNV-1a with 64 bits, the checksum of our files. */
uint64_t fnv1a(const void *data, size_t bytes);

/* The kernels chosen for this context (see kernels.h) and the number of threads. */
const struct mera_kernels *ctx_kernels(const mera_context *ctx);
int ctx_threads(const mera_context *ctx);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
