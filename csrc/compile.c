/* compile.c: the compiler as a list of its stages. */
#include "compile.h"

#include <stdio.h>

/* Plans from the fastest to the most frugal: the first whose buffers all find an address is taken. */
typedef struct attempt {
    int64_t chunk_bytes;
    int linger;
    int slack_permille; /* of SRAM, left free by the plan against fragmentation */
} attempt;
static const attempt attempts[] = {{65536, 3, 60}, {65536, 1, 60}, {32768, 0, 60}, {16384, 0, 150},
                                   {4096, 0, 250}, {1024, 0, 400}, {1024, 0, 550}};

static mera_status report(compiler *c, mera_progress progress, void *user, const char *stage, int64_t done)
{
    if (progress && progress(user, stage, done, 5) != 0)
        return fail(c->ctx, MERA_INVALID_ARGUMENT, "compilation was stopped by the progress callback");
    return MERA_OK;
}

static mera_status fit(compiler *c)
{
    const int64_t count = (int64_t)(sizeof attempts / sizeof *attempts);
    for (int64_t k = 0; k < count; k++) {
        c->chunk_bytes = attempts[k].chunk_bytes;
        c->linger = attempts[k].linger;
        c->slack = c->platform.sram_bytes * attempts[k].slack_permille / 1000;
        mera_status status = stage_plan(c);
        if (status == MERA_OK) status = stage_lower(c);
        if (status == MERA_OK) status = stage_alloc(c);
        if (status != MERA_DOES_NOT_FIT || k == count - 1) return status;
    }
    return MERA_OK;
}

/* Nothing fits: adds to the error's message how much SRAM would do, by trying. */
static mera_status say_what_fits(compiler *c)
{
    const int64_t most = (int64_t)1 << 30;
    char why[1024];
    snprintf(why, sizeof why, "%s", mera_last_error(c->ctx));
    while (c->platform.sram_bytes < most) {
        c->platform.sram_bytes = min_i64(most, ceil_div(c->platform.sram_bytes * 5, 4 * 1024) * 1024);
        const mera_status status = fit(c);
        if (status == MERA_OK)
            return fail(c->ctx, MERA_DOES_NOT_FIT, "%s (%lld bytes of SRAM would do)", why,
                        (long long)c->platform.sram_bytes);
        if (status != MERA_DOES_NOT_FIT) return status;
    }
    return fail(c->ctx, MERA_DOES_NOT_FIT, "%s (not even %lld bytes of SRAM would do)", why, (long long)most);
}

/* ---- several networks ---- */

static mera_status prepare(compiler *c, mera_graph *graph, const mera_platform *platform, const mera_options *options);
static void free_compiler(compiler *c);

/* Goes on from stage alloc: the cycles of the program. */
static mera_status time_compiled(compiler *c, int64_t *cycles)
{
    mera_program *program;
    mera_simulator *simulator = NULL;
    mera_stats stats;
    TRY(stage_schedule(c));
    TRY(stage_program(c, &program));
    mera_status status = mera_simulator_create(program, &simulator);
    if (status == MERA_OK) status = mera_simulator_stats(simulator, &stats);
    if (status == MERA_OK) *cycles = stats.cycles;
    mera_simulator_destroy(simulator);
    mera_program_destroy(program);
    return status;
}

#define NEAR_THE_FLOOR 0.02 /* so near to what all arrangements take, the next one is not tried */
#define MOST_IN_TURN 16     /* networks: each of them costs a pass over the whole graph */

/* Compiles one network of c's graph up to stage alloc, as if it were alone. */
static mera_status fit_alone(const compiler *c, int32_t network, bool last, compiler *one)
{
    TRY(prepare(one, c->graph, &c->platform, &c->options));
    TRY(stage_fuse(one));
    TRY(find_networks(one));
    keep_network(one, network, last);
    return fit(one);
}

/* Adds every network as if it were alone, in the order of the layers. */
static mera_status fit_in_turn(compiler *c)
{
    for (size_t i = 0; i < c->layers.count;) {
        const int32_t network = c->layers.at[i].network;
        while (i < c->layers.count && c->layers.at[i].network == network) i++;
        compiler one;
        mera_status status = fit_alone(c, network, i == c->layers.count, &one);
        if (status == MERA_OK) status = add_network(c, &one);
        free_compiler(&one);
        TRY(status);
    }
    return finish_alloc(c);
}

