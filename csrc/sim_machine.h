/* sim_machine.h: the state of the machine while the Simulator counts its cycles, and what its engines share: rings, timers,
 * ports and banks. Engines are in sim_array.c, sim_window.c, sim_vector.c and sim_dma.c; sim_time.c drives them. */
#ifndef MERA_SIM_MACHINE_H
#define MERA_SIM_MACHINE_H

#include "sim.h"

#define NEVER INT64_MAX
#define MAX_WORDS 32 /* that one engine can be waiting for */

/* Engines of a unit, each one step a cycle at most. */
enum { LOADER, FEED, DRAIN, WINDOW_LOADER, WINDOW_WORK, VECTOR_WORK, UNIT_ENGINES };
#define MAX_ENGINES (UNIT_ENGINES * MAX_UNITS + QUEUE_UNITS)

/* A port keeps the last two words that it read: what lets a run of unaligned accesses ask for one new word a cycle. */
typedef struct port {
    int64_t held[2];
} port;

typedef struct engine {
    const instr *i;
    int32_t index; /* of the instruction; -1: idle */
    int64_t begin; /* cycle of its first step */
    int64_t stall;
    int32_t words; /* asked for and not yet served; in engines without queues -1: step not begun */
    bool flushing; /* the last step is issued: the instruction ends when all words are served */
    int64_t word[MAX_WORDS];
    bool write[MAX_WORDS];
    /* counters of the instruction */
    int64_t a, b, c, d, phase, left;
    int64_t ready;             /* DMA: first data; window: groups loaded */
    int64_t lost[CYCLE_KINDS]; /* cycles without a step */
    port ports[4];
} engine;

/* What a queue's unit has been doing since a cycle. */
typedef struct activity {
    int kind;
    int32_t index; /* of the instruction at work, or next */
    int64_t since;
} activity;

/* A short queue of instructions between two engines. */
#define RING 64
typedef struct ring {
    int32_t at[RING];
    int64_t when[RING];
    int head, count;
} ring;

typedef struct unit_state {
    int64_t tiles_loaded, tiles_started; /* weight tiles; loaded - started is 0 or 1 */
    bool feed_has_tile;
    ring to_feed, to_drain;
    int banks_used; /* accumulator banks */
    int64_t groups_loaded, groups_started;
    ring to_window;
} unit_state;

typedef struct machine {
    mera_simulator *s;
    const mera_program *p;
    int64_t now, array, word_shift;
    int bank_bits;
    int64_t bank_cycle[256], bank_word[256];
    bool bank_read[256];
    int64_t words_served[2]; /* read, written */
    engine engines[MAX_ENGINES];
    int engine_count;
    uint64_t active[2]; /* engines with an instruction */
    unit_state units[MAX_UNITS];
    /* queues */
    int32_t *list[MAX_QUEUES];
    int32_t length[MAX_QUEUES], next[MAX_QUEUES], done[MAX_QUEUES];
    int64_t issue_at[MAX_QUEUES]; /* when the head, its waits met, enters its unit; NEVER: waits not met */
    ring finishing[MAX_QUEUES];   /* completions on their way */
    int64_t next_timer;
    bool recheck;
    ring requests[QUEUE_UNITS];     /* DMA requests in flight; when = first data */
    int64_t dram_credit, dram_rate; /* 2^-20 bytes */
    int64_t bus_used;
    mera_event *event_of; /* an instruction each */
    int64_t completed;
    int64_t progress; /* the last cycle in which some engine finished a step */
    activity activity_of[MAX_QUEUES];
    uint64_t unsettled; /* queues whose idle units may have another reason than before */
    bool out_of_memory;
} machine;

static inline bool push(ring *r, int32_t index, int64_t when)
{
    if (r->count == RING) return false;
    const int at = (r->head + r->count++) % RING;
    r->at[at] = index;
    r->when[at] = when;
    return true;
}

static inline int32_t pop(ring *r)
{
    const int32_t index = r->at[r->head];
    r->head = (r->head + 1) % RING;
    r->count--;
    return index;
}

static inline void timer(machine *k, int64_t when)
{
    if (when < k->next_timer) k->next_timer = when;
}

/* The instruction's last step was in this cycle: others may rely on it PIPELINE cycles later. */
static inline void finish(machine *k, int32_t index, int64_t extra)
{
    const int queue = k->p->code[index].queue;
    ring *r = &k->finishing[queue];
    int64_t when = k->now + extra;
    if (r->count > 0) { /* in order */
        const int64_t before = r->when[(r->head + r->count - 1) % RING];
        if (before > when) when = before;
    }
    push(r, index, when);
    timer(k, when);
}

static inline int dma_engine(const machine *k, int channel) { return k->p->platform.units * UNIT_ENGINES + channel; }

/* ---- accounts: why a unit does nothing. They follow the machine and never lead it. ---- */

/* Whether the engine is the one whose steps are its queue's: array feed, window work, vector work, DMA. */
static inline bool is_main(const machine *k, int e)
{
    const unsigned mains = 1u << FEED | 1u << WINDOW_WORK | 1u << VECTOR_WORK;
    return e >= dma_engine(k, 0) || (mains >> e % UNIT_ENGINES & 1);
}

static inline int64_t *account_of(machine *k, int queue, int32_t index)
{
    const int64_t nodes = k->p->node_count, node = index >= 0 ? k->p->code[index].node : -1;
    return k->s->cycles + (queue * (nodes + 1) + (node < 0 ? nodes : node)) * CYCLE_KINDS;
}

