/* sched.c: Fast scheduling. One pass of list scheduling: time moves forward, every idle unit takes the first job of program
 * order that is ready, DMA queues stay in order. Dependences come from the bytes that jobs touch; memory that changes
 * hands is released as a whole. The result is an order a queue, and the waits that make it safe. */
#include "compile.h"

#include <stdlib.h>

/* Nodes: jobs, then for buffer b: ready(b) = its memory is free to write, released(b) = nothing touches it any more. */
typedef struct dag {
    compiler *c;
    size_t jobs, nodes;
    VEC(int32_t) from;
    VEC(int32_t) to;
    VEC(bool) raw; /* the edge is a read after a write */
    int32_t *succ_start, *succ;
    int32_t *pred_start, *pred; /* edge numbers */
    int32_t *waiting;
} dag;

static int32_t ready_node(const dag *d, int32_t buffer) { return (int32_t)d->jobs + 2 * buffer; }
static int32_t released_node(const dag *d, int32_t buffer) { return (int32_t)d->jobs + 2 * buffer + 1; }

static mera_status edge(dag *d, int64_t from, int64_t to, bool raw)
{
    if (vec_push(d->c->ctx, &d->from, (int32_t)from) && vec_push(d->c->ctx, &d->to, (int32_t)to) &&
        vec_push(d->c->ctx, &d->raw, raw))
        return MERA_OK;
    return out_of_memory(d->c->ctx);
}

/* ---- dependences ---- */

typedef struct touch {
    int32_t job;
    access a;
} touch;
typedef VEC(touch) touch_vec;

static mera_status same_buffer_edges(dag *d, touch_vec *lists)
{
    compiler *c = d->c;
    for (size_t i = 0; i < d->jobs; i++) {
        const job *j = &c->jobs.at[i];
        access accesses[MAX_ACCESSES];
        const int count = instr_accesses(&j->i, c->platform.array, accesses);
        for (int k = 0; k < count; k++) {
            int32_t b = -1;
            for (int x = 0; x < j->fix_count; x++)
                if (j->fix[x].field == accesses[k].field) b = j->fix[x].buffer;
            if (b <= 0) continue;     /* the constants in DRAM are never written */
            accesses[k].dram = false; /* within one buffer: relative addresses */
            const touch_vec *before = &lists[b];
            for (size_t t = before->count; t-- > 0;) {
                const touch *e = &before->at[t];
                if (e->job != (int32_t)i && (e->a.write || accesses[k].write) && access_overlap(&e->a, &accesses[k]))
                    TRY(edge(d, e->job, (int64_t)i, e->a.write && !accesses[k].write));
            }
        }
        for (int k = 0; k < count; k++)
            for (int x = 0; x < j->fix_count; x++) {
                const int32_t b = j->fix[x].buffer;
                if (j->fix[x].field != accesses[k].field || b <= 0) continue;
                accesses[k].dram = false;
                if (!vec_push(c->ctx, &lists[b], ((touch){(int32_t)i, accesses[k]}))) return out_of_memory(c->ctx);
                if (c->buffers.at[b].kind == BUFFER_DRAM) continue;
                if (accesses[k].write) TRY(edge(d, ready_node(d, b), (int64_t)i, false));
                TRY(edge(d, (int64_t)i, released_node(d, b), false));
            }
    }
    return MERA_OK;
}

typedef struct by_first {
    int64_t first;
    int32_t buffer;
} by_first;

static int earlier(const void *a, const void *b)
{
    const by_first *x = a, *y = b;
    return x->first != y->first ? (x->first < y->first ? -1 : 1) : (x->buffer < y->buffer ? -1 : 1);
}

