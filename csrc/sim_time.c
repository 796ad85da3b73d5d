/* sim_time.c: when things happen. Cycle by cycle, every port of every unit asks the SRAM banks for its words; a bank
 * serves one word a cycle (any number of readers of that word), ports that lose ask again. DRAM moves its bytes a cycle,
 * shared by the channels. No cycle is added or taken away that does not follow from that and from dna_arch.def. */
#include "sim.h"

#define NEVER INT64_MAX
#define STUCK_CYCLES 1000000 /* without a step of any engine: longer than DRAM can take for a burst */
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
    int32_t index;               /* of the instruction; -1: idle */
    int64_t begin;               /* cycle of its first step */
    int64_t stall;
    int32_t words;               /* asked for and not yet served; in engines without queues -1: step not begun */
    bool flushing;               /* the last step is issued: the instruction ends when all words are served */
    int64_t word[MAX_WORDS];
    bool write[MAX_WORDS];
    /* counters of the instruction */
    int64_t a, b, c, d, phase, left;
    int64_t ready;               /* DMA: first data; window: groups loaded */
    port ports[4];
} engine;

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
    int banks_used;                      /* accumulator banks */
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
    ring requests[QUEUE_UNITS];   /* DMA requests in flight; when = first data */
    int64_t dram_credit, dram_rate; /* 2^-20 bytes */
    int64_t bus_used;
    mera_event *event_of;         /* an instruction each */
    int64_t completed;
    int64_t progress; /* the last cycle in which some engine finished a step */
} machine;

static bool push(ring *r, int32_t index, int64_t when)
{
    if (r->count == RING) return false;
    const int at = (r->head + r->count++) % RING;
    r->at[at] = index;
    r->when[at] = when;
    return true;
}

static int32_t pop(ring *r)
{
    const int32_t index = r->at[r->head];
    r->head = (r->head + 1) % RING;
    r->count--;
    return index;
}

static void timer(machine *k, int64_t when)
{
    if (when < k->next_timer) k->next_timer = when;
}

/* The instruction's last step was in this cycle: others may rely on it PIPELINE cycles later. */
static void finish(machine *k, int32_t index, int64_t extra)
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

static void begin(machine *k, int e, int32_t index)
{
    engine *x = &k->engines[e];
    x->i = &k->p->code[index];
    x->index = index;
    x->words = -1;
    x->a = x->b = x->c = x->d = x->phase = x->left = x->stall = 0;
    x->flushing = false;
    x->begin = -1;
    for (int p = 0; p < 4; p++) x->ports[p].held[0] = x->ports[p].held[1] = -1;
    k->active[e >> 6] |= (uint64_t)1 << (e & 63);
}

static void idle(machine *k, int e)
{
    k->engines[e].index = -1;
    k->active[e >> 6] &= ~((uint64_t)1 << (e & 63));
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
    if (x->flushing) return false;
    if (x->words <= ports * (DNA_PORT_QUEUE - 2)) return true;
    x->stall++;
    return false;
}

/* ---- array ---- */

static int64_t tile_count(const machine *k, const int64_t *f) { return f[CONV_kh] * f[CONV_kw] * ceil_div(f[CONV_run], k->array); }

