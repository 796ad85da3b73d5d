/* alloc.c: addresses. Resident tensors first (largest first, lowest gap), over their live ranges in program order. Then
 * everything with a short life, constants and stages, in order of use: each goes where memory has been free the longest,
 * and its load moves forward to that moment. That is the prefetch: weights stream in as far ahead as SRAM allows. */
#include "compile.h"

#include <stdlib.h>

static int32_t job_buffer(const job *j, int field)
{
    for (int k = 0; k < j->fix_count; k++)
        if (j->fix[k].field == field) return j->fix[k].buffer;
    return -1;
}

/* First and last access of every buffer, and for loads the last store in front of them to what they read. */
static mera_status find_ranges(compiler *c)
{
    int64_t *stored = ctx_alloc(c->ctx, (c->buffers.count + 1) * sizeof *stored);
    if (!stored) return out_of_memory(c->ctx);
    for (size_t b = 0; b < c->buffers.count; b++) stored[b] = -1;
    for (size_t i = 0; i < c->jobs.count; i++) {
        const job *j = &c->jobs.at[i];
        for (int k = 0; k < j->fix_count; k++) {
            buffer *b = &c->buffers.at[j->fix[k].buffer];
            b->first = min_i64(b->first, (int64_t)i);
            b->last = max_i64(b->last, (int64_t)i);
        }
        if (j->i.opcode == DNA_OP_STORE) stored[job_buffer(j, STORE_dram)] = (int64_t)i;
        if (j->i.opcode == DNA_OP_LOAD) {
            buffer *b = &c->buffers.at[job_buffer(j, LOAD_sram)];
            b->earliest = max_i64(b->earliest, stored[job_buffer(j, LOAD_dram)] + 1);
        }
    }
    ctx_free(c->ctx, stored);
    return MERA_OK;
}

/* ---- resident buffers ---- */

typedef struct rect {
    int32_t buffer;
    int64_t bytes, first, last, address;
    int64_t early; /* the program position from which its memory had better be free, so that layers can overlap */
} rect;

static int larger_first(const void *a, const void *b)
{
    const rect *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->buffer < y->buffer ? -1 : 1;
}

static int lower_first(const void *a, const void *b)
{
    const rect *x = *(rect *const *)a, *y = *(rect *const *)b;
    if (x->address != y->address) return x->address < y->address ? -1 : 1;
    return x->buffer < y->buffer ? -1 : 1;
}

static mera_status place_residents(compiler *c, int64_t grain, rect **out, size_t *out_count)
{
    size_t count = 0;
    for (size_t b = 0; b < c->buffers.count; b++)
        count += c->buffers.at[b].kind == BUFFER_RESIDENT && c->buffers.at[b].last >= 0;
    rect *rects = arena_array(&c->memory, count + 1, sizeof *rects);
    rect **live = arena_array(&c->memory, count + 1, sizeof *live);
    int64_t *layer_end = arena_array(&c->memory, c->layers.count + 1, sizeof *layer_end);
    if (!rects || !live || !layer_end) return out_of_memory(c->ctx);
    for (size_t i = 0; i < c->jobs.count; i++) layer_end[c->jobs.at[i].layer] = (int64_t)i;
    for (size_t l = 1; l < c->layers.count; l++) layer_end[l] = max_i64(layer_end[l], layer_end[l - 1]);
    const int32_t linger = c->linger;
    size_t n = 0;
    for (size_t b = 0; b < c->buffers.count; b++) {
        const buffer *x = &c->buffers.at[b];
        if (x->kind != BUFFER_RESIDENT || x->last < 0) continue;
        const int64_t after = min_i64(c->jobs.at[x->last].layer + linger, (int64_t)c->layers.count - 1);
        const int64_t before = c->jobs.at[x->first].layer - linger - 1;
        rects[n++] = (rect){.buffer = (int32_t)b,
                            .bytes = ceil_div(x->bytes, grain) * grain,
                            .first = x->first,
                            .last = linger ? max_i64(x->last, layer_end[after]) : x->last,
                            .early = linger ? (before < 0 ? 0 : min_i64(x->first, layer_end[before] + 1)) : x->first};
    }
    qsort(rects, count, sizeof *rects, larger_first);
    for (size_t r = 0; r < count; r++) {
        size_t m = 0;
        for (size_t k = 0; k < r; k++)
            if (rects[k].first <= rects[r].last && rects[k].last >= rects[r].first) live[m++] = &rects[k];
        if (m) qsort(live, m, sizeof *live, lower_first);
        int64_t address = 0;
        for (size_t k = 0; k < m && live[k]->address < address + rects[r].bytes; k++)
            address = max_i64(address, live[k]->address + live[k]->bytes);
        if (address + rects[r].bytes > c->platform.sram_bytes)
            return fail(c->ctx, MERA_DOES_NOT_FIT, "tensor '%s' finds no place in SRAM",
                        c->buffers.at[rects[r].buffer].name);
        rects[r].address = address;
        c->buffers.at[rects[r].buffer].address = address;
        c->buffers.at[rects[r].buffer].position = rects[r].first;
    }
    *out = rects;
    *out_count = count;
    return MERA_OK;
}