/* The cycles of all networks' own programs, one after the other; INT64_MAX if one does not fit. */
static mera_status time_alone(const compiler *c, int64_t *cycles)
{
    *cycles = 0;
    for (int32_t n = 0; n < c->networks; n++) {
        compiler one;
        int64_t mine = 0;
        mera_status status = fit_alone(c, n, n + 1 == c->networks, &one);
        if (status == MERA_OK) status = time_compiled(&one, &mine);
        free_compiler(&one);
        *cycles = status == MERA_OK ? *cycles + mine : INT64_MAX;
        if (status == MERA_DOES_NOT_FIT) return MERA_OK;
        TRY(status);
    }
    return MERA_OK;
}

static mera_status fit_all(compiler *c) { return c->in_turn ? fit_in_turn(c) : fit(c); }

/* The cycles of the program that an arrangement gives, INT64_MAX if it does not fit; adds to the layers' costs in `found`,
 * unless it is NULL. */
static mera_status try_arrangement(const compiler *c, const layer_cost *costs, const arrangement *a, layer_cost *found,
                                   int64_t *cycles)
{
    compiler t;
    mera_status status = prepare(&t, c->graph, &c->platform, &c->options);
    *cycles = INT64_MAX;
    if (status == MERA_OK) status = stage_fuse(&t);
    if (status == MERA_OK) status = find_networks(&t);
    if (status == MERA_OK) status = arrange(&t, costs, a);
    if (status == MERA_OK) status = fit_all(&t);
    if (status == MERA_OK && found) add_costs(&t, found);
    if (status == MERA_OK) status = time_compiled(&t, cycles);
    free_compiler(&t);
    return status == MERA_DOES_NOT_FIT ? MERA_OK : status;
}

static bool is_worth_trying(const compiler *c, int rule, int units)
{
    const bool one_by_one = rule <= ORDER_LEAN_FIRST;
    if (units == UNITS_IN_TURN) return one_by_one && c->networks <= MOST_IN_TURN;
    return units != UNITS_DIVIDED || (!one_by_one && c->networks <= c->platform.units);
}

/* Puts the layers of several networks into the arrangement whose program takes the fewest cycles. One network after the
 * other comes first: what layers cost there decides how others interleave them, and when there is little left to gain. */
static mera_status arrange_networks(compiler *c, mera_progress progress, void *user)
{
    TRY(find_networks(c));
    if (c->networks < 2) return MERA_OK;
    layer_cost *costs = arena_array(&c->memory, c->layers.count + 1, sizeof *costs);
    int32_t *orders[ORDER_COUNT];
    int64_t least = INT64_MAX, alone = INT64_MAX, cycles;
    if (!costs) return out_of_memory(c->ctx);
    if (c->networks <= MOST_IN_TURN) TRY(time_alone(c, &alone));
    TRY(list_orders(c, costs, orders));
    arrangement best = {orders[ORDER_SEQUENCE], UNITS_SHARED};
    for (int units = 0; units < UNITS_COUNT; units++)
        for (int rule = 0; rule < ORDER_COUNT; rule++) {
            const arrangement a = {orders[rule], (unit_rule)units};
            if (!a.order || !is_worth_trying(c, rule, units)) continue;
            const bool first = least == INT64_MAX;
            TRY(report(c, progress, user, "order the networks", 1));
            TRY(try_arrangement(c, costs, &a, first ? costs : NULL, &cycles));
            if (first && cycles < INT64_MAX) TRY(list_orders(c, costs, orders));
            if (cycles < least) {
                least = cycles;
                best = a;
            }
            if (least <= alone && (double)least <= (double)floor_of(c, costs) * (1 + NEAR_THE_FLOOR))
                return arrange(c, costs, &best);
        }
    return arrange(c, costs, &best);
}

/* Runs the stages up to `last` ("isa" = all). */
static mera_status compile(compiler *c, const char *last, mera_progress progress, void *user)
{
    TRY(report(c, progress, user, "fuse", 0));
    TRY(stage_fuse(c));
    if (!strcmp(last, "fuse")) return MERA_OK;
    TRY(arrange_networks(c, progress, user));
    TRY(report(c, progress, user, "plan, lower, allocate", 1));
    if (!strcmp(last, "tile") || !strcmp(last, "lower")) {
        c->chunk_bytes = attempts[0].chunk_bytes;
        c->slack = c->platform.sram_bytes * attempts[0].slack_permille / 1000;
        TRY(stage_plan(c));
        return last[0] == 't' ? MERA_OK : stage_lower(c);
    }
    const mera_status status = fit_all(c);
    if (status == MERA_DOES_NOT_FIT) return say_what_fits(c);
    TRY(status);
    if (!strcmp(last, "alloc")) return MERA_OK;
    TRY(report(c, progress, user, "schedule", 3));
    TRY(stage_schedule(c));
    return report(c, progress, user, "encode", 4);
}