/* Buffers in order of their first use: each waits for whoever had its cells last. */
static mera_status reuse_edges(dag *d)
{
    compiler *c = d->c;
    const int64_t grain = 64, cells = ceil_div(c->platform.sram_bytes, grain);
    int32_t *owner = ctx_alloc(c->ctx, (size_t)cells * sizeof *owner);
    by_first *order = ctx_alloc(c->ctx, (c->buffers.count + 1) * sizeof *order);
    mera_status status = owner && order ? MERA_OK : out_of_memory(c->ctx);
    size_t count = 0;
    if (status == MERA_OK) {
        memset(owner, 255, (size_t)cells * sizeof *owner);
        for (size_t b = 0; b < c->buffers.count; b++)
            if (c->buffers.at[b].kind != BUFFER_DRAM && c->buffers.at[b].last >= 0)
                order[count++] = (by_first){c->buffers.at[b].first, (int32_t)b};
        qsort(order, count, sizeof *order, earlier);
    }
    for (size_t k = 0; k < count && status == MERA_OK; k++) {
        const int32_t b = order[k].buffer;
        const buffer *x = &c->buffers.at[b];
        int32_t last = -1;
        for (int64_t cell = x->address / grain; cell < ceil_div(x->address + x->bytes, grain) && status == MERA_OK; cell++) {
            if (owner[cell] >= 0 && owner[cell] != last)
                status = edge(d, released_node(d, owner[cell]), ready_node(d, b), false);
            last = owner[cell];
            owner[cell] = b;
        }
        if (status == MERA_OK) status = edge(d, ready_node(d, b), released_node(d, b), false);
    }
    ctx_free(c->ctx, owner);
    ctx_free(c->ctx, order);
    return status;
}

static mera_status index_edges(dag *d)
{
    arena *memory = &d->c->memory;
    const size_t edges = d->from.count;
    d->succ_start = arena_array(memory, d->nodes + 1, sizeof *d->succ_start);
    d->pred_start = arena_array(memory, d->nodes + 1, sizeof *d->pred_start);
    d->succ = arena_array(memory, edges + 1, sizeof *d->succ);
    d->pred = arena_array(memory, edges + 1, sizeof *d->pred);
    d->waiting = arena_array(memory, d->nodes + 1, sizeof *d->waiting);
    if (!d->succ_start || !d->pred_start || !d->succ || !d->pred || !d->waiting) return out_of_memory(d->c->ctx);
    for (size_t e = 0; e < edges; e++) {
        d->succ_start[d->from.at[e] + 1]++;
        d->pred_start[d->to.at[e] + 1]++;
    }
    for (size_t n = 0; n < d->nodes; n++) {
        d->waiting[n] = d->pred_start[n + 1];
        d->succ_start[n + 1] += d->succ_start[n];
        d->pred_start[n + 1] += d->pred_start[n];
    }
    int32_t *s = ctx_alloc(d->c->ctx, (2 * d->nodes + 2) * sizeof *s);
    if (!s) return out_of_memory(d->c->ctx);
    int32_t *p = s + d->nodes + 1;
    memcpy(s, d->succ_start, (d->nodes + 1) * sizeof *s);
    memcpy(p, d->pred_start, (d->nodes + 1) * sizeof *p);
    for (size_t e = 0; e < edges; e++) {
        d->succ[s[d->from.at[e]]++] = (int32_t)e;
        d->pred[p[d->to.at[e]]++] = (int32_t)e;
    }
    ctx_free(d->c->ctx, s);
    return MERA_OK;
}

/* ---- list scheduling ---- */

typedef struct heap_item {
    int64_t key;
    int32_t id;
} heap_item;
typedef VEC(heap_item) heap;

static bool heap_push(mera_context *ctx, heap *h, int64_t key, int32_t id)
{
    if (!vec_push(ctx, h, ((heap_item){key, id}))) return false;
    for (size_t i = h->count - 1; i > 0;) {
        const size_t up = (i - 1) / 2;
        if (h->at[up].key < h->at[i].key || (h->at[up].key == h->at[i].key && h->at[up].id <= h->at[i].id)) break;
        const heap_item t = h->at[up];
        h->at[up] = h->at[i];
        h->at[i] = t;
        i = up;
    }
    return true;
}

static heap_item heap_pop(heap *h)
{
    const heap_item top = h->at[0];
    h->at[0] = h->at[--h->count];
    for (size_t i = 0;;) {
        size_t least = i;
        for (size_t k = 2 * i + 1; k <= 2 * i + 2 && k < h->count; k++)
            if (h->at[k].key < h->at[least].key || (h->at[k].key == h->at[least].key && h->at[k].id < h->at[least].id))
                least = k;
        if (least == i) return top;
        const heap_item t = h->at[i];
        h->at[i] = h->at[least];
        h->at[least] = t;
        i = least;
    }
}

static bool in_order(int queue) { return queue < QUEUE_UNITS; }

