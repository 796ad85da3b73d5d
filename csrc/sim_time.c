/* sim_time.c: when things happen. Cycle by cycle, every port of every unit asks the SRAM banks for its words; a bank
 * serves one word a cycle (any number of readers of that word), ports that lose ask again. DRAM moves its bytes a cycle,
 * shared by the channels. No cycle is added or taken away that does not follow from that and from dna_arch.def. */
#include "sim_machine.h"

#define STUCK_CYCLES 1000000 /* without a step of any engine: longer than DRAM can take for a burst */

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
    case UNIT_ARRAY:
        return k->engines[unit * UNIT_ENGINES + LOADER].index < 0 && k->units[unit].to_feed.count < RING - 2;
    case UNIT_WINDOW:
        return k->engines[unit * UNIT_ENGINES + WINDOW_LOADER].index < 0 && k->units[unit].to_window.count < RING - 2;
    case UNIT_VECTOR:
        return k->engines[unit * UNIT_ENGINES + VECTOR_WORK].index < 0;
    default:
        return k->requests[queue].count + (k->engines[dma_engine(k, queue)].index >= 0) < DNA_DMA_IN_FLIGHT;
    }
}

static void enter(machine *k, int queue, int32_t index)
{
    const instr *i = &k->p->code[index];
    const int unit = (queue - QUEUE_UNITS) / UNIT_QUEUES;
    if (i->opcode == DNA_OP_SYNC) { /* goes the way of all others, so that the queue completes in order */
        k->event_of[index].start_cycle = k->now;
        k->event_of[index].end_cycle = k->now + 1;
        if (queue < QUEUE_UNITS)
            push(&k->requests[queue], index, k->now);
        else if (queue_kind(queue) == UNIT_ARRAY)
            push(&k->units[unit].to_feed, index, 0);
        else if (queue_kind(queue) == UNIT_WINDOW)
            push(&k->units[unit].to_window, index, 0);
        else
            finish(k, index, 1);
        return;
    }
    switch (queue_kind(queue)) {
    case UNIT_ARRAY:
        begin(k, unit * UNIT_ENGINES + LOADER, index);
        break;
    case UNIT_WINDOW:
        begin(k, unit * UNIT_ENGINES + WINDOW_LOADER, index);
        break;
    case UNIT_VECTOR:
        begin(k, unit * UNIT_ENGINES + VECTOR_WORK, index);
        break;
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

/* ---- why a unit has no instruction ---- */

static bool waits_for_dram(const machine *k, const instr *i, int depth);

/* Whether the transfer that makes a channel's count what it should be is held up by a unit, not by DRAM. */
static bool held_up(const machine *k, int channel, int32_t count, int depth)
{
    if (k->next[channel] >= count || k->issue_at[channel] != NEVER || depth == 0) return false;
    const instr *head = &k->p->code[k->list[channel][k->next[channel]]];
    return !waits_met(k, head) && !waits_for_dram(k, head, depth - 1);
}

/* Whether one of the instruction's unmet waits is for a transfer under way, or behind others that are. */
static bool waits_for_dram(const machine *k, const instr *i, int depth)
{
    for (int w = 0; w < i->wait_count; w++) {
        const int q = i->waits[w].queue;
        if (q < QUEUE_UNITS && k->done[q] < i->waits[w].count && !held_up(k, q, i->waits[w].count, depth)) return true;
    }
    return false;
}

static void settle_next(machine *k, int queue)
{
    if (k->next[queue] >= k->length[queue]) {
        settle(k, queue, CYCLE_IDLE, -1);
        return;
    }
    const int32_t index = k->list[queue][k->next[queue]];
    const instr *i = &k->p->code[index];
    if (k->issue_at[queue] != NEVER || waits_met(k, i))
        settle(k, queue, CYCLE_ISSUE, index);
    else
        settle(k, queue, waits_for_dram(k, i, QUEUE_UNITS) ? CYCLE_DRAM : CYCLE_DEPENDENCY, index);
}

/* Gives the queue's unit, if it has no instruction, the reason that it has in this cycle. */
static void settle_queue(machine *k, int queue)
{
    const int unit = (queue - QUEUE_UNITS) / UNIT_QUEUES, kind = queue_kind(queue);
    const engine *e = kind < 0 ? k->engines : k->engines + unit * UNIT_ENGINES;
    const bool is_array = kind == UNIT_ARRAY;
    if (kind < 0) {
        if (k->engines[dma_engine(k, queue)].index >= 0) return;
        const ring *r = &k->requests[queue];
        if (r->count > 0) {
            settle(k, queue, CYCLE_DRAM, r->at[r->head]);
            return;
        }
    } else if (kind == UNIT_VECTOR) {
        if (e[VECTOR_WORK].index >= 0) return;
    } else {
        const ring *r = is_array ? &k->units[unit].to_feed : &k->units[unit].to_window;
        if (e[is_array ? FEED : WINDOW_WORK].index >= 0 || r->count > 0) return; /* start_feed, start_window see to it */
        const int32_t loading = e[is_array ? LOADER : WINDOW_LOADER].index;
        if (loading >= 0) {
            settle(k, queue, CYCLE_FILL, loading);
            return;
        }
    }
    settle_next(k, queue);
}

static void settle_queues(machine *k)
{
    for (uint64_t left = k->unsettled; left; left &= left - 1) settle_queue(k, __builtin_ctzll(left));
    k->unsettled = 0;
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
    case LOADER:
        step_loader(k, unit);
        break;
    case FEED:
        step_feed(k, unit);
        break;
    case DRAIN:
        step_drain(k, unit);
        break;
    case WINDOW_LOADER:
        step_window_loader(k, unit);
        break;
    case WINDOW_WORK:
        step_window(k, unit);
        break;
    default:
        step_vector(k, unit);
        break;
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
        return fail(k->s->object.ctx, MERA_DEADLOCK,
                    "the program stops at cycle %lld: queue %s waits at instruction %d (%s) for completions that never come",
                    (long long)k->now, name, index, isa_table(k->p->code[index].opcode)->name);
    }
    return fail(k->s->object.ctx, MERA_DEADLOCK, "the program stops at cycle %lld before all instructions are complete",
                (long long)k->now);
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
            k->unsettled = ((uint64_t)1 << queues) - 1;
        }
        for (int u = 0; u < units; u++) {
            const unit_state *x = &k->units[u];
            if (x->to_feed.count || x->tiles_loaded != x->tiles_started) start_feed(k, u);
            if (x->to_drain.count) start_drain(k, u);
            if (x->to_window.count) start_window(k, u);
        }
        for (int c = 0; c < QUEUE_UNITS; c++)
            if (k->requests[c].count) start_dma(k, c);
        if (k->unsettled) settle_queues(k);
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
    default:
        break;
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
    s->cycle_count = (int64_t)queues * (p->node_count + 1) * CYCLE_KINDS;
    s->cycles = arena_array(&s->memory, (size_t)s->cycle_count, sizeof *s->cycles);
    if (!lists || !k->event_of || !s->events || !s->layers || !s->completion_order || !s->cycles)
        return out_of_memory(s->object.ctx);
    for (int64_t i = 0; i < p->code_count; i++) k->length[p->code[i].queue]++;
    for (int q = 0; q < queues; q++) {
        k->list[q] = lists;
        lists += k->length[q];
        k->length[q] = 0;
        k->issue_at[q] = NEVER;
        k->activity_of[q] = (activity){CYCLE_ISSUE, -1, 0};
    }
    for (int64_t i = 0; i < p->code_count; i++) k->list[p->code[i].queue][k->length[p->code[i].queue]++] = (int32_t)i;
    for (int32_t n = 0; n < p->node_count; n++)
        s->layers[n] = (mera_layer_stats){.node = n, .start_cycle = NEVER, .macs = p->nodes[n].macs};
    s->stalls.count = 0;
    s->stats = (mera_stats){.sram_peak_bytes = p->sram_peak, .instructions = p->code_count};
    TRY(run(k));
    for (int q = 0; q < queues; q++) settle(k, q, CYCLE_BUSY, -1);
    if (k->out_of_memory) return out_of_memory(s->object.ctx);
    s->stats.cycles = k->now;
    s->stats.sram_words_read = k->words_served[0];
    s->stats.sram_words_written = k->words_served[1];
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