static void free_compiler(compiler *c)
{
    for (size_t i = 0; i < c->layers.count; i++) vec_free(c->ctx, &c->layers.at[i].pieces);
    vec_free(c->ctx, &c->layers);
    vec_free(c->ctx, &c->roots);
    vec_free(c->ctx, &c->jobs);
    vec_free(c->ctx, &c->buffers);
    vec_free(c->ctx, &c->constants);
    vec_free(c->ctx, &c->code);
    arena_free(&c->memory);
}

static mera_status check_options(mera_context *ctx, const mera_options *o)
{
    const struct {
        const char *name;
        int64_t value, high;
    } all[] = {{"mode", o->mode, 1},
               {"workers", o->workers, 1024},
               {"max_tile_height", o->max_tile_height, 1 << 24},
               {"max_tile_width", o->max_tile_width, 1 << 24},
               {"max_acc_tile_height", o->max_acc_tile_height, 1 << 24},
               {"max_acc_tile_width", o->max_acc_tile_width, 1 << 24}};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        if (all[k].value < 0 || all[k].value > all[k].high)
            return fail(ctx, MERA_INVALID_ARGUMENT, "option %s must be 0 to %lld, got %lld", all[k].name,
                        (long long)all[k].high, (long long)all[k].value);
    if (o->mode == 1) return fail(ctx, MERA_UNSUPPORTED, "scheduling mode Slow is not in this version; use Fast");
    return MERA_OK;
}

static mera_status prepare(compiler *c, mera_graph *graph, const mera_platform *platform, const mera_options *options)
{
    mera_context *ctx = graph->object.ctx;
    static const mera_options defaults = {0};
    *c = (compiler){.ctx = ctx, .graph = graph, .options = options ? *options : defaults};
    arena_init(&c->memory, ctx);
    if (!graph->finished) return fail(ctx, MERA_INVALID_ARGUMENT, "the graph is not finished: call mera_graph_finish first");
    TRY(mera_platform_check(ctx, platform));
    c->platform = *platform;
    return check_options(ctx, &c->options);
}

/* ---- the program ---- */

mera_status stage_program(compiler *c, mera_program **out)
{
    const mera_graph *g = c->graph;
    mera_program *p;
    TRY(program_create(c->ctx, &p));
    arena *m = &p->memory;
    p->platform = c->platform;
    p->sram_peak = c->sram_peak;
    p->dram_bytes = c->dram_bytes;
    p->constant_bytes = (int64_t)c->constants.count;
    p->input_count = (int32_t)g->inputs.count;
    p->output_count = (int32_t)g->outputs.count;
    p->node_count = (int32_t)g->nodes.count;
    p->code_count = (int64_t)c->code.count;
    p->inputs = arena_array(m, g->inputs.count + 1, sizeof *p->inputs);
    p->outputs = arena_array(m, g->outputs.count + 1, sizeof *p->outputs);
    p->nodes = arena_array(m, g->nodes.count + 1, sizeof *p->nodes);
    p->code = arena_array(m, c->code.count + 1, sizeof *p->code);
    uint8_t *constants = arena_array(m, c->constants.count + 1, 1);
    bool ok = p->inputs && p->outputs && p->nodes && p->code && constants;
    if (ok) {
        if (c->constants.count) memcpy(constants, c->constants.at, c->constants.count);
        if (c->code.count) memcpy(p->code, c->code.at, c->code.count * sizeof *p->code);
        p->constants = constants;
    }
    for (size_t k = 0; k < g->inputs.count && ok; k++) {
        const buffer *b = &c->buffers.at[c->input_buffer[k]];
        p->inputs[k] = (program_port){arena_string(m, b->name), b->address, b->bytes};
        ok = p->inputs[k].name != NULL;
    }
    for (size_t k = 0; k < g->outputs.count && ok; k++) {
        const buffer *b = &c->buffers.at[c->output_buffer[k]];
        p->outputs[k] = (program_port){arena_string(m, b->name), b->address, b->bytes};
        ok = p->outputs[k].name != NULL;
    }
    for (size_t k = 0; k < g->nodes.count && ok; k++) {
        const graph_node *n = node_at(c, (int32_t)k);
        p->nodes[k] = (program_node){arena_string(m, n->name), op_name(n->op), arena_string(m, n->layer),
                                     arena_string(m, n->source), mera_graph_node_macs(c->graph, (int32_t)k)};
        ok = p->nodes[k].name && p->nodes[k].layer && p->nodes[k].source;
    }
    mera_status status = ok ? check_encoding(c, p) : out_of_memory(c->ctx);
    if (status == MERA_OK) status = program_validate(p);
    if (status == MERA_OK)
        *out = p;
    else
        mera_program_destroy(p);
    return status;
}

