/* sim_dma.c: the three DMA channels. */
#include "sim_machine.h"

void start_dma(machine *k, int channel)
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
void step_dma(machine *k, int channel)
{
    const int e = dma_engine(k, channel);
    engine *x = &k->engines[e];
    const int64_t *f = x->i->f, burst = (int64_t)DNA_DRAM_BURST_BYTES << 20;
    const bool load = x->i->opcode == DNA_OP_LOAD;
    bool moved = false;
    if (x->begin < 0) x->begin = k->now;
    for (;;) {
        if (x->words < 0) {
            if (k->dram_credit < burst) {
                x->lost[CYCLE_DRAM] += !moved;
                return;
            }
            int64_t d = f[LOAD_dram], m = f[LOAD_sram], rest = x->a;
            for (int l = 2; l >= 0; l--) {
                d += rest % f[LOAD_n0 + l] * f[LOAD_d0 + l];
                m += rest % f[LOAD_n0 + l] * f[LOAD_s0 + l];
                rest /= f[LOAD_n0 + l];
            }
            const int64_t from = d + x->b,
                          to = min_i64(d + f[LOAD_run], (from / DNA_DRAM_BURST_BYTES + 1) * DNA_DRAM_BURST_BYTES);
            /* A run that goes on in the burst of the one before needs no new one. */
            if (x->b > 0 || from / DNA_DRAM_BURST_BYTES != x->left) {
                k->dram_credit -= burst;
                k->bus_used += DNA_DRAM_BURST_BYTES;
                x->d += DNA_DRAM_BURST_BYTES;
            }
            x->left = (to - 1) / DNA_DRAM_BURST_BYTES;
            x->words = 0;
            moved = true;
            want(k, x, load ? NULL : &x->ports[0], m + x->b, to - from, load);
            x->b = to - d;
        }
        if (!serve(k, x)) {
            x->stall++;
            x->lost[CYCLE_BANK] += !moved;
            return;
        }
        x->words = -1;
        if (x->b < f[LOAD_run]) continue;
        x->b = 0;
        if (++x->a < f[LOAD_n0] * f[LOAD_n1] * f[LOAD_n2]) continue;
        mera_layer_stats *layer = x->i->node >= 0 ? &k->s->layers[x->i->node] : NULL;
        *(load ? &k->s->stats.dram_bytes_read : &k->s->stats.dram_bytes_written) += x->d;
        if (layer) *(load ? &layer->dram_bytes_read : &layer->dram_bytes_written) += x->d;
        retire(k, e, load ? DNA_PIPELINE_CYCLES : k->p->platform.dram_latency_cycles);
        return;
    }
}
