/* check.c: the compiler's work, checked by other means than it was made with. Always on; a finding is our mistake. */
#include "compile.h"

#include <stdlib.h>

/* ---- lowering: every job stays inside of the buffers that it names ---- */

mera_status check_lower(compiler *c, mera_status blame)
{
    for (size_t b = 0; b < c->buffers.count; b++) {
        const int64_t load = c->buffers.at[b].load;
        if (load >= (int64_t)c->jobs.count || (load >= 0 && c->jobs.at[load].i.opcode != DNA_OP_LOAD))
            return fail(c->ctx, blame, "lowering: buffer %d ('%s') is loaded by job %lld, which is no load", (int)b,
                        c->buffers.at[b].name, (long long)load);
    }
    for (size_t i = 0; i < c->jobs.count; i++) {
        const job *j = &c->jobs.at[i];
        access a[MAX_ACCESSES];
        const int n = instr_accesses(&j->i, c->platform.array, a);
        if (j->i.queue >= queue_count(c->platform.units))
            return fail(c->ctx, blame, "lowering: job %d: the platform has no such queue", (int)i);
        for (int k = 0; k < n; k++) {
            int32_t b = -1;
            for (int x = 0; x < j->fix_count; x++)
                if (j->fix[x].field == a[k].field) b = j->fix[x].buffer;
            const bool inside = b >= 0 && a[k].low >= 0 && a[k].low < a[k].high && a[k].high <= c->buffers.at[b].bytes;
            if (!inside || (c->buffers.at[b].kind == BUFFER_DRAM) != a[k].dram)
                return fail(c->ctx, blame, "lowering: job %d (%s): '%s' reaches bytes [%lld, %lld), outside of its buffer",
                            (int)i, isa_table(j->i.opcode)->name, isa_table(j->i.opcode)->fields[a[k].field].name,
                            (long long)a[k].low, (long long)a[k].high);
        }
    }
    return MERA_OK;
}

/* ---- allocation: no two SRAM buffers that live at the same time share a byte ---- */

static int by_first_use(const void *a, const void *b)
{
    const buffer *x = *(buffer *const *)a, *y = *(buffer *const *)b;
    return x->first != y->first ? (x->first < y->first ? -1 : 1) : (x < y ? -1 : x > y);
}

mera_status check_alloc(compiler *c)
{
    buffer **sorted = arena_array(&c->memory, c->buffers.count + 1, sizeof *sorted);
    buffer **live = arena_array(&c->memory, c->buffers.count + 1, sizeof *live);
    if (!sorted || !live) return out_of_memory(c->ctx);
    size_t count = 0, alive = 0;
    for (size_t b = 0; b < c->buffers.count; b++)
        if (c->buffers.at[b].kind != BUFFER_DRAM && c->buffers.at[b].last >= 0) sorted[count++] = &c->buffers.at[b];
    if (count) qsort(sorted, count, sizeof *sorted, by_first_use);
    for (size_t i = 0; i < count; i++) {
        const buffer *x = sorted[i];
        if (x->address < 0 || x->address + x->bytes > c->platform.sram_bytes)
            return fail(c->ctx, MERA_INTERNAL, "allocation: buffer '%s' lies outside of SRAM", x->name);
        size_t keep = 0;
        for (size_t k = 0; k < alive; k++) {
            if (live[k]->last < x->first) continue;
            live[keep++] = live[k];
            if (live[k]->address < x->address + x->bytes && x->address < live[k]->address + live[k]->bytes)
                return fail(c->ctx, MERA_INTERNAL, "allocation: buffers '%s' and '%s' live at the same time and share SRAM",
                            x->name, live[k]->name);
        }
        alive = keep;
        live[alive++] = sorted[i];
    }
    return MERA_OK;
}

/* ---- schedule: no deadlock, and every two conflicting accesses are ordered ---- */

#define CHECK_CELLS 2048

typedef struct seen {
    int64_t count; /* of its queue: complete when that many are */
    access a;
} seen;
typedef VEC(seen) seen_vec;

typedef struct race_checker {
    mera_context *ctx;
    int queues, array;
    int64_t cell_bytes[2];    /* SRAM, DRAM */
    seen_vec *writes, *reads; /* [memory][cell][queue] */
    int32_t *known;           /* [queue][queue], at the latest start */
    int32_t *after;           /* [instruction][queue], known at its completion */
    int64_t *index_of;        /* [queue][sequence] -> instruction, as offsets */
    int64_t *queue_start;
} race_checker;