mera_status mera_compile(mera_graph *graph, const mera_platform *platform, const mera_options *options,
                         mera_progress progress, void *user, mera_program **program)
{
    compiler c;
    mera_status status = prepare(&c, graph, platform, options);
    if (status == MERA_OK) status = compile(&c, "isa", progress, user);
    if (status == MERA_OK) status = stage_program(&c, program);
    free_compiler(&c);
    return status;
}

/* ---- dumps ---- */

mera_status mera_compile_dump(mera_graph *graph, const mera_platform *platform, const mera_options *options,
                              const char *stage, char **out)
{
    static const char *const stages[] = {"graph", "fuse", "tile", "lower", "alloc", "schedule", "isa"};
    mera_context *ctx = graph->object.ctx;
    int known = 0;
    for (size_t k = 0; k < sizeof stages / sizeof *stages; k++) known += !strcmp(stage, stages[k]);
    if (!known)
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "no stage is named '%s'; there are graph, fuse, tile, lower, alloc, schedule, isa", stage);
    if (!strcmp(stage, "graph")) return mera_graph_print(graph, 0, out);
    compiler c;
    text t;
    text_init(&t, ctx);
    mera_status status = prepare(&c, graph, platform, options);
    if (status == MERA_OK) status = compile(&c, stage, NULL, NULL);
    if (status == MERA_OK) {
        if (!strcmp(stage, "fuse") || !strcmp(stage, "tile"))
            print_layers(&c, &t);
        else if (!strcmp(stage, "lower") || !strcmp(stage, "alloc"))
            print_jobs(&c, &t, stage[0] == 'a');
        else
            for (size_t i = 0; i < c.code.count; i++) isa_print(&t, &c.code.at[i]);
    }
    free_compiler(&c);
    if (status != MERA_OK) {
        text_drop(&t);
        return status;
    }
    return text_finish(&t, out);
}

mera_status mera_compile_text(mera_context *ctx, const mera_platform *platform, const char *data, size_t bytes,
                              const char *stage, char **out)
{
    TRY(mera_platform_check(ctx, platform));
    const bool lower = !strcmp(stage, "lower"), alloc = !strcmp(stage, "alloc");
    if (!lower && !alloc && strcmp(stage, "schedule"))
        return fail(ctx, MERA_INVALID_ARGUMENT, "lowered text can go on to lower, alloc or schedule, not to '%s'", stage);
    compiler c;
    text t;
    text_init(&t, ctx);
    mera_status status = MERA_DOES_NOT_FIT;
    for (int linger = attempts[0].linger; status == MERA_DOES_NOT_FIT && linger >= 0; linger--) {
        c = (compiler){.ctx = ctx, .platform = *platform, .linger = linger};
        arena_init(&c.memory, ctx);
        status = parse_jobs(&c, data, bytes);
        if (status == MERA_OK && !lower) status = stage_alloc(&c);
        if (status == MERA_DOES_NOT_FIT && linger > 0) free_compiler(&c);
    }
    if (status == MERA_OK && !lower && !alloc) status = stage_schedule(&c);
    if (status == MERA_OK && (lower || alloc)) print_jobs(&c, &t, alloc);
    for (size_t i = 0; i < c.code.count && status == MERA_OK; i++) isa_print(&t, &c.code.at[i]);
    free_compiler(&c);
    if (status != MERA_OK) {
        text_drop(&t);
        return status;
    }
    return text_finish(&t, out);
}