/* Loader: phase 0 parameters and table, 2W bytes a cycle; phase 1 tiles, two rows a cycle, one tile ahead of the feed. */
static void step_loader(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + LOADER;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f;
    const int64_t params = f[CONV_last] ? DNA_PARAM_BYTES * f[CONV_co] : 0, wide = 2 * k->array;
    if (x->phase == 0) {
        if (x->words < 0) {
            x->words = 0;
            if (x->a < params) want(k, x, NULL, f[CONV_param] + x->a, min_i64(wide, params - x->a), false);
            else if (f[CONV_last] && f[CONV_lut] && x->a < params + 256) want(k, x, NULL, f[CONV_table] + x->a - params, min_i64(wide, 256), false);
        }
        if (!serve(k, x)) {
            x->stall++;
            return;
        }
        x->words = -1;
        x->a += x->a < params ? min_i64(wide, params - x->a) : wide;
        if (x->a >= params + (f[CONV_last] && f[CONV_lut] ? 256 : 0)) {
            x->phase = 1;
            x->a = x->b = 0; /* tile, row */
            push(&u->to_feed, x->index, 0);
        }
        return;
    }
    if (x->b == 0 && x->words < 0 && u->tiles_loaded != u->tiles_started) return; /* the shadow is full */
    if (x->words < 0) {
        const int64_t chunks = ceil_div(f[CONV_run], k->array), tap = x->a / chunks, chunk = x->a % chunks;
        const int64_t length = min_i64(k->array, f[CONV_run] - chunk * k->array), row = f[CONV_w_row] ? f[CONV_w_row] : length;
        const int64_t base = f[CONV_w] + tap * f[CONV_w_tap] + chunk * f[CONV_w_chunk] + x->b * row;
        x->words = 0;
        want(k, x, &x->ports[0], base, length, false);
        if (x->b + 1 < f[CONV_co]) want(k, x, &x->ports[0], base + row, length, false);
    }
    if (!serve(k, x)) {
        x->stall++;
        return;
    }
    x->words = -1;
    x->b += DNA_WEIGHT_ROWS_PER_CYCLE;
    if (x->b < f[CONV_co]) return;
    x->b = 0;
    x->a++;
    u->tiles_loaded++;
    if (x->a == tile_count(k, f)) {
        idle(k, e);
        k->recheck = true; /* the next instruction may enter */
    }
}

static bool is_sync(const machine *k, int32_t index) { return k->p->code[index].opcode == DNA_OP_SYNC; }

static void start_feed(machine *k, int unit)
{
    unit_state *u = &k->units[unit];
    const int e = unit * UNIT_ENGINES + FEED;
    engine *x = &k->engines[e];
    if (x->index < 0) {
        while (u->to_feed.count > 0 && is_sync(k, u->to_feed.at[u->to_feed.head]))
            push(&u->to_drain, pop(&u->to_feed), k->now); /* completes in its turn, behind the drains */
        if (u->to_feed.count == 0) return;
        const int32_t index = u->to_feed.at[u->to_feed.head];
        const instr *i = &k->p->code[index];
        if (u->tiles_loaded == u->tiles_started) return;
        if (i->f[CONV_first]) {
            if (u->banks_used == 2) return;
            u->banks_used++;
        }
        pop(&u->to_feed);
        begin(k, e, index);
        u->feed_has_tile = false;
    }
    if (!u->feed_has_tile && u->tiles_loaded != u->tiles_started) {
        u->tiles_started++;
        u->feed_has_tile = true;
    }
}

static void step_feed(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + FEED;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f;
    if (!u->feed_has_tile) return;
    if (x->begin < 0) x->begin = k->now;
    if (may_issue(k, x, 1)) { /* a: tile, b: output row, c: output column */
        const int64_t chunks = ceil_div(f[CONV_run], k->array), tap = x->a / chunks, chunk = x->a % chunks;
        const int64_t row = f[CONV_iy0] + x->b * f[CONV_sy] + tap / f[CONV_kw] * f[CONV_dy];
        const int64_t p = f[CONV_ix0] + x->c * f[CONV_sx] + tap % f[CONV_kw] * f[CONV_dx] + chunk * k->array;
        const int64_t low = max_i64(p, 0), high = min_i64(p + min_i64(k->array, f[CONV_run] - chunk * k->array), f[CONV_in_row_bytes]);
        if (row >= 0 && row < f[CONV_in_rows]) want(k, x, &x->ports[0], f[CONV_in] + row * f[CONV_in_pitch] + low, high - low, false);
        serve(k, x);
        if (++x->c < f[CONV_ow]) return;
        x->c = 0;
        if (++x->b < f[CONV_oh]) return;
        x->b = 0;
        x->flushing = ++x->a == tile_count(k, f);
        if (!x->flushing) u->feed_has_tile = false;
    }
    if (!x->flushing || x->words > 0) return;
    u->feed_has_tile = false;
    mera_event *event = &k->event_of[x->index];
    event->start_cycle = x->begin;
    event->end_cycle = k->now + 1;
    event->stall_cycles = x->stall;
    push(&u->to_drain, x->index, k->now + DNA_PIPELINE_CYCLES);
    timer(k, k->now + DNA_PIPELINE_CYCLES);
    idle(k, e);
}

