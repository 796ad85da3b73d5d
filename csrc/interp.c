/* interp.c: InterpreterHw: runs the DNA graph node by node. Memory is planned once: tensors whose lives do not overlap
 * share it. */
#include <inttypes.h>

#include "ops.h"
#include "parallel.h"
#include "placement.h"

enum { ALIGN = PLACEMENT_ALIGN };

struct mera_interpreter {
    mera_object object;
    arena memory;
    mera_graph *graph;
    op_plan *plans;            /* a node */
    int64_t *tasks;            /* a node */
    op_run *runs;              /* a node; pointers into buffer */
    int64_t *offset;           /* a tensor, in buffer; constants have none */
    int32_t *last_use;         /* a tensor: the last node that reads it; the number of nodes if it is an output */
    uint8_t *buffer, *scratch; /* made at the first run */
    size_t scratch_stride;
    int threads;
    bool keep_all, has_run;
};

static void interpreter_free(mera_object *object)
{
    mera_interpreter *it = (mera_interpreter *)object;
    ctx_free(object->ctx, it->buffer);
    ctx_free(object->ctx, it->scratch);
    arena_free(&it->memory);
    ctx_free(object->ctx, it);
}

static size_t aligned(int64_t bytes) { return (size_t)placement_bytes(bytes); }

/* What only depends on the graph, and never changes afterwards. */
static mera_status prepare_plans(mera_interpreter *it)
{
    mera_graph *graph = it->graph;
    mera_context *ctx = it->object.ctx;
    const size_t tensors = graph->tensors.count, nodes = graph->nodes.count;
    it->plans = arena_array(&it->memory, nodes, sizeof *it->plans);
    it->last_use = arena_array(&it->memory, tensors, sizeof *it->last_use);
    it->tasks = arena_array(&it->memory, nodes, sizeof *it->tasks);
    if (!it->plans || !it->tasks || !it->last_use) return out_of_memory(ctx);
    /* A small network is done before a second thread has come to help. */
    int64_t macs = 0;
    for (int32_t n = 0; n < (int32_t)graph->nodes.count; n++) macs += mera_graph_node_macs(graph, n);
    it->threads = macs < 20000000 ? 1 : ctx_threads(ctx);
    for (size_t i = 0; i < nodes; i++) {
        const graph_node *node = &graph->nodes.at[i];
        op_plan *plan = &it->plans[i];
        *plan = (op_plan){.graph = graph, .node = node, .kernels = ctx_kernels(ctx), .threads = it->threads, .tasks = 1};
        const op_impl *impl = op_impl_of(node->op);
        if (impl->prepare) TRY(impl->prepare(plan, &it->memory));
        it->tasks[i] = plan->tasks;
        if (aligned((int64_t)plan->scratch_bytes) > it->scratch_stride)
            it->scratch_stride = aligned((int64_t)plan->scratch_bytes);
        for (int32_t j = 0; j < node->input_count; j++) it->last_use[node->inputs[j]] = (int32_t)i;
    }
    for (size_t i = 0; i < graph->outputs.count; i++) it->last_use[graph->outputs.at[i]] = (int32_t)nodes;
    return MERA_OK;
}

static mera_status prepare_runs(mera_interpreter *it)
{
    const size_t nodes = it->graph->nodes.count;
    it->offset = arena_array(&it->memory, it->graph->tensors.count, sizeof *it->offset);
    it->runs = arena_array(&it->memory, nodes, sizeof *it->runs);
    if (!it->runs || !it->offset) return out_of_memory(it->object.ctx);
    for (size_t i = 0; i < nodes; i++) {
        const op_plan *plan = &it->plans[i];
        it->runs[i] =
            (op_run){.plan = plan, .in = arena_array(&it->memory, (size_t)plan->node->input_count, sizeof(int8_t *))};
        if (!it->runs[i].in) return out_of_memory(it->object.ctx);
    }
    return MERA_OK;
}

mera_status interpreter_create_on(mera_context *ctx, mera_graph *graph, const mera_interpreter *plans,
                                  mera_interpreter **out)
{
    mera_interpreter *it = ctx_alloc(ctx, sizeof *it);
    if (!it) return out_of_memory(ctx);
    memset(it, 0, sizeof *it);
    arena_init(&it->memory, ctx);
    object_attach(ctx, &it->object, interpreter_free);
    it->graph = graph;
    if (plans) {
        it->plans = plans->plans;
        it->tasks = plans->tasks;
        it->last_use = plans->last_use;
        it->scratch_stride = plans->scratch_stride;
        it->threads = plans->threads;
    }
    mera_status status = plans ? MERA_OK : prepare_plans(it);
    if (status == MERA_OK) status = prepare_runs(it);
    if (status != MERA_OK) {
        mera_interpreter_destroy(it);
        return status;
    }
    *out = it;
    return MERA_OK;
}

mera_status mera_interpreter_create(mera_graph *graph, mera_interpreter **out)
{
    TRY(graph_check_finished(graph, "an interpreter can be made"));
    return interpreter_create_on(graph->object.ctx, graph, NULL, out);
}

void mera_interpreter_destroy(mera_interpreter *it)
{
    if (!it) return;
    object_detach(&it->object);
    interpreter_free(&it->object);
}

/* ---- memory ---- */