/* The unit of the queue has no instruction, because of kind, or begins one (CYCLE_BUSY), in this cycle. */
static inline void settle(machine *k, int queue, int kind, int32_t index)
{
    activity *a = &k->activity_of[queue];
    if (a->kind == kind && a->index == index) return;
    if (a->kind != CYCLE_BUSY && k->now > a->since) {
        const int32_t node = a->index >= 0 ? k->p->code[a->index].node : -1;
        account_of(k, queue, a->index)[a->kind] += k->now - a->since;
        const mera_stall stall = {queue, a->index, node, a->kind, a->since, k->now};
        if (!vec_push(k->s->object.ctx, &k->s->stalls, stall)) k->out_of_memory = true;
    }
    *a = (activity){kind, index, k->now};
}

/* The unit of the queue has done the last step of its instruction in this cycle. */
static inline void settle_done(machine *k, int queue, const engine *x)
{
    activity *a = &k->activity_of[queue];
    int64_t *account = account_of(k, queue, x->index), busy = k->now + 1 - a->since;
    for (int kind = 0; kind < CYCLE_KINDS; kind++) {
        account[kind] += x->lost[kind];
        busy -= x->lost[kind];
    }
    account[CYCLE_BUSY] += busy;
    *a = (activity){CYCLE_IDLE, -1, k->now + 1};
    k->unsettled |= (uint64_t)1 << queue;
}

static inline void begin(machine *k, int e, int32_t index)
{
    engine *x = &k->engines[e];
    x->i = &k->p->code[index];
    x->index = index;
    x->words = -1;
    x->a = x->b = x->c = x->d = x->phase = x->left = x->stall = 0;
    x->flushing = false;
    x->begin = -1;
    memset(x->lost, 0, sizeof x->lost);
    if (is_main(k, e)) settle(k, x->i->queue, CYCLE_BUSY, index);
    for (int p = 0; p < 4; p++) x->ports[p].held[0] = x->ports[p].held[1] = -1;
    k->active[e >> 6] |= (uint64_t)1 << (e & 63);
}

static inline void idle(machine *k, int e)
{
    if (is_main(k, e)) settle_done(k, k->engines[e].i->queue, &k->engines[e]);
    k->engines[e].index = -1;
    k->active[e >> 6] &= ~((uint64_t)1 << (e & 63));
}

/* The instruction that engine e works on is done, its results to be seen `latency` cycles later; the engine is idle. */
static inline void retire(machine *k, int e, int64_t latency)
{
    const engine *x = &k->engines[e];
    mera_event *event = &k->event_of[x->index];
    event->start_cycle = x->begin;
    event->end_cycle = k->now + 1;
    event->stall_cycles = x->stall;
    finish(k, x->index, latency);
    idle(k, e);
}

/* ---- SRAM ---- */

static inline int bank_of(const machine *k, int64_t word)
{
    return (int)((word ^ (word >> k->bank_bits) ^ (word >> (2 * k->bank_bits))) & ((1 << k->bank_bits) - 1));
}

static inline void want(const machine *k, engine *x, port *p, int64_t address, int64_t bytes, bool write)
{
    if (bytes <= 0) return;
    const int64_t first = address >> k->word_shift, last = (address + bytes - 1) >> k->word_shift;
    for (int64_t w = first; w <= last && x->words < MAX_WORDS; w++) {
        if (p && (p->held[0] == w || p->held[1] == w)) continue;
        x->word[x->words] = w;
        x->write[x->words++] = write;
    }
    if (p) {
        p->held[0] = last > first ? last - 1 : p->held[1] == last ? p->held[0] : p->held[1];
        p->held[1] = last;
    }
}

/* Asks for what is still missing of the step; true when it is complete. */
static inline bool serve(machine *k, engine *x)
{
    int left = 0;
    for (int w = 0; w < x->words; w++) {
        const int64_t word = x->word[w];
        const int b = bank_of(k, word);
        if (k->bank_cycle[b] != k->now) {
            k->bank_cycle[b] = k->now;
            k->bank_word[b] = word;
            k->bank_read[b] = !x->write[w];
            k->words_served[x->write[w]]++;
        } else if (!(k->bank_word[b] == word && k->bank_read[b] && !x->write[w])) {
            x->word[left] = word;
            x->write[left++] = x->write[w];
        }
    }
    x->words = left;
    if (left == 0) k->progress = k->now;
    return left == 0;
}

/* Engines with request queues: each port may run DNA_PORT_QUEUE words ahead of what has been served, so that a lost turn at
 * one bank does not stop the others. True if the engine may issue a step in this cycle; `ports` of them are in use. */
static inline bool may_issue(machine *k, engine *x, int ports)
{
    if (x->words < 0) x->words = 0;
    if (x->words > 0) serve(k, x);
    if (!x->flushing && x->words <= ports * (DNA_PORT_QUEUE - 2)) return true;
    x->lost[CYCLE_BANK]++;
    x->stall += !x->flushing;
    return false;
}

static inline bool is_sync(const machine *k, int32_t index) { return k->p->code[index].opcode == DNA_OP_SYNC; }

/* One cycle of an engine that is at work, and handing the next instruction to one that is not. */
void step_loader(machine *k, int unit);
void step_feed(machine *k, int unit);
void step_drain(machine *k, int unit);
void step_window_loader(machine *k, int unit);
void step_window(machine *k, int unit);
void step_vector(machine *k, int unit);
void step_dma(machine *k, int channel);
void start_feed(machine *k, int unit);
void start_drain(machine *k, int unit);
void start_window(machine *k, int unit);
void start_dma(machine *k, int channel);

#endif
