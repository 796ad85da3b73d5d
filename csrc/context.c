/* context.c: the context: its errors, its memory, its objects; the containers that stand on them. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "parallel.h"

#ifndef MERA_VERSION
#define MERA_VERSION "unversioned"
#endif
#ifndef MERA_BUILD
#define MERA_BUILD "unknown"
#endif

struct mera_context {
    int64_t fail_after; /* < 0: never */
    int64_t allocations;
    mera_object *objects; /* newest first */
    const mera_kernels *kernels;
    int32_t threads; /* 0 = all */
    char error[1024];
};

static const mera_kernels *best_kernels(void)
{
    const mera_kernels *const *set = kernels_all();
    while (!kernels_supported(*set)) set++; /* the generic set is last and always supported */
    return *set;
}

mera_context *mera_context_create(int64_t fail_after)
{
    mera_context *ctx = fail_after == 0 ? NULL : calloc(1, sizeof *ctx);
    if (!ctx) return NULL;
    ctx->fail_after = fail_after;
    ctx->allocations = 1;
    ctx->kernels = best_kernels();
    return ctx;
}

void mera_context_destroy(mera_context *ctx)
{
    if (!ctx) return;
    while (ctx->objects) {
        mera_object *object = ctx->objects;
        object_detach(object);
        object->destroy(object);
    }
    free(ctx);
}

const char *mera_last_error(const mera_context *ctx) { return ctx ? ctx->error : "there is no context"; }
const char *mera_core_version(void) { return MERA_VERSION; }
const char *mera_core_build(void) { return MERA_BUILD; }
const char *mera_core_features(void) { return kernels_features(best_kernels()); }

mera_status mera_context_kernels(mera_context *ctx, const char *name)
{
    if (!name) return fail(ctx, MERA_INVALID_ARGUMENT, "the name of a kernel set is NULL");
    if (strcmp(name, "auto") == 0) {
        ctx->kernels = best_kernels();
        return MERA_OK;
    }
    char known[256] = "auto";
    for (const mera_kernels *const *set = kernels_all(); *set; set++) {
        if (strcmp((*set)->name, name) == 0) {
            if (!kernels_supported(*set))
                return fail(ctx, MERA_UNSUPPORTED, "kernel set '%s' needs instructions that this CPU does not have", name);
            ctx->kernels = *set;
            return MERA_OK;
        }
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, ", %s", (*set)->name);
    }
    return fail(ctx, MERA_INVALID_ARGUMENT, "there is no kernel set '%.64s'; this build has %s", name, known);
}

mera_status mera_context_threads(mera_context *ctx, int32_t threads)
{
    if (threads < 0 || threads > MAX_THREADS)
        return fail(ctx, MERA_INVALID_ARGUMENT, "threads must be 0 to %d, got %d", MAX_THREADS, threads);
    ctx->threads = threads;
    return MERA_OK;
}

void mera_free_text(mera_context *ctx, char *text) { ctx_free(ctx, text); }

const mera_kernels *ctx_kernels(const mera_context *ctx) { return ctx->kernels; }

int ctx_threads(const mera_context *ctx)
{
    const int all = parallel_threads();
    return ctx->threads > 0 && ctx->threads < all ? ctx->threads : all;
}

/* ---- errors ---- */

mera_status fail(mera_context *ctx, mera_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(ctx->error, sizeof ctx->error, format, args);
    va_end(args);
    return status;
}

mera_status out_of_memory(mera_context *ctx)
{
    return fail(ctx, MERA_OUT_OF_MEMORY, "out of memory at allocation %lld", (long long)ctx->allocations - 1);
}

/* ---- memory ---- */

static bool may_allocate(mera_context *ctx)
{
    const int64_t number = ctx->allocations++;
    return ctx->fail_after < 0 || number < ctx->fail_after;
}

void *ctx_alloc(mera_context *ctx, size_t bytes) { return may_allocate(ctx) ? malloc(bytes ? bytes : 1) : NULL; }

void *ctx_alloc_zeroed(mera_context *ctx, size_t bytes) { return may_allocate(ctx) ? calloc(1, bytes ? bytes : 1) : NULL; }

void *ctx_realloc(mera_context *ctx, void *old, size_t bytes)
{
    return may_allocate(ctx) ? realloc(old, bytes ? bytes : 1) : NULL;
}

void ctx_free(mera_context *ctx, void *memory)
{
    (void)ctx;
    free(memory);
}

enum { ARENA_ALIGN = 64, ARENA_BLOCK = 64 * 1024 };

struct arena_block {
    arena_block *next;
    uint8_t *free; /* 64-byte aligned */
    size_t left;
};