static size_t slot(const race_checker *r, bool dram, int64_t cell, int queue)
{
    return (((size_t)dram * CHECK_CELLS + (size_t)cell) * (size_t)r->queues) + (size_t)queue;
}

/* The latest access of the list that overlaps must be known to be complete; earlier ones then are, too. */
static mera_status ordered(const race_checker *r, const seen_vec *list, const access *a, int queue, const instr *i,
                           int64_t index, bool same_ok)
{
    for (size_t k = list->count; k-- > 0;) {
        const seen *s = &list->at[k];
        if (!access_overlap(&s->a, a)) continue;
        if (same_ok || s->count <= r->known[(size_t)i->queue * (size_t)r->queues + (size_t)queue]) return MERA_OK;
        char other[24], own[24];
        queue_print_name(other, sizeof other, queue);
        queue_print_name(own, sizeof own, i->queue);
        return fail(
            r->ctx, MERA_INTERNAL,
            "schedule: instruction %lld (%s in %s) touches %s bytes [%lld, %lld) without waiting for instruction %lld of %s",
            (long long)index, isa_table(i->opcode)->name, own, a->dram ? "DRAM" : "SRAM", (long long)a->low,
            (long long)a->high, (long long)s->count, other);
    }
    return MERA_OK;
}

static mera_status check_one(race_checker *r, const instr *i, int64_t index, int64_t sequence)
{
    access a[MAX_ACCESSES];
    const int count = instr_accesses(i, r->array, a);
    for (int k = 0; k < count; k++) {
        const int64_t grain = r->cell_bytes[a[k].dram];
        for (int64_t cell = a[k].low / grain; cell <= (a[k].high - 1) / grain; cell++)
            for (int q = 0; q < r->queues; q++) {
                /* Within a queue, writes come after all that the instructions in front of them do. */
                const bool same = q == i->queue && a[k].write;
                TRY(ordered(r, &r->writes[slot(r, a[k].dram, cell, q)], &a[k], q, i, index, same));
                if (a[k].write) TRY(ordered(r, &r->reads[slot(r, a[k].dram, cell, q)], &a[k], q, i, index, same));
            }
    }
    for (int k = 0; k < count; k++) {
        const int64_t grain = r->cell_bytes[a[k].dram];
        for (int64_t cell = a[k].low / grain; cell <= (a[k].high - 1) / grain; cell++) {
            seen_vec *list = (a[k].write ? r->writes : r->reads) + slot(r, a[k].dram, cell, i->queue);
            if (!vec_push(r->ctx, list, ((seen){sequence, a[k]}))) return out_of_memory(r->ctx);
        }
    }
    return MERA_OK;
}

static mera_status run_queues(race_checker *r, const instr *code, size_t count, int64_t *next, int32_t *done)
{
    for (size_t started = 0; started < count;) {
        bool progress = false;
        for (int q = 0; q < r->queues; q++)
            while (next[q] < r->queue_start[q + 1]) {
                const int64_t index = r->index_of[next[q]];
                const instr *i = &code[index];
                bool ready = true;
                for (int w = 0; w < i->wait_count; w++) ready = ready && done[i->waits[w].queue] >= i->waits[w].count;
                if (!ready) break;
                int32_t *known = r->known + (size_t)q * (size_t)r->queues;
                for (int w = 0; w < i->wait_count; w++) {
                    const int from = i->waits[w].queue;
                    const int64_t at = r->index_of[r->queue_start[from] + i->waits[w].count - 1];
                    for (int k = 0; k < r->queues; k++)
                        if (r->after[at * r->queues + k] > known[k]) known[k] = r->after[at * r->queues + k];
                }
                memcpy(r->after + index * r->queues, known, (size_t)r->queues * sizeof *known);
                done[q]++;
                r->after[index * r->queues + q] = done[q];
                TRY(check_one(r, i, index, done[q]));
                next[q]++;
                started++;
                progress = true;
            }
        if (!progress) return fail(r->ctx, MERA_INTERNAL, "schedule: the queues wait for each other (deadlock)");
    }
    return MERA_OK;
}