static void start_drain(machine *k, int unit)
{
    unit_state *u = &k->units[unit];
    const int e = unit * UNIT_ENGINES + DRAIN;
    while (k->engines[e].index < 0 && u->to_drain.count > 0) {
        const int64_t when = u->to_drain.when[u->to_drain.head];
        if (when > k->now) {
            timer(k, when);
            return;
        }
        const int32_t index = pop(&u->to_drain);
        if (!is_sync(k, index) && k->p->code[index].f[CONV_last]) begin(k, e, index);
        else finish(k, index, 0);
    }
}

static void step_drain(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + DRAIN;
    engine *x = &k->engines[e];
    const int64_t *f = x->i->f;
    if (may_issue(k, x, f[CONV_add] ? 2 : 1)) {
        if (f[CONV_add]) want(k, x, &x->ports[0], f[CONV_res] + x->b * f[CONV_res_pitch] + x->c * f[CONV_res_step], f[CONV_co], false);
        want(k, x, NULL, f[CONV_out] + x->b * f[CONV_out_pitch] + x->c * f[CONV_out_step], f[CONV_co], true);
        serve(k, x);
        if (++x->c < f[CONV_ow]) return;
        x->c = 0;
        x->flushing = ++x->b == f[CONV_oh];
    }
    if (!x->flushing || x->words > 0) return;
    k->units[unit].banks_used--;
    k->event_of[x->index].stall_cycles += x->stall;
    finish(k, x->index, DNA_PIPELINE_CYCLES);
    idle(k, e);
}

/* ---- window ---- */

static int64_t group_count(const machine *k, const int64_t *f) { return ceil_div(f[WINDOW_run], k->array); }

/* Loader: a word a cycle; the table, then taps and parameters of each group, one group ahead. */
static void step_window_loader(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + WINDOW_LOADER;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f, taps = f[WINDOW_kh] * f[WINDOW_kw], table = f[WINDOW_lut] ? ceil_div(256, k->array) : 0;
    if (x->phase == 0) { /* in front of the first group */
        if (x->a < table) {
            if (x->words < 0) {
                x->words = 0;
                want(k, x, NULL, f[WINDOW_table] + x->a * k->array, k->array, false);
            }
            if (!serve(k, x)) {
                x->stall++;
                return;
            }
            x->words = -1;
            x->a++;
            return;
        }
        x->phase = 1;
        x->a = x->b = 0; /* group, word of the group */
        push(&u->to_window, x->index, 0);
    }
    if (f[WINDOW_mode] == 0) {
        if (x->b == 0 && x->words < 0 && u->groups_loaded != u->groups_started) return;
        const int64_t words = taps + DNA_PARAM_BYTES, channel = x->a * k->array % f[WINDOW_channels];
        if (x->words < 0) {
            /* A period shorter than the word comes in one piece and is repeated by the lanes. */
            const int64_t count = min_i64(min_i64(k->array, f[WINDOW_run] - x->a * k->array), f[WINDOW_channels] - channel);
            x->words = 0;
            if (x->b < taps) want(k, x, NULL, f[WINDOW_w] + x->b * f[WINDOW_channels] + channel, count, false);
            else want(k, x, NULL, f[WINDOW_param] + (x->b - taps) * f[WINDOW_channels] + channel, count, false);
        }
        if (!serve(k, x)) {
            x->stall++;
            return;
        }
        x->words = -1;
        if (++x->b < words) return;
    } else if (u->groups_loaded != u->groups_started) {
        return;
    }
    x->b = 0;
    u->groups_loaded++;
    if (++x->a == group_count(k, f)) {
        idle(k, e);
        k->recheck = true;
    }
}

static void start_window(machine *k, int unit)
{
    unit_state *u = &k->units[unit];
    const int e = unit * UNIT_ENGINES + WINDOW_WORK;
    if (k->engines[e].index >= 0) return;
    while (u->to_window.count > 0 && is_sync(k, u->to_window.at[u->to_window.head])) finish(k, pop(&u->to_window), 0);
    if (u->to_window.count == 0 || u->groups_loaded == u->groups_started) return;
    begin(k, e, pop(&u->to_window));
    k->engines[e].ready = 0;
}