void arena_init(arena *a, mera_context *ctx)
{
    a->ctx = ctx;
    a->blocks = NULL;
}

void arena_free(arena *a)
{
    for (arena_block *block = a->blocks, *next; block; block = next) {
        next = block->next;
        ctx_free(a->ctx, block);
    }
    a->blocks = NULL;
}

static arena_block *arena_block_new(arena *a, size_t space)
{
    if (space > SIZE_MAX - sizeof(arena_block) - ARENA_ALIGN) return NULL;
    arena_block *block = ctx_alloc(a->ctx, sizeof *block + ARENA_ALIGN + space);
    if (!block) return NULL;
    const uintptr_t start = (uintptr_t)(block + 1);
    block->free = (uint8_t *)(block + 1) + (ARENA_ALIGN - start % ARENA_ALIGN) % ARENA_ALIGN;
    block->left = space;
    return block;
}

void *arena_array(arena *a, size_t count, size_t size)
{
    if (size && count > (SIZE_MAX - ARENA_ALIGN) / size) return NULL;
    const size_t bytes = (count * size + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (!a->blocks || a->blocks->left < bytes) {
        const bool big = bytes > ARENA_BLOCK / 4;
        arena_block *block = arena_block_new(a, big ? bytes : ARENA_BLOCK);
        if (!block) return NULL;
        if (big && a->blocks) { /* keep the current block open for small ones */
            block->next = a->blocks->next;
            a->blocks->next = block;
            block->left = 0;
            return memset(block->free, 0, bytes);
        }
        block->next = a->blocks;
        a->blocks = block;
    }
    void *memory = a->blocks->free;
    a->blocks->free += bytes;
    a->blocks->left -= bytes;
    return memset(memory, 0, bytes);
}

char *arena_string(arena *a, const char *text)
{
    const size_t length = text ? strlen(text) : 0;
    char *copy = arena_array(a, length + 1, 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

/* ---- objects ---- */

void object_attach(mera_context *ctx, mera_object *object, void (*destroy)(mera_object *self))
{
    object->ctx = ctx;
    object->destroy = destroy;
    object->prev = NULL;
    object->next = ctx->objects;
    if (ctx->objects) ctx->objects->prev = object;
    ctx->objects = object;
}

void object_detach(mera_object *object)
{
    if (object->prev)
        object->prev->next = object->next;
    else
        object->ctx->objects = object->next;
    if (object->next) object->next->prev = object->prev;
    object->prev = object->next = NULL;
}

/* ---- containers ---- */

bool vec_grow(mera_context *ctx, void **at, size_t *space, size_t count, size_t size)
{
    size_t want = *space ? *space : 8;
    while (want < count) {
        if (want > SIZE_MAX / 2) return false;
        want *= 2;
    }
    if (want > SIZE_MAX / size) return false;
    void *grown = ctx_realloc(ctx, *at, want * size);
    if (!grown) return false;
    *at = grown;
    *space = want;
    return true;
}

void text_init(text *t, mera_context *ctx) { *t = (text){.ctx = ctx}; }

static bool text_reserve(text *t, size_t more)
{
    if (t->failed || more > SIZE_MAX - t->count - 1) return false;
    if (t->count + more + 1 > t->space && !vec_grow(t->ctx, (void **)&t->at, &t->space, t->count + more + 1, 1))
        t->failed = true;
    return !t->failed;
}

void text_bytes(text *t, const void *data, size_t bytes)
{
    if (!bytes || !text_reserve(t, bytes)) return;
    memcpy(t->at + t->count, data, bytes);
    t->count += bytes;
}

void text_add(text *t, const char *format, ...)
{
    char small[256];
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int length = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    if (length >= 0 && (size_t)length < sizeof small) {
        text_bytes(t, small, (size_t)length);
    } else if (length >= 0 && text_reserve(t, (size_t)length)) {
        vsnprintf(t->at + t->count, (size_t)length + 1, format, again);
        t->count += (size_t)length;
    } else {
        t->failed = true;
    }
    va_end(again);
}

mera_status text_finish(text *t, char **out)
{
    if (!text_reserve(t, 0)) {
        text_drop(t);
        return out_of_memory(t->ctx);
    }
    t->at[t->count] = '\0';
    *out = t->at;
    *t = (text){.ctx = t->ctx};
    return MERA_OK;
}

void text_drop(text *t)
{
    ctx_free(t->ctx, t->at);
    *t = (text){.ctx = t->ctx};
}

uint64_t fnv1a(const void *data, size_t bytes)
{
    const uint8_t *at = data;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ at[i]) * 1099511628211u;
    return hash;
}