typedef struct scheduler {
    compiler *c;
    dag *d;
    heap ready[MAX_QUEUES]; /* key: program position */
    heap events;            /* key: time; id: a job that completes, or -1 - queue that becomes free */
    int32_t *next;          /* a queue's next unscheduled job of program order, as a list: next[job] */
    int32_t head[MAX_QUEUES];
    bool *started;
    bool locked[MAX_QUEUES]; /* in the middle of a reduction: only the head may go */
    int64_t free_at[MAX_QUEUES];
    int64_t bus_free;
    size_t done;
} scheduler;

static mera_status make_ready(scheduler *s, int32_t id)
{
    return heap_push(s->c->ctx, &s->ready[s->c->jobs.at[id].i.queue], id, id) ? MERA_OK : out_of_memory(s->c->ctx);
}

static mera_status complete(scheduler *s, int32_t node)
{
    dag *d = s->d;
    for (int32_t k = d->succ_start[node]; k < d->succ_start[node + 1]; k++) {
        const int32_t to = d->to.at[d->succ[k]];
        if (--d->waiting[to] > 0) continue;
        if ((size_t)to >= d->jobs)
            TRY(complete(s, to));
        else
            TRY(make_ready(s, to));
    }
    return MERA_OK;
}

static bool accumulates(const job *j) { return !(instr_first(&j->i) && instr_last(&j->i)); }

static int32_t network_of(const compiler *c, int32_t job) { return c->layers.at[c->jobs.at[job].layer].network; }

/* The job that the queue may start now, or -1. */
static int32_t pick(scheduler *s, int queue)
{
    heap *h = &s->ready[queue];
    while (h->count > 0 && s->started[h->at[0].id]) heap_pop(h); /* went as the head, see below */
    while (s->head[queue] >= 0 && s->started[s->head[queue]]) s->head[queue] = s->next[s->head[queue]];
    if (h->count == 0) return -1;
    /* A reduction in several instructions may begin only when everything in front of it has, and nothing may come between
     * its instructions: otherwise queues could wait for each other's memory for ever. */
    const int32_t first = h->at[0].id, head = s->head[queue];
    if (s->c->in_turn && !in_order(queue) && network_of(s->c, first) != network_of(s->c, head)) return -1;
    if (!in_order(queue) && !s->locked[queue] && !accumulates(&s->c->jobs.at[first])) return first;
    return s->d->waiting[head] == 0 ? head : -1;
}

static mera_status start(scheduler *s, int32_t id, int64_t now)
{
    compiler *c = s->c;
    const job *j = &c->jobs.at[id];
    const int queue = j->i.queue;
    const int64_t cycles = instr_cycles(&j->i, &c->platform) + DNA_ISSUE_CYCLES;
    int64_t end, idle;
    if (in_order(queue)) {
        const int64_t begin = max_i64(now, s->bus_free);
        s->bus_free = begin + cycles;
        end = begin + cycles + c->platform.dram_latency_cycles;
        idle = begin + cycles;
    } else {
        idle = now + cycles;
        end = idle + DNA_PIPELINE_CYCLES;
        if (j->i.opcode == DNA_OP_CONV && j->i.f[CONV_last]) end += j->i.f[CONV_oh] * j->i.f[CONV_ow];
    }
    s->free_at[queue] = idle;
    s->started[id] = true;
    s->locked[queue] = !instr_last(&j->i);
    c->order[s->done++] = id;
    if (!heap_push(c->ctx, &s->events, idle, -1 - queue) || !heap_push(c->ctx, &s->events, end, id))
        return out_of_memory(c->ctx);
    return MERA_OK;
}

static mera_status run(scheduler *s)
{
    compiler *c = s->c;
    const int queues = queue_count(c->platform.units);
    for (size_t n = s->d->nodes; n-- > s->d->jobs;) /* nodes without predecessors; complete() never meets them */
        if (s->d->pred_start[n] == s->d->pred_start[n + 1]) TRY(complete(s, (int32_t)n));
    for (size_t i = 0; i < s->d->jobs; i++)
        if (s->d->pred_start[i] == s->d->pred_start[i + 1]) TRY(make_ready(s, (int32_t)i));
    int64_t now = 0;
    for (;;) {
        for (int q = 0; q < queues; q++) {
            int32_t id;
            if (s->free_at[q] <= now && (id = pick(s, q)) >= 0) TRY(start(s, id, now));
        }
        if (s->events.count == 0) break;
        now = s->events.at[0].key;
        while (s->events.count && s->events.at[0].key == now) {
            const heap_item e = heap_pop(&s->events);
            if (e.id >= 0) TRY(complete(s, e.id));
        }
    }
    if (s->done != s->d->jobs)
        return fail(c->ctx, MERA_INTERNAL, "schedule: %lld of %lld jobs can never start", (long long)(s->d->jobs - s->done),
                    (long long)s->d->jobs);
    return MERA_OK;
}