/* a: group, b: output column, c: output row, d: kernel step (kx * triples + triple). */
static void step_window(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + WINDOW_WORK;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f, triples = ceil_div(f[WINDOW_kh], DNA_WINDOW_ROWS);
    if (!x->ready) {
        if (u->groups_loaded == u->groups_started) return;
        u->groups_started++;
        x->ready = 1;
    }
    if (x->begin < 0) x->begin = k->now;
    const int64_t lanes = min_i64(k->array, f[WINDOW_run] - x->a * k->array);
    if (may_issue(k, x, DNA_WINDOW_ROWS + 1)) {
        const int64_t kx = x->d / triples, first = x->d % triples * DNA_WINDOW_ROWS;
        const int64_t p = f[WINDOW_ix0] + x->b * f[WINDOW_sx] + kx * f[WINDOW_dx] + x->a * k->array;
        const int64_t low = max_i64(p, 0), high = min_i64(p + lanes, f[WINDOW_in_row_bytes]);
        for (int64_t r = 0; r < DNA_WINDOW_ROWS && first + r < f[WINDOW_kh]; r++) {
            const int64_t row = f[WINDOW_iy0] + x->c * f[WINDOW_sy] + (first + r) * f[WINDOW_dy];
            if (row >= 0 && row < f[WINDOW_in_rows]) want(k, x, &x->ports[r], f[WINDOW_in] + row * f[WINDOW_in_pitch] + low, high - low, false);
        }
        if (f[WINDOW_last] && x->d + 1 == f[WINDOW_kw] * triples)
            want(k, x, NULL, f[WINDOW_out] + x->c * f[WINDOW_out_pitch] + x->b * f[WINDOW_out_step] + x->a * k->array, lanes, true);
        serve(k, x);
        if (++x->d < f[WINDOW_kw] * triples) return;
        x->d = 0;
        if (++x->c < f[WINDOW_oh]) return;
        x->c = 0;
        if (++x->b < f[WINDOW_ow]) return;
        x->b = 0;
        x->flushing = ++x->a == group_count(k, f);
        if (!x->flushing) x->ready = 0;
    }
    if (!x->flushing || x->words > 0) return;
    mera_event *event = &k->event_of[x->index];
    event->start_cycle = x->begin;
    event->end_cycle = k->now + 1;
    event->stall_cycles = x->stall;
    finish(k, x->index, DNA_PIPELINE_CYCLES);
    idle(k, e);
}

/* ---- vector ---- */

/* a: word of the run; b: run number; phase 0: table. */
static void step_vector(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + VECTOR_WORK;
    engine *x = &k->engines[e];
    const int64_t *f = x->i->f;
    if (x->begin < 0) x->begin = k->now;
    if (may_issue(k, x, 3)) {
        const bool table = x->phase == 0 && f[VECTOR_lut];
        if (x->phase == 0) {
            if (table) want(k, x, NULL, f[VECTOR_table] + x->left, min_i64(k->array, 256), false);
            else x->phase = 1;
        }
        if (x->phase == 1) {
            if (x->a == 0) { /* addresses of this run */
                int64_t rest = x->b;
                x->c = x->d = x->left = 0;
                for (int l = 3; l >= 0; l--) {
                    const int64_t at = rest % f[VECTOR_n0 + l];
                    rest /= f[VECTOR_n0 + l];
                    x->c += at * f[VECTOR_a0 + l];
                    x->d += at * f[VECTOR_b0 + l];
                    x->left += at * f[VECTOR_o0 + l];
                }
            }
            const int64_t from = x->a * k->array, bytes = min_i64(k->array, f[VECTOR_run] - from);
            if (f[VECTOR_mode] != 1) want(k, x, &x->ports[0], f[VECTOR_a] + x->c + from, bytes, false);
            if (f[VECTOR_mode] >= 2) want(k, x, &x->ports[1], f[VECTOR_b] + x->d + (f[VECTOR_b_scalar] ? 0 : from), f[VECTOR_b_scalar] ? 1 : bytes, false);
            want(k, x, NULL, f[VECTOR_out] + x->left + from, bytes, true);
        }
        serve(k, x);
        if (table) {
            x->left += k->array;
            if (x->left >= 256) x->phase = 1;
            return;
        }
        if (++x->a < ceil_div(f[VECTOR_run], k->array)) return;
        x->a = 0;
        x->flushing = ++x->b == f[VECTOR_n0] * f[VECTOR_n1] * f[VECTOR_n2] * f[VECTOR_n3];
    }
    if (!x->flushing || x->words > 0) return;
    mera_event *event = &k->event_of[x->index];
    event->start_cycle = x->begin;
    event->end_cycle = k->now + 1;
    event->stall_cycles = x->stall;
    finish(k, x->index, DNA_PIPELINE_CYCLES);
    idle(k, e);
    k->recheck = true;
}

