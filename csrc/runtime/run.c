/* run.c: one inference: the steps of a deployment, one after the other. See session.h. */
#include <time.h>

#include "session.h"

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---- regions ---- */

static mera_status store(dna_request *q, const step *st)
{
    const region *r = &q->runner->deployment->regions[st->region];
    for (int32_t k = 0; k < r->input_count; k++) {
        const port *p = &r->inputs[k];
        const void *x = q->pointers[st->inputs[k]];
        q->dna_input_bytes[k] = p->elements;
        q->dna_inputs[k] = x;
        if (p->plain && !p->real) continue; /* the same bytes */
        int8_t *at = (int8_t *)q->memory + st->store_at[k];
        q->dna_inputs[k] = at;
        TRY(port_store(q->ctx, p, x, at, q->memory + q->runner->deployment->scratch_at));
    }
    return MERA_OK;
}

static mera_status fetch(dna_request *q, const step *st)
{
    const region *r = &q->runner->deployment->regions[st->region];
    for (int32_t k = 0; k < r->output_count; k++)
        TRY(port_fetch(q->ctx, &r->outputs[k], (const int8_t *)q->memory + st->result_at[r->output_index[k]],
                       (void *)q->pointers[st->first_value + k], q->memory + q->runner->deployment->scratch_at));
    return MERA_OK;
}

static mera_status run_on_device(dna_request *q, int32_t number)
{
    const dna_runner *runner = q->runner;
    const region *r = &runner->deployment->regions[number];
    mera_stats *stats = &q->engines[number].stats;
    if (runner->executor) {
        char message[900] = "";
        const dna_status status =
            runner->executor(runner->user, number, r->input_count, q->dna_inputs, q->dna_input_bytes, r->result_count,
                             q->dna_outputs, r->result_bytes, stats, message, sizeof message);
        return status == DNA_OK ? MERA_OK : fail(q->ctx, (mera_status)status, "%s", message);
    }
    dna_device *device = runner->devices[q->device];
    const int32_t slot = runner->slots[q->device * runner->deployment->region_count + number];
    TRY(device_run(q->ctx, device, slot, r->input_count, q->dna_inputs, q->dna_input_bytes, r->result_count, q->dna_outputs,
                   r->result_bytes, runner->options.timeout_ms));
    return device_stats(q->ctx, device, slot, stats);
}

static mera_status compute(dna_request *q, const step *st)
{
    const region *r = &q->runner->deployment->regions[st->region];
    request_engine *e = &q->engines[st->region];
    for (int32_t k = 0; k < r->result_count; k++) q->dna_outputs[k] = q->memory + st->result_at[k];
    if (e->interpreter)
        return mera_interpreter_run(e->interpreter, r->input_count, q->dna_inputs, q->dna_input_bytes, r->result_count,
                                    q->dna_outputs, r->result_bytes);
    if (!e->simulator) return run_on_device(q, st->region);
    TRY(mera_simulator_run(e->simulator, r->input_count, q->dna_inputs, q->dna_input_bytes, r->result_count, q->dna_outputs,
                           r->result_bytes));
    return mera_simulator_stats(e->simulator, &e->stats);
}

static void add_stats(dna_request *q, int32_t region, dna_metrics *m)
{
    const mera_stats *stats = &q->engines[region].stats; /* all 0 on InterpreterHw */
    m->cycles += stats->cycles;
    m->macs += stats->macs;
    m->dram_bytes_read += stats->dram_bytes_read;
    m->dram_bytes_written += stats->dram_bytes_written;
    m->sram_peak_bytes = max_i64(m->sram_peak_bytes, stats->sram_peak_bytes);
    m->instructions += stats->instructions;
    m->device_ms += (double)stats->cycles / (q->runner->deployment->platform.clock_mhz * 1e3);
}

static mera_status run_region(dna_request *q, const step *st)
{
    dna_metrics *m = &q->regions[st->region];
    const double begin = now_ms();
    TRY(store(q, st));
    const double stored = now_ms();
    TRY(compute(q, st));
    const double computed = now_ms();
    TRY(fetch(q, st));
    const double end = now_ms();
    m->wall_ms += end - begin;
    m->accelerator_ms += computed - stored;
    m->border_ms += stored - begin + end - computed;
    add_stats(q, st->region, m);
    return MERA_OK;
}

/* ---- the whole ---- */

static mera_status run_host(dna_request *q, const step *st)
{
    if (host_is_alias(&st->host)) return MERA_OK;
    const double begin = now_ms();
    TRY(host_run(q->ctx, &st->host, q->pointers, (void *const *)(q->pointers + st->first_value),
                 q->memory + q->runner->deployment->scratch_at));
    q->total.host_ms += now_ms() - begin;
    return MERA_OK;
}

/* Outputs that are an input, a constant or another output, too. */
static void copy_outputs(dna_request *q)
{
    const dna_deployment *d = q->runner->deployment;
    for (int32_t k = 0; k < d->output_count; k++) {
        const model_output *out = &d->outputs[k];
        uint8_t *to = q->memory + out->offset;
        if (q->pointers[out->value] != to) memcpy(to, q->pointers[out->value], value_bytes(d, out->value));
    }
}

static void sum_up(dna_request *q)
{
    dna_metrics *t = &q->total;
    for (int32_t k = 0; k < q->runner->deployment->region_count; k++) {
        const dna_metrics *m = &q->regions[k];
        t->accelerator_ms += m->accelerator_ms;
        t->border_ms += m->border_ms;
        t->device_ms += m->device_ms;
        t->cycles += m->cycles;
        t->macs += m->macs;
        t->dram_bytes_read += m->dram_bytes_read;
        t->dram_bytes_written += m->dram_bytes_written;
        t->sram_peak_bytes = max_i64(t->sram_peak_bytes, m->sram_peak_bytes);
        t->instructions += m->instructions;
    }
}

mera_status request_execute(dna_request *q)
{
    const dna_deployment *d = q->runner->deployment;
    const double begin = now_ms();
    q->total = (dna_metrics){0};
    memset(q->regions, 0, (size_t)d->region_count * sizeof *q->regions);
    for (int32_t k = 0; k < d->step_count; k++)
        TRY(d->steps[k].region >= 0 ? run_region(q, &d->steps[k]) : run_host(q, &d->steps[k]));
    copy_outputs(q);
    sum_up(q);
    q->total.wall_ms = now_ms() - begin;
    return MERA_OK;
}