/* ---- waits ---- */

typedef struct clocks {
    int queues;
    int32_t *known;                    /* [node][queue]: instructions of the queue known to be complete when the node is */
    int32_t *start;                    /* [queue][queue]: known when the queue's latest instruction started */
    VEC(int32_t) by_queue[MAX_QUEUES]; /* job of each instruction; -1 for sync */
} clocks;

static mera_status push_code(compiler *c, clocks *k, instr i, int32_t job)
{
    if (!vec_push(c->ctx, &c->code, i) || !vec_push(c->ctx, &k->by_queue[i.queue], job)) return out_of_memory(c->ctx);
    return MERA_OK;
}

/* need[q]: how many instructions of q must be complete. Strips what is known, most recent knowledge first. */
static mera_status emit_waits(compiler *c, clocks *k, const int32_t *order_of, instr *i, int32_t *need)
{
    int32_t *known = k->start + (size_t)i->queue * (size_t)k->queues;
    for (;;) {
        int best = -1;
        int32_t newest = -1;
        for (int q = 0; q < k->queues; q++) {
            if (need[q] <= known[q]) continue;
            const int32_t j = k->by_queue[q].at[need[q] - 1];
            const int32_t age = j >= 0 ? order_of[j] : 0;
            if (best < 0 || age > newest) {
                best = q;
                newest = age;
            }
        }
        if (best < 0) return MERA_OK;
        if (i->wait_count == DNA_INSTRUCTION_WAITS) {
            instr sync = {.opcode = DNA_OP_SYNC, .queue = i->queue, .wait_count = i->wait_count, .node = i->node};
            memcpy(sync.waits, i->waits, sizeof sync.waits);
            TRY(push_code(c, k, sync, -1));
            i->wait_count = 0;
        }
        i->waits[i->wait_count++] = (instr_wait){best, need[best]};
        const int32_t job = k->by_queue[best].at[need[best] - 1];
        if (job >= 0) {
            const int32_t *more = k->known + (size_t)job * (size_t)k->queues;
            for (int q = 0; q < k->queues; q++)
                if (more[q] > known[q]) known[q] = more[q];
        }
        if (need[best] > known[best]) known[best] = need[best];
    }
}