/* ---- DMA ---- */

static int dma_engine(const machine *k, int channel) { return k->p->platform.units * UNIT_ENGINES + channel; }

static void start_dma(machine *k, int channel)
{
    const int e = dma_engine(k, channel);
    ring *r = &k->requests[channel];
    if (k->engines[e].index >= 0 || r->count == 0) return;
    if (r->when[r->head] > k->now) {
        timer(k, r->when[r->head]);
        return;
    }
    const int32_t index = pop(r);
    if (is_sync(k, index)) {
        finish(k, index, 0);
        return;
    }
    begin(k, e, index);
    k->engines[e].left = -1;
    k->recheck = true; /* one more request may be in flight */
}

/* a: run number (after merging runs that follow each other), b: position in the run. */
static void step_dma(machine *k, int channel)
{
    const int e = dma_engine(k, channel);
    engine *x = &k->engines[e];
    const int64_t *f = x->i->f, burst = (int64_t)DNA_DRAM_BURST_BYTES << 20;
    const bool load = x->i->opcode == DNA_OP_LOAD;
    if (x->begin < 0) x->begin = k->now;
    for (;;) {
        if (x->words < 0) {
            if (k->dram_credit < burst) return;
            int64_t d = f[LOAD_dram], m = f[LOAD_sram], rest = x->a;
            for (int l = 2; l >= 0; l--) {
                d += rest % f[LOAD_n0 + l] * f[LOAD_d0 + l];
                m += rest % f[LOAD_n0 + l] * f[LOAD_s0 + l];
                rest /= f[LOAD_n0 + l];
            }
            const int64_t from = d + x->b, to = min_i64(d + f[LOAD_run], (from / DNA_DRAM_BURST_BYTES + 1) * DNA_DRAM_BURST_BYTES);
            /* A run that goes on in the burst of the one before needs no new one. */
            if (x->b > 0 || from / DNA_DRAM_BURST_BYTES != x->left) {
                k->dram_credit -= burst;
                k->bus_used += DNA_DRAM_BURST_BYTES;
                x->d += DNA_DRAM_BURST_BYTES;
            }
            x->left = (to - 1) / DNA_DRAM_BURST_BYTES;
            x->words = 0;
            want(k, x, load ? NULL : &x->ports[0], m + x->b, to - from, load);
            x->b = to - d;
        }
        if (!serve(k, x)) {
            x->stall++;
            return;
        }
        x->words = -1;
        if (x->b < f[LOAD_run]) continue;
        x->b = 0;
        if (++x->a < f[LOAD_n0] * f[LOAD_n1] * f[LOAD_n2]) continue;
        mera_event *event = &k->event_of[x->index];
        event->start_cycle = x->begin;
        event->end_cycle = k->now + 1;
        event->stall_cycles = x->stall;
        mera_layer_stats *layer = x->i->node >= 0 ? &k->s->layers[x->i->node] : NULL;
        *(load ? &k->s->stats.dram_bytes_read : &k->s->stats.dram_bytes_written) += x->d;
        if (layer) *(load ? &layer->dram_bytes_read : &layer->dram_bytes_written) += x->d;
        finish(k, x->index, load ? DNA_PIPELINE_CYCLES : k->p->platform.dram_latency_cycles);
        idle(k, e);
        return;
    }
}

