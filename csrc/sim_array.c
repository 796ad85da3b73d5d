/* sim_array.c: the array of a unit: weight loader, pixel feed and drain, each a step a cycle. */
#include "sim_machine.h"

static int64_t tile_count(const machine *k, const int64_t *f)
{
    return f[CONV_kh] * f[CONV_kw] * ceil_div(f[CONV_run], k->array);
}

/* Loader: phase 0 parameters and table, 2W bytes a cycle; phase 1 tiles, two rows a cycle, one tile ahead of the feed. */
void step_loader(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + LOADER;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f;
    const int64_t params = drain_param_bytes(f), wide = 2 * k->array;
    if (x->phase == 0) {
        if (x->words < 0) {
            x->words = 0;
            if (x->a < params)
                want(k, x, NULL, f[CONV_param] + x->a, min_i64(wide, params - x->a), false);
            else if (f[CONV_last] && f[CONV_lut] && x->a < params + 256)
                want(k, x, NULL, f[CONV_table] + x->a - params, min_i64(wide, 256), false);
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
        const int64_t length = min_i64(k->array, f[CONV_run] - chunk * k->array),
                      row = f[CONV_w_row] ? f[CONV_w_row] : length;
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

void start_feed(machine *k, int unit)
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
        if (u->tiles_loaded == u->tiles_started) {
            settle(k, i->queue, CYCLE_FILL, index);
            return;
        }
        if (i->f[CONV_first]) {
            if (u->banks_used == 2) {
                settle(k, i->queue, CYCLE_DRAIN, index);
                return;
            }
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

void step_feed(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + FEED;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f;
    if (!u->feed_has_tile) {
        x->lost[CYCLE_FILL]++;
        return;
    }
    if (x->begin < 0) x->begin = k->now;
    if (may_issue(k, x, 1)) { /* a: tile, b: output row, c: output column */
        const int64_t chunks = ceil_div(f[CONV_run], k->array), tap = x->a / chunks, chunk = x->a % chunks;
        const int64_t row = f[CONV_iy0] + x->b * f[CONV_sy] + tap / f[CONV_kw] * f[CONV_dy];
        const int64_t p = f[CONV_ix0] + x->c * f[CONV_sx] + tap % f[CONV_kw] * f[CONV_dx] + chunk * k->array;
        const int64_t low = max_i64(p, 0),
                      high = min_i64(p + min_i64(k->array, f[CONV_run] - chunk * k->array), f[CONV_in_row_bytes]);
        if (row >= 0 && row < f[CONV_in_rows])
            want(k, x, &x->ports[0], f[CONV_in] + row * f[CONV_in_pitch] + low, high - low, false);
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

void start_drain(machine *k, int unit)
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
        if (!is_sync(k, index) && k->p->code[index].f[CONV_last])
            begin(k, e, index);
        else
            finish(k, index, 0);
    }
}

void step_drain(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + DRAIN;
    engine *x = &k->engines[e];
    const int64_t *f = x->i->f;
    if (may_issue(k, x, f[CONV_add] ? 2 : 1)) {
        if (f[CONV_add])
            want(k, x, &x->ports[0], f[CONV_res] + x->b * f[CONV_res_pitch] + x->c * f[CONV_res_step], f[CONV_co], false);
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