static mera_status make_code(compiler *c, dag *d)
{
    clocks k = {.queues = queue_count(c->platform.units)};
    const size_t width = (size_t)k.queues;
    k.known = ctx_alloc(c->ctx, (d->nodes + 1) * width * sizeof *k.known);
    k.start = arena_array(&c->memory, width * width, sizeof *k.start);
    int32_t *order_of = arena_array(&c->memory, d->jobs + 1, sizeof *order_of);
    int32_t *sequence = arena_array(&c->memory, d->jobs + 1, sizeof *sequence);
    bool *done = arena_array(&c->memory, d->nodes + 1, sizeof *done);
    int32_t *stack = arena_array(&c->memory, d->nodes + 1, sizeof *stack);
    mera_status status = k.known && k.start && order_of && sequence && done && stack ? MERA_OK : out_of_memory(c->ctx);
    if (status == MERA_OK) memset(k.known, 0, (d->nodes + 1) * width * sizeof *k.known);
    for (size_t at = 0; at < d->jobs && status == MERA_OK; at++) {
        const int32_t id = c->order[at];
        instr i = c->jobs.at[id].i;
        int32_t need[MAX_QUEUES] = {0};
        order_of[id] = (int32_t)at;
        /* Virtual nodes among the predecessors: what must be complete for them, without recursion. */
        size_t depth = 0;
        stack[depth++] = id;
        while (depth > 0) {
            const int32_t n = stack[depth - 1];
            bool pushed = false;
            for (int32_t e = d->pred_start[n]; e < d->pred_start[n + 1] && !pushed; e++) {
                const int32_t p = d->from.at[d->pred[e]];
                if ((size_t)p >= d->jobs && !done[p]) {
                    done[p] = true;
                    stack[depth++] = p;
                    pushed = true;
                }
            }
            if (pushed) continue;
            depth--;
            if (n == id) break;
            int32_t *known = k.known + (size_t)n * width;
            for (int32_t e = d->pred_start[n]; e < d->pred_start[n + 1]; e++) {
                const int32_t p = d->from.at[d->pred[e]];
                if ((size_t)p < d->jobs) {
                    const int q = c->jobs.at[p].i.queue;
                    if (sequence[p] > known[q]) known[q] = sequence[p];
                } else {
                    const int32_t *other = k.known + (size_t)p * width;
                    for (size_t q = 0; q < width; q++)
                        if (other[q] > known[q]) known[q] = other[q];
                }
            }
        }
        for (int32_t e = d->pred_start[id]; e < d->pred_start[id + 1]; e++) {
            const int32_t p = d->from.at[d->pred[e]];
            if ((size_t)p < d->jobs) {
                const int q = c->jobs.at[p].i.queue;
                /* Within a queue writes are in order behind all reads of their predecessors; only what a predecessor has
                 * written must be waited for. */
                if (q == i.queue && !d->raw.at[d->pred[e]]) continue;
                if (sequence[p] > need[q]) need[q] = sequence[p];
            } else {
                const int32_t *other = k.known + (size_t)p * width;
                for (int q = 0; q < k.queues; q++)
                    if (q != i.queue && other[q] > need[q]) need[q] = other[q];
            }
        }
        status = emit_waits(c, &k, order_of, &i, need);
        if (status == MERA_OK) status = push_code(c, &k, i, id);
        if (status != MERA_OK) break;
        sequence[id] = (int32_t)k.by_queue[i.queue].count;
        int32_t *known = k.known + (size_t)id * width;
        memcpy(known, k.start + (size_t)i.queue * width, width * sizeof *known);
        known[i.queue] = sequence[id];
    }
    ctx_free(c->ctx, k.known);
    for (int q = 0; q < MAX_QUEUES; q++) vec_free(c->ctx, &k.by_queue[q]);
    return status;
}

static void set_addresses(compiler *c)
{
    for (size_t i = 0; i < c->jobs.count; i++) {
        job *j = &c->jobs.at[i];
        for (int k = 0; k < j->fix_count; k++) j->i.f[j->fix[k].field] += c->buffers.at[j->fix[k].buffer].address;
    }
}

static mera_status schedule(compiler *c, dag *d, touch_vec *lists, scheduler *s)
{
    TRY(same_buffer_edges(d, lists));
    TRY(reuse_edges(d));
    TRY(index_edges(d));
    s->next = arena_array(&c->memory, d->jobs + 1, sizeof *s->next);
    s->started = arena_array(&c->memory, d->jobs + 1, sizeof *s->started);
    c->order = arena_array(&c->memory, d->jobs + 1, sizeof *c->order);
    if (!s->next || !s->started || !c->order) return out_of_memory(c->ctx);
    for (int q = 0; q < MAX_QUEUES; q++) s->head[q] = -1;
    for (size_t i = d->jobs; i-- > 0;) {
        const int q = c->jobs.at[i].i.queue;
        s->next[i] = s->head[q];
        s->head[q] = (int32_t)i;
    }
    set_addresses(c);
    TRY(run(s));
    return make_code(c, d);
}

mera_status stage_schedule(compiler *c)
{
    dag d = {.c = c, .jobs = c->jobs.count, .nodes = c->jobs.count + 2 * c->buffers.count};
    scheduler s = {.c = c, .d = &d};
    touch_vec *lists = arena_array(&c->memory, c->buffers.count + 1, sizeof *lists);
    c->code.count = 0;
    const mera_status status = lists ? schedule(c, &d, lists, &s) : out_of_memory(c->ctx);
    for (size_t b = 0; lists && b < c->buffers.count; b++) vec_free(c->ctx, &lists[b]);
    for (int q = 0; q < MAX_QUEUES; q++) vec_free(c->ctx, &s.ready[q]);
    vec_free(c->ctx, &s.events);
    vec_free(c->ctx, &d.from);
    vec_free(c->ctx, &d.to);
    vec_free(c->ctx, &d.raw);
    TRY(status);
    return check_schedule(c->ctx, &c->platform, c->code.at, c->code.count);
}
