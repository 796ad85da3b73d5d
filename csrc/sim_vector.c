/* sim_vector.c: the vector unit. */
#include "sim_machine.h"

/* a: word of the run; b: run number; phase 0: table. */
void step_vector(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + VECTOR_WORK;
    engine *x = &k->engines[e];
    const int64_t *f = x->i->f;
    if (x->begin < 0) x->begin = k->now;
    if (may_issue(k, x, 3)) {
        const bool table = x->phase == 0 && f[VECTOR_lut];
        if (x->phase == 0) {
            if (table)
                want(k, x, NULL, f[VECTOR_table] + x->left, min_i64(k->array, 256), false);
            else
                x->phase = 1;
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
            if (f[VECTOR_mode] >= 2)
                want(k, x, &x->ports[1], f[VECTOR_b] + x->d + (f[VECTOR_b_scalar] ? 0 : from),
                     f[VECTOR_b_scalar] ? 1 : bytes, false);
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
