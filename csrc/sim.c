/* sim.c: the Simulator's interface. */
#include "sim.h"

static void destroy(mera_object *object)
{
    mera_simulator *s = (mera_simulator *)object;
    mera_context *ctx = object->ctx;
    ctx_free(ctx, s->sram);
    ctx_free(ctx, s->dram);
    ctx_free(ctx, s->accumulators);
    ctx_free(ctx, s->window_sums);
    ctx_free(ctx, s->scratch);
    arena_free(&s->memory);
    ctx_free(ctx, s);
}

void mera_simulator_destroy(mera_simulator *simulator)
{
    if (!simulator) return;
    object_detach(&simulator->object);
    destroy(&simulator->object);
}

mera_status mera_simulator_create(mera_program *program, mera_simulator **simulator)
{
    mera_context *ctx = program->object.ctx;
    const mera_platform *f = &program->platform;
    mera_simulator *s = ctx_alloc(ctx, sizeof *s);
    if (!s) return out_of_memory(ctx);
    memset(s, 0, sizeof *s);
    arena_init(&s->memory, ctx);
    s->program = program;
    s->scratch_bytes = exec_scratch_bytes(program);
    /* Memory starts from zero, so that a run never depends on what was there before. */
    s->sram = ctx_alloc_zeroed(ctx, (size_t)f->sram_bytes);
    s->dram = ctx_alloc_zeroed(ctx, (size_t)program->dram_bytes);
    s->accumulators = ctx_alloc_zeroed(ctx, sizeof(int32_t) * DNA_ACCUMULATORS * (size_t)f->array * (size_t)f->units);
    s->window_sums = ctx_alloc(ctx, 2 * sizeof(int32_t) * (size_t)f->array * (size_t)f->units);
    s->scratch = ctx_alloc(ctx, s->scratch_bytes);
    object_attach(ctx, &s->object, destroy);
    if (!s->sram || !s->dram || !s->accumulators || !s->window_sums || !s->scratch) {
        mera_simulator_destroy(s);
        return out_of_memory(ctx);
    }
    memset(s->window_sums, 0, 2 * sizeof(int32_t) * (size_t)f->array * (size_t)f->units);
    memcpy(s->dram, program->constants, (size_t)program->constant_bytes);
    *simulator = s;
    return MERA_OK;
}

static mera_status need_time(mera_simulator *s)
{
    if (s->timed) return MERA_OK;
    TRY(time_program(s));
    s->timed = true;
    return MERA_OK;
}

static mera_status check_port(mera_context *ctx, const char *what, const program_port *port, int32_t k, int64_t bytes,
                              const void *data)
{
    if (data && bytes == port->bytes) return MERA_OK;
    return fail(ctx, MERA_INVALID_ARGUMENT, "%s %d ('%s') has %lld bytes, the program needs %lld", what, k, port->name,
                (long long)(data ? bytes : 0), (long long)port->bytes);
}

mera_status mera_simulator_run(mera_simulator *s, int32_t input_count, const void *const *inputs, const int64_t *input_bytes,
                               int32_t output_count, void *const *outputs, const int64_t *output_bytes)
{
    const mera_program *p = s->program;
    mera_context *ctx = s->object.ctx;
    if (input_count != p->input_count || output_count != p->output_count)
        return fail(ctx, MERA_INVALID_ARGUMENT, "the program has %d inputs and %d outputs, got %d and %d", p->input_count,
                    p->output_count, input_count, output_count);
    for (int32_t k = 0; k < input_count; k++) TRY(check_port(ctx, "input", &p->inputs[k], k, input_bytes[k], inputs[k]));
    for (int32_t k = 0; k < output_count; k++)
        TRY(check_port(ctx, "output", &p->outputs[k], k, output_bytes[k], outputs[k]));
    TRY(need_time(s));
    for (int32_t k = 0; k < input_count; k++) memcpy(s->dram + p->inputs[k].dram, inputs[k], (size_t)input_bytes[k]);
    for (int64_t i = 0; i < p->code_count; i++) exec_instr(s, &p->code[s->completion_order[i]]);
    for (int32_t k = 0; k < output_count; k++) memcpy(outputs[k], s->dram + p->outputs[k].dram, (size_t)output_bytes[k]);
    return MERA_OK;
}

mera_status mera_simulator_stats(mera_simulator *s, mera_stats *stats)
{
    TRY(need_time(s));
    *stats = s->stats;
    return MERA_OK;
}

mera_status mera_simulator_layers(mera_simulator *s, const mera_layer_stats **layers, int64_t *count)
{
    TRY(need_time(s));
    *layers = s->layers;
    *count = s->program->node_count;
    return MERA_OK;
}

mera_status mera_simulator_events(mera_simulator *s, const mera_event **events, int64_t *count)
{
    TRY(need_time(s));
    *events = s->events;
    *count = s->event_count;
    return MERA_OK;
}