/* ---- queues ---- */

static bool waits_met(const machine *k, const instr *i)
{
    for (int w = 0; w < i->wait_count; w++)
        if (k->done[i->waits[w].queue] < i->waits[w].count) return false;
    return true;
}

/* Whether the unit can take the queue's next instruction into its first stage. */
static bool can_enter(const machine *k, int queue)
{
    const int unit = (queue - QUEUE_UNITS) / UNIT_QUEUES;
    if (k->finishing[queue].count >= RING - 16) return false;
    switch (queue_kind(queue)) {
    case UNIT_ARRAY: return k->engines[unit * UNIT_ENGINES + LOADER].index < 0 && k->units[unit].to_feed.count < RING - 2;
    case UNIT_WINDOW: return k->engines[unit * UNIT_ENGINES + WINDOW_LOADER].index < 0 && k->units[unit].to_window.count < RING - 2;
    case UNIT_VECTOR: return k->engines[unit * UNIT_ENGINES + VECTOR_WORK].index < 0;
    default: return k->requests[queue].count + (k->engines[dma_engine(k, queue)].index >= 0) < DNA_DMA_IN_FLIGHT;
    }
}

static void enter(machine *k, int queue, int32_t index)
{
    const instr *i = &k->p->code[index];
    const int unit = (queue - QUEUE_UNITS) / UNIT_QUEUES;
    if (i->opcode == DNA_OP_SYNC) { /* goes the way of all others, so that the queue completes in order */
        k->event_of[index].start_cycle = k->now;
        k->event_of[index].end_cycle = k->now + 1;
        if (queue < QUEUE_UNITS) push(&k->requests[queue], index, k->now);
        else if (queue_kind(queue) == UNIT_ARRAY) push(&k->units[unit].to_feed, index, 0);
        else if (queue_kind(queue) == UNIT_WINDOW) push(&k->units[unit].to_window, index, 0);
        else finish(k, index, 1);
        return;
    }
    switch (queue_kind(queue)) {
    case UNIT_ARRAY: begin(k, unit * UNIT_ENGINES + LOADER, index); break;
    case UNIT_WINDOW: begin(k, unit * UNIT_ENGINES + WINDOW_LOADER, index); break;
    case UNIT_VECTOR: begin(k, unit * UNIT_ENGINES + VECTOR_WORK, index); break;
    default: {
        const int64_t when = k->now + (i->opcode == DNA_OP_LOAD ? k->p->platform.dram_latency_cycles : 0);
        push(&k->requests[queue], index, when);
        timer(k, when);
    }
    }
}

static void issue(machine *k, int queues)
{
    for (int q = 0; q < queues; q++) {
        while (k->next[q] < k->length[q]) {
            const int32_t index = k->list[q][k->next[q]];
            if (k->issue_at[q] == NEVER) {
                if (!waits_met(k, &k->p->code[index])) break;
                k->issue_at[q] = k->now + DNA_ISSUE_CYCLES;
            }
            if (k->issue_at[q] > k->now) {
                timer(k, k->issue_at[q]);
                break;
            }
            if (!can_enter(k, q)) break;
            k->next[q]++;
            k->issue_at[q] = NEVER;
            enter(k, q, index);
            /* The decoder looks one instruction ahead: the next one's issue time runs from now. */
        }
    }
}

static void fire_timers(machine *k, int queues)
{
    k->next_timer = NEVER;
    for (int q = 0; q < queues; q++) {
        ring *r = &k->finishing[q];
        while (r->count > 0 && r->when[r->head] <= k->now) {
            k->s->completion_order[k->completed++] = pop(r);
            k->done[q]++;
        }
        if (r->count > 0) timer(k, r->when[r->head]);
    }
    k->recheck = true;
}

static void step(machine *k, int e)
{
    const int units = k->p->platform.units * UNIT_ENGINES, unit = e / UNIT_ENGINES;
    if (e >= units) {
        step_dma(k, e - units);
        return;
    }
    switch (e % UNIT_ENGINES) {
    case LOADER: step_loader(k, unit); break;
    case FEED: step_feed(k, unit); break;
    case DRAIN: step_drain(k, unit); break;
    case WINDOW_LOADER: step_window_loader(k, unit); break;
    case WINDOW_WORK: step_window(k, unit); break;
    default: step_vector(k, unit); break;
    }
}