/* ---- floating buffers ---- */

#define NEVER INT64_MAX

/* The window of `width` cells whose latest end of earlier use is soonest; its start, or -1 if all are taken. */
static int64_t best_window(const int64_t *ready, int64_t cells, int64_t width, int64_t *deque, int64_t *when)
{
    int64_t head = 0, tail = 0, best = -1;
    *when = NEVER;
    for (int64_t i = 0; i < cells; i++) {
        while (tail > head && ready[deque[tail - 1]] <= ready[i]) tail--;
        deque[tail++] = i;
        if (deque[head] <= i - width) head++;
        if (i >= width - 1 && ready[deque[head]] < *when) {
            *when = ready[deque[head]];
            best = i - width + 1;
        }
    }
    return best;
}

static mera_status place_floats(compiler *c, int64_t grain, const rect *rects, size_t rect_count)
{
    const int64_t cells = c->platform.sram_bytes / grain;
    int64_t *used = arena_array(&c->memory, (size_t)cells, sizeof *used); /* end of the last floating use, + 1 */
    int64_t *ready = arena_array(&c->memory, (size_t)cells, sizeof *ready);
    int64_t *deque = arena_array(&c->memory, (size_t)cells + 1, sizeof *deque);
    if (!used || !ready || !deque) return out_of_memory(c->ctx);
    int64_t position[QUEUE_UNITS] = {0};
    for (size_t k = 0; k < c->buffers.count; k++) { /* in order of first use, since lowering makes them so */
        buffer *b = &c->buffers.at[k];
        if ((b->kind != BUFFER_CONST && b->kind != BUFFER_STAGE) || b->last < 0) continue;
        const int64_t use = b->first, width = ceil_div(b->bytes, grain);
        int64_t when = NEVER, at = -1;
        for (int strict = 0; strict < 2 && when > use && width <= cells; strict++) {
            memcpy(ready, used, (size_t)cells * sizeof *ready);
            for (size_t r = 0; r < rect_count; r++) {
                const rect *x = &rects[r];
                if ((strict ? x->first : x->early) > b->last) continue; /* comes later */
                const int64_t free_from = x->last < use ? x->last + 1 : NEVER;
                for (int64_t i = x->address / grain; i < (x->address + x->bytes) / grain; i++)
                    ready[i] = max_i64(ready[i], free_from);
            }
            at = best_window(ready, cells, width, deque, &when);
        }
        if (at < 0 || when > use)
            return fail(c->ctx, MERA_DOES_NOT_FIT, "'%s' needs %lld bytes of SRAM at once, which are not free", b->name,
                        (long long)b->bytes);
        b->address = at * grain;
        b->position = use;
        if (b->load >= 0) {
            const int queue = c->jobs.at[b->load].i.queue;
            b->position = min_i64(use, max_i64(max_i64(when, b->earliest), position[queue]));
            position[queue] = b->position;
            c->jobs.at[b->load].position = b->position;
        }
        for (int64_t i = at; i < at + width; i++) used[i] = b->last + 1;
    }
    return MERA_OK;
}

