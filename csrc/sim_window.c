/* sim_window.c: the window unit: its loader and its datapath. */
#include "sim_machine.h"

static int64_t group_count(const machine *k, const int64_t *f) { return ceil_div(f[WINDOW_run], k->array); }

/* Loader: a word a cycle; the table, then taps and parameters of each group, one group ahead. */
void step_window_loader(machine *k, int unit)
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
            if (x->b < taps)
                want(k, x, NULL, f[WINDOW_w] + x->b * f[WINDOW_channels] + channel, count, false);
            else
                want(k, x, NULL, f[WINDOW_param] + (x->b - taps) * f[WINDOW_channels] + channel, count, false);
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

void start_window(machine *k, int unit)
{
    unit_state *u = &k->units[unit];
    const int e = unit * UNIT_ENGINES + WINDOW_WORK;
    if (k->engines[e].index >= 0) return;
    while (u->to_window.count > 0 && is_sync(k, u->to_window.at[u->to_window.head])) finish(k, pop(&u->to_window), 0);
    if (u->to_window.count == 0) return;
    const int32_t index = u->to_window.at[u->to_window.head];
    if (u->groups_loaded == u->groups_started) {
        settle(k, k->p->code[index].queue, CYCLE_FILL, index);
        return;
    }
    begin(k, e, pop(&u->to_window));
    k->engines[e].ready = 0;
}

/* a: group, b: output column, c: output row, d: kernel step (kx * triples + triple). */
void step_window(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + WINDOW_WORK;
    engine *x = &k->engines[e];
    unit_state *u = &k->units[unit];
    const int64_t *f = x->i->f, triples = ceil_div(f[WINDOW_kh], DNA_WINDOW_ROWS);
    if (!x->ready) {
        if (u->groups_loaded == u->groups_started) {
            x->lost[CYCLE_FILL]++;
            return;
        }
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
            if (row >= 0 && row < f[WINDOW_in_rows])
                want(k, x, &x->ports[r], f[WINDOW_in] + row * f[WINDOW_in_pitch] + low, high - low, false);
        }
        if (f[WINDOW_last] && x->d + 1 == f[WINDOW_kw] * triples)
            want(k, x, NULL, f[WINDOW_out] + x->c * f[WINDOW_out_pitch] + x->b * f[WINDOW_out_step] + x->a * k->array, lanes,
                 true);
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
    retire(k, e, DNA_PIPELINE_CYCLES);
}