mera_status check_schedule(mera_context *ctx, const mera_platform *platform, const instr *code, size_t count)
{
    race_checker r = {.ctx = ctx, .queues = queue_count(platform->units), .array = platform->array};
    arena memory;
    arena_init(&memory, ctx);
    int64_t dram = 1;
    for (size_t i = 0; i < count; i++) {
        access a[MAX_ACCESSES];
        const int n = instr_accesses(&code[i], platform->array, a);
        for (int k = 0; k < n; k++)
            if (a[k].dram) dram = max_i64(dram, a[k].high);
    }
    r.cell_bytes[0] = ceil_div(platform->sram_bytes, CHECK_CELLS);
    r.cell_bytes[1] = ceil_div(dram, CHECK_CELLS);
    const size_t slots = 2 * CHECK_CELLS * (size_t)r.queues, queues = (size_t)r.queues;
    r.writes = arena_array(&memory, slots, sizeof *r.writes);
    r.reads = arena_array(&memory, slots, sizeof *r.reads);
    r.known = arena_array(&memory, queues * queues, sizeof *r.known);
    r.after = arena_array(&memory, (count + 1) * queues, sizeof *r.after);
    r.index_of = arena_array(&memory, count + 1, sizeof *r.index_of);
    r.queue_start = arena_array(&memory, queues + 1, sizeof *r.queue_start);
    int64_t *next = arena_array(&memory, queues, sizeof *next);
    int32_t *done = arena_array(&memory, queues, sizeof *done);
    mera_status status = r.writes && r.reads && r.known && r.after && r.index_of && r.queue_start && next && done
                             ? MERA_OK
                             : out_of_memory(ctx);
    if (status == MERA_OK) {
        for (size_t i = 0; i < count; i++) r.queue_start[code[i].queue + 1]++;
        for (size_t q = 0; q < queues; q++) {
            r.queue_start[q + 1] += r.queue_start[q];
            next[q] = r.queue_start[q];
        }
        for (size_t i = 0; i < count; i++) r.index_of[next[code[i].queue]++] = (int64_t)i;
        for (size_t q = 0; q < queues; q++) next[q] = r.queue_start[q];
        for (size_t i = 0; i < count && status == MERA_OK; i++)
            for (int w = 0; w < code[i].wait_count && status == MERA_OK; w++)
                if (code[i].waits[w].count >
                    r.queue_start[code[i].waits[w].queue + 1] - r.queue_start[code[i].waits[w].queue])
                    status = fail(ctx, MERA_INTERNAL, "schedule: instruction %lld waits for more than its queue holds",
                                  (long long)i);
        if (status == MERA_OK) status = run_queues(&r, code, count, next, done);
    }
    if (r.writes && r.reads)
        for (size_t s = 0; s < slots; s++) {
            vec_free(ctx, &r.writes[s]);
            vec_free(ctx, &r.reads[s]);
        }
    arena_free(&memory);
    return status;
}

/* ---- encoding: what a device will decode is what was scheduled ---- */

mera_status check_encoding(compiler *c, const mera_program *program)
{
    word_vec words = {0};
    mera_status status =
        program->code_count == (int64_t)c->code.count ? MERA_OK : fail(c->ctx, MERA_INTERNAL, "encoding: lost instructions");
    for (size_t i = 0; i < c->code.count && status == MERA_OK; i++) {
        const instr *a = &c->code.at[i];
        instr b;
        int64_t at = 0;
        words.count = 0;
        status = isa_encode(c->ctx, a, &words);
        if (status == MERA_OK) status = isa_decode(c->ctx, words.at, (int64_t)words.count, &at, &b);
        if (status != MERA_OK) break;
        b.node = a->node;
        bool same = a->opcode == b.opcode && a->queue == b.queue && a->wait_count == b.wait_count;
        for (int f = 0; f < isa_table(a->opcode)->field_count; f++) same = same && a->f[f] == b.f[f];
        for (int w = 0; w < a->wait_count; w++)
            same = same && a->waits[w].queue == b.waits[w].queue && a->waits[w].count == b.waits[w].count;
        if (!same)
            status = fail(c->ctx, MERA_INTERNAL, "encoding: instruction %lld (%s) decodes to something else", (long long)i,
                          isa_table(a->opcode)->name);
    }
    vec_free(c->ctx, &words);
    return status;
}