/* ---- program order ---- */

typedef struct key {
    int64_t position;
    bool stays;
    int64_t index;
} key;

static int by_position(const void *a, const void *b)
{
    const key *x = a, *y = b;
    if (x->position != y->position) return x->position < y->position ? -1 : 1;
    if (x->stays != y->stays) return x->stays ? 1 : -1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static mera_status reorder(compiler *c)
{
    const size_t count = c->jobs.count;
    key *keys = ctx_alloc(c->ctx, (count + 1) * sizeof *keys);
    job *jobs = ctx_alloc(c->ctx, (count + 1) * sizeof *jobs);
    if (!keys || !jobs) {
        ctx_free(c->ctx, keys);
        ctx_free(c->ctx, jobs);
        return out_of_memory(c->ctx);
    }
    for (size_t i = 0; i < count; i++) {
        const job *j = &c->jobs.at[i];
        const int32_t target = j->i.opcode == DNA_OP_LOAD ? job_buffer(j, LOAD_sram) : -1;
        const bool moves = target >= 0 && c->buffers.at[target].kind != BUFFER_RESIDENT;
        keys[i] = (key){moves ? j->position : (int64_t)i, !moves, (int64_t)i};
    }
    qsort(keys, count, sizeof *keys, by_position);
    for (size_t i = 0; i < count; i++) {
        jobs[i] = c->jobs.at[keys[i].index];
        jobs[i].position = (int64_t)i;
    }
    ctx_free(c->ctx, c->jobs.at);
    c->jobs.at = jobs;
    c->jobs.space = count + 1;
    ctx_free(c->ctx, keys);
    return MERA_OK;
}

static void place_dram(compiler *c)
{
    int64_t at = (c->buffers.at[0].bytes + 63) / 64 * 64;
    c->buffers.at[0].address = 0;
    for (size_t b = 1; b < c->buffers.count; b++) {
        buffer *x = &c->buffers.at[b];
        if (x->kind != BUFFER_DRAM || x->address >= 0) continue;
        x->address = at;
        at += ceil_div(x->bytes, DNA_DRAM_BURST_BYTES) * DNA_DRAM_BURST_BYTES;
    }
    c->dram_bytes = at;
}

mera_status stage_alloc(compiler *c)
{
    rect *rects = NULL;
    size_t count = 0;
    int64_t grain = max_i64(64, c->platform.array);
    while (c->platform.sram_bytes / grain > 16384) grain *= 2;
    for (size_t i = 0; i < c->jobs.count; i++)
        if (!instr_bounded(&c->jobs.at[i].i, &c->platform))
            return fail(c->ctx, MERA_DOES_NOT_FIT, "job %d (%s) would work on more bytes than SRAM holds", (int)i,
                        isa_table(c->jobs.at[i].i.opcode)->name);
    TRY(find_ranges(c));
    TRY(place_residents(c, grain, &rects, &count));
    TRY(place_floats(c, grain, rects, count));
    TRY(reorder(c));
    return finish_alloc(c);
}

mera_status finish_alloc(compiler *c)
{
    for (size_t b = 0; b < c->buffers.count; b++) {
        c->buffers.at[b].first = INT64_MAX;
        c->buffers.at[b].last = -1;
    }
    TRY(find_ranges(c));
    place_dram(c);
    c->sram_peak = 0;
    for (size_t b = 0; b < c->buffers.count; b++)
        if (c->buffers.at[b].kind != BUFFER_DRAM && c->buffers.at[b].last >= 0)
            c->sram_peak = max_i64(c->sram_peak, c->buffers.at[b].address + c->buffers.at[b].bytes);
    return check_alloc(c);
}