static mera_status plan_memory(mera_interpreter *it, int64_t *total)
{
    mera_graph *graph = it->graph;
    mera_context *ctx = it->object.ctx;
    placement s = {0};
    bool ok = true;
    for (size_t i = 0; i < graph->inputs.count; i++) {
        const int32_t t = graph->inputs.at[i];
        it->offset[t] = placement_take(&s, graph->tensors.at[t].bytes);
    }
    for (size_t i = 0; ok && i < graph->nodes.count; i++) {
        const graph_node *node = &graph->nodes.at[i];
        it->offset[node->output] = placement_take(&s, graph->tensors.at[node->output].bytes);
        for (int32_t j = 0; ok && !it->keep_all && j < node->input_count; j++) {
            const int32_t t = node->inputs[j];
            if (graph->tensors.at[t].data || it->last_use[t] != (int32_t)i) continue;
            bool again = false; /* the same tensor may be read twice by one node */
            for (int32_t k = 0; k < j; k++) again = again || node->inputs[k] == t;
            if (!again) ok = placement_give(ctx, &s, it->offset[t], graph->tensors.at[t].bytes);
        }
    }
    *total = s.end;
    vec_free(ctx, &s.holes);
    return ok ? MERA_OK : out_of_memory(ctx);
}

static uint8_t *align_up(uint8_t *at) { return at + (ALIGN - (uintptr_t)at % ALIGN) % ALIGN; }

static const int8_t *tensor_data(const mera_interpreter *it, int32_t tensor)
{
    const graph_tensor *t = &it->graph->tensors.at[tensor];
    return t->data ? t->data : (const int8_t *)align_up(it->buffer) + it->offset[tensor];
}

static mera_status make_buffers(mera_interpreter *it)
{
    mera_context *ctx = it->object.ctx;
    if (!it->scratch) {
        it->scratch = ctx_alloc(ctx, it->scratch_stride * (size_t)it->threads + ALIGN);
        if (!it->scratch) return out_of_memory(ctx);
    }
    if (!it->buffer) {
        int64_t total = 0;
        TRY(plan_memory(it, &total));
        it->buffer = ctx_alloc(ctx, (size_t)total + ALIGN);
        if (!it->buffer) return out_of_memory(ctx);
        for (size_t i = 0; i < it->graph->nodes.count; i++) {
            const graph_node *node = it->runs[i].plan->node;
            for (int32_t j = 0; j < node->input_count; j++) it->runs[i].in[j] = tensor_data(it, node->inputs[j]);
            it->runs[i].out = (int8_t *)align_up(it->buffer) + it->offset[node->output];
        }
    }
    return MERA_OK;
}

/* ---- running ---- */

static mera_status check_buffers(mera_interpreter *it, const char *what, const int32_t *tensors, size_t want, int32_t count,
                                 const void *const *buffers, const int64_t *bytes)
{
    mera_context *ctx = it->object.ctx;
    if (count < 0 || (size_t)count != want)
        return fail(ctx, MERA_INVALID_ARGUMENT, "graph '%.64s': it has %zu %ss, got %d", it->graph->name, want, what, count);
    for (size_t i = 0; i < want; i++) {
        const graph_tensor *t = &it->graph->tensors.at[tensors[i]];
        if (!buffers[i] || bytes[i] != t->bytes)
            return fail(ctx, MERA_INVALID_ARGUMENT,
                        "graph '%.64s': %s %zu \"%.100s\" must have %" PRId64 " bytes, got %" PRId64, it->graph->name, what,
                        i, t->name, t->bytes, buffers[i] ? bytes[i] : 0);
    }
    return MERA_OK;
}

static void run_task(void *user, int64_t step, int64_t task, int thread)
{
    const mera_interpreter *it = user;
    const op_run *run = &it->runs[step];
    op_impl_of(run->plan->node->op)->run(run, task, align_up(it->scratch) + (size_t)thread * it->scratch_stride);
}

mera_status mera_interpreter_run(mera_interpreter *it, int32_t input_count, const void *const *inputs,
                                 const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                                 const int64_t *output_bytes)
{
    mera_graph *graph = it->graph;
    TRY(check_buffers(it, "input", graph->inputs.at, graph->inputs.count, input_count, inputs, input_bytes));
    TRY(check_buffers(it, "output", graph->outputs.at, graph->outputs.count, output_count, (const void *const *)outputs,
                      output_bytes));
    TRY(make_buffers(it));
    uint8_t *buffer = align_up(it->buffer);
    for (size_t i = 0; i < graph->inputs.count; i++)
        memcpy(buffer + it->offset[graph->inputs.at[i]], inputs[i], (size_t)input_bytes[i]);
    parallel_steps(it->threads, (int64_t)graph->nodes.count, it->tasks, run_task, it);
    for (size_t i = 0; i < graph->outputs.count; i++)
        memcpy(outputs[i], tensor_data(it, graph->outputs.at[i]), (size_t)output_bytes[i]);
    it->has_run = true;
    return MERA_OK;
}

mera_status mera_interpreter_keep_all(mera_interpreter *it, int32_t keep_all)
{
    if (it->keep_all != (keep_all != 0)) { /* the memory is planned anew */
        ctx_free(it->object.ctx, it->buffer);
        it->buffer = NULL;
        it->has_run = false;
        it->keep_all = keep_all != 0;
    }
    return MERA_OK;
}

mera_status mera_interpreter_tensor(mera_interpreter *it, int32_t tensor, const void **data, int64_t *bytes)
{
    mera_context *ctx = it->object.ctx;
    if (tensor < 0 || (size_t)tensor >= it->graph->tensors.count)
        return fail(ctx, MERA_INVALID_ARGUMENT, "there is no tensor %d, the graph has %zu", tensor,
                    it->graph->tensors.count);
    const graph_tensor *t = &it->graph->tensors.at[tensor];
    if (!t->data && !(it->keep_all && it->has_run))
        return fail(ctx, MERA_INVALID_ARGUMENT, "tensor \"%.100s\": it can be read after a run with keep_all, not otherwise",
                    t->name);
    *data = tensor_data(it, tensor);
    *bytes = t->bytes;
    return MERA_OK;
}