/* Engines take turns at being first, so that none starves: the order rotates by one a cycle. */
static void step_all(machine *k)
{
    const int start = (int)(k->now % k->engine_count), units = k->p->platform.units * UNIT_ENGINES;
    uint64_t now[2] = {k->active[0], k->active[1]};
    static const int dma_order[QUEUE_UNITS] = {QUEUE_LOAD, QUEUE_STORE, QUEUE_CONST};
    for (int turn = 0; turn < 2; turn++)
        for (int half = 0; half < 2; half++) {
            uint64_t bits = now[half];
            const int base = half * 64;
            for (; bits; bits &= bits - 1) {
                const int e = base + __builtin_ctzll(bits);
                if (e >= units || (e >= start) == (turn == 1)) continue;
                step(k, e);
            }
        }
    for (int c = 0; c < QUEUE_UNITS; c++) {
        const int e = dma_engine(k, dma_order[c]);
        if (now[e >> 6] >> (e & 63) & 1) step(k, e);
    }
}

static mera_status deadlock(machine *k, int queues)
{
    for (int q = 0; q < queues; q++) {
        if (k->next[q] >= k->length[q]) continue;
        const int32_t index = k->list[q][k->next[q]];
        char name[24];
        queue_print_name(name, sizeof name, q);
        return fail(k->s->object.ctx, MERA_DEADLOCK, "the program stops at cycle %lld: queue %s waits at instruction %d (%s) for completions that never come",
                    (long long)k->now, name, index, isa_table(k->p->code[index].opcode)->name);
    }
    return fail(k->s->object.ctx, MERA_DEADLOCK, "the program stops at cycle %lld before all instructions are complete", (long long)k->now);
}

static mera_status run(machine *k)
{
    const int queues = queue_count(k->p->platform.units), units = k->p->platform.units;
    const int64_t credit_limit = k->dram_rate + ((int64_t)DNA_DRAM_BURST_BYTES << 20);
    while (k->completed < k->p->code_count) {
        if (k->now >= k->next_timer) fire_timers(k, queues);
        if (k->recheck) {
            k->recheck = false;
            issue(k, queues);
        }
        for (int u = 0; u < units; u++) {
            const unit_state *x = &k->units[u];
            if (x->to_feed.count || x->tiles_loaded != x->tiles_started) start_feed(k, u);
            if (x->to_drain.count) start_drain(k, u);
            if (x->to_window.count) start_window(k, u);
        }
        for (int c = 0; c < QUEUE_UNITS; c++)
            if (k->requests[c].count) start_dma(k, c);
        if (!k->active[0] && !k->active[1]) {
            if (k->recheck) continue;
            if (k->next_timer == NEVER) return k->completed < k->p->code_count ? deadlock(k, queues) : MERA_OK;
            const int64_t skipped = k->next_timer - k->now;
            k->dram_credit = min_i64(credit_limit, k->dram_credit + min_i64(skipped, 1000) * k->dram_rate);
            k->now = k->progress = k->next_timer;
            continue;
        }
        const int64_t used = k->bus_used;
        step_all(k);
        if (k->bus_used != used) k->s->stats.dma_busy_cycles++;
        k->dram_credit = min_i64(credit_limit, k->dram_credit + k->dram_rate);
        k->now++;
        if (k->now - k->progress > STUCK_CYCLES) return deadlock(k, queues);
    }
    return MERA_OK;
}

/* ---- results ---- */

