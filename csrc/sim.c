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
    if (!s->borrowed) vec_free(ctx, &s->stalls);
    arena_free(&s->memory);
    ctx_free(ctx, s);
}

void mera_simulator_destroy(mera_simulator *simulator)
{
    if (!simulator) return;
    object_detach(&simulator->object);
    destroy(&simulator->object);
}

/* A copy of `from`, whose timing it may use, on its own context; without memory of the machine. */
static mera_status create_from(mera_context *ctx, const mera_simulator *from, mera_simulator **simulator)
{
    mera_simulator *s = ctx_alloc(ctx, sizeof *s);
    if (!s) return out_of_memory(ctx);
    *s = *from;
    s->borrowed = from->timed;
    arena_init(&s->memory, ctx);
    object_attach(ctx, &s->object, destroy);
    *simulator = s;
    return MERA_OK;
}

static mera_status make_memory(mera_simulator *s)
{
    const mera_program *p = s->program;
    const mera_platform *f = &p->platform;
    mera_context *ctx = s->object.ctx;
    s->scratch_bytes = exec_scratch_bytes(p);
    /* Memory starts from zero, so that a run never depends on what was there before. */
    s->sram = ctx_alloc_zeroed(ctx, (size_t)f->sram_bytes);
    s->dram = ctx_alloc_zeroed(ctx, (size_t)p->dram_bytes);
    s->accumulators = ctx_alloc_zeroed(ctx, sizeof(int32_t) * DNA_ACCUMULATORS * (size_t)f->array * (size_t)f->units);
    s->window_sums = ctx_alloc_zeroed(ctx, 2 * sizeof(int32_t) * (size_t)f->array * (size_t)f->units);
    s->scratch = ctx_alloc(ctx, s->scratch_bytes);
    if (!s->sram || !s->dram || !s->accumulators || !s->window_sums || !s->scratch) return out_of_memory(ctx);
    memcpy(s->dram, p->constants, (size_t)p->constant_bytes);
    return MERA_OK;
}

static mera_status destroy_unless(mera_status status, mera_simulator **simulator)
{
    if (status == MERA_OK) return MERA_OK;
    mera_simulator_destroy(*simulator);
    *simulator = NULL;
    return status;
}

mera_status mera_simulator_create(mera_program *program, mera_simulator **simulator)
{
    const mera_simulator fresh = {.program = program};
    TRY(create_from(program->object.ctx, &fresh, simulator));
    return destroy_unless(make_memory(*simulator), simulator);
}

mera_status simulator_timing(mera_context *ctx, mera_program *program, mera_simulator **timing)
{
    const mera_simulator fresh = {.program = program};
    TRY(create_from(ctx, &fresh, timing));
    return destroy_unless(mera_simulator_stats(*timing, &(mera_stats){0}), timing);
}

mera_status simulator_share(mera_context *ctx, const mera_simulator *timing, mera_simulator **simulator)
{
    TRY(create_from(ctx, timing, simulator));
    return destroy_unless(make_memory(*simulator), simulator);
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
    if (!s->dram) return fail(ctx, MERA_STATE, "this simulator was made for its timing only");
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

mera_status mera_simulator_cycles(mera_simulator *s, const int64_t **cycles, int64_t *count)
{
    TRY(need_time(s));
    *cycles = s->cycles;
    *count = s->cycle_count;
    return MERA_OK;
}

mera_status mera_simulator_stalls(mera_simulator *s, const mera_stall **stalls, int64_t *count)
{
    TRY(need_time(s));
    *stalls = s->stalls.at;
    *count = (int64_t)s->stalls.count;
    return MERA_OK;
}