static void account(machine *k, const instr *i, int32_t index)
{
    mera_simulator *s = k->s;
    mera_event *e = &k->event_of[index];
    const int64_t busy = e->end_cycle - e->start_cycle;
    int64_t *total = NULL, *mine = NULL;
    mera_layer_stats *layer = i->node >= 0 ? &s->layers[i->node] : NULL;
    switch (queue_kind(i->queue)) {
    case UNIT_ARRAY:
        total = &s->stats.array_busy_cycles;
        mine = layer ? &layer->array_cycles : NULL;
        break;
    case UNIT_WINDOW:
        total = &s->stats.window_busy_cycles;
        mine = layer ? &layer->window_cycles : NULL;
        break;
    case UNIT_VECTOR:
        total = &s->stats.vector_busy_cycles;
        mine = layer ? &layer->vector_cycles : NULL;
        break;
    default: break;
    }
    if (i->opcode == DNA_OP_SYNC) return;
    if (total) *total += busy;
    if (mine) *mine += busy;
    s->stats.bank_conflict_cycles += e->stall_cycles;
    if (layer && i->queue != QUEUE_CONST) {
        layer->start_cycle = min_i64(layer->start_cycle, e->start_cycle);
        layer->end_cycle = max_i64(layer->end_cycle, e->end_cycle);
    }
}

static mera_status time_with(mera_simulator *s, machine *k)
{
    const mera_program *p = s->program;
    k->s = s;
    k->p = p;
    k->array = p->platform.array;
    while ((int64_t)1 << k->word_shift < k->array) k->word_shift++;
    while (1 << k->bank_bits < p->platform.sram_banks) k->bank_bits++;
    for (int b = 0; b < 256; b++) k->bank_cycle[b] = -1;
    k->dram_rate = (int64_t)(p->platform.dram_gbps * 1e3 / p->platform.clock_mhz * (1 << 20));
    k->engine_count = p->platform.units * UNIT_ENGINES + QUEUE_UNITS;
    for (int e = 0; e < k->engine_count; e++) k->engines[e].index = -1;
    k->next_timer = NEVER;
    k->recheck = true;
    const int queues = queue_count(p->platform.units);
    int32_t *lists = arena_array(&s->memory, (size_t)p->code_count + 1, sizeof *lists);
    k->event_of = arena_array(&s->memory, (size_t)p->code_count + 1, sizeof *k->event_of);
    s->events = arena_array(&s->memory, (size_t)p->code_count + 1, sizeof *s->events);
    s->layers = arena_array(&s->memory, (size_t)p->node_count + 1, sizeof *s->layers);
    s->completion_order = arena_array(&s->memory, (size_t)p->code_count + 1, sizeof *s->completion_order);
    if (!lists || !k->event_of || !s->events || !s->layers || !s->completion_order) return out_of_memory(s->object.ctx);
    for (int64_t i = 0; i < p->code_count; i++) k->length[p->code[i].queue]++;
    for (int q = 0; q < queues; q++) {
        k->list[q] = lists;
        lists += k->length[q];
        k->length[q] = 0;
        k->issue_at[q] = NEVER;
    }
    for (int64_t i = 0; i < p->code_count; i++) k->list[p->code[i].queue][k->length[p->code[i].queue]++] = (int32_t)i;
    for (int32_t n = 0; n < p->node_count; n++) s->layers[n] = (mera_layer_stats){.node = n, .start_cycle = NEVER, .macs = p->nodes[n].macs};
    s->stats = (mera_stats){.sram_peak_bytes = p->sram_peak, .instructions = p->code_count};
    TRY(run(k));
    s->stats.cycles = k->now;
    for (int32_t n = 0; n < p->node_count; n++) s->stats.macs += p->nodes[n].macs;
    for (int64_t i = 0; i < p->code_count; i++) {
        mera_event *e = &k->event_of[i];
        e->queue = p->code[i].queue;
        e->node = p->code[i].node;
        e->instruction = (int32_t)i;
        e->opcode = p->code[i].opcode;
        account(k, &p->code[i], (int32_t)i);
        if (e->opcode != DNA_OP_SYNC) s->events[s->event_count++] = *e;
    }
    for (int32_t n = 0; n < p->node_count; n++)
        if (s->layers[n].start_cycle == NEVER) s->layers[n].start_cycle = 0;
    return MERA_OK;
}

mera_status time_program(mera_simulator *s)
{
    machine *k = ctx_alloc(s->object.ctx, sizeof *k);
    if (!k) return out_of_memory(s->object.ctx);
    memset(k, 0, sizeof *k);
    const mera_status status = time_with(s, k);
    ctx_free(s->object.ctx, k);
    return status;
}
