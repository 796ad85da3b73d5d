/* graph.c: the builder of the DNA graph, its accessors, and the checks of a whole graph. */
#include <inttypes.h>
#include <math.h>

#include "ops.h"

#define MAX_DIMENSION ((int64_t)1 << 24)
#define MAX_TENSORS ((size_t)1 << 20)

static size_t dtype_size(mera_dtype dtype) { return dtype == MERA_INT8 ? 1 : 4; }
static const char *dtype_name(mera_dtype dtype) { return dtype == MERA_INT8 ? "int8" : "int32"; }

static void graph_free(mera_object *object)
{
    mera_graph *graph = (mera_graph *)object;
    mera_context *ctx = object->ctx;
    vec_free(ctx, &graph->tensors);
    vec_free(ctx, &graph->nodes);
    vec_free(ctx, &graph->inputs);
    vec_free(ctx, &graph->outputs);
    ctx_free(ctx, graph->saved);
    arena_free(&graph->memory);
    ctx_free(ctx, graph);
}

mera_status mera_graph_create(mera_context *ctx, const char *name, mera_graph **out)
{
    mera_graph *graph = ctx_alloc(ctx, sizeof *graph);
    if (!graph) return out_of_memory(ctx);
    memset(graph, 0, sizeof *graph);
    arena_init(&graph->memory, ctx);
    object_attach(ctx, &graph->object, graph_free);
    graph->name = arena_string(&graph->memory, name);
    if (!graph->name) {
        mera_graph_destroy(graph);
        return out_of_memory(ctx);
    }
    *out = graph;
    return MERA_OK;
}

void mera_graph_destroy(mera_graph *graph)
{
    if (!graph) return;
    object_detach(&graph->object);
    graph_free(&graph->object);
}

/* ---- building ---- */

static mera_status check_open(mera_graph *graph)
{
    if (graph->finished)
        return fail(graph->object.ctx, MERA_INVALID_ARGUMENT, "graph '%.64s': finished, it cannot be changed", graph->name);
    return MERA_OK;
}

static mera_status check_tensor_index(mera_graph *graph, int32_t tensor, const char *what)
{
    if (tensor < 0 || (size_t)tensor >= graph->tensors.count)
        return fail(graph->object.ctx, MERA_INVALID_ARGUMENT, "%s: there is no tensor %d, the graph has %zu", what, tensor,
                    graph->tensors.count);
    return MERA_OK;
}

mera_status mera_graph_tensor(mera_graph *graph, const char *name, mera_dtype dtype, const int64_t shape[4], int32_t *tensor)
{
    mera_context *ctx = graph->object.ctx;
    TRY(check_open(graph));
    const char *label = name ? name : "";
    if (dtype != MERA_INT8 && dtype != MERA_INT32)
        return fail(ctx, MERA_UNSUPPORTED, "tensor \"%.200s\": dtype must be int8 or int32, got number %d", label,
                    (int)dtype);
    int64_t elements = 1;
    for (int d = 0; d < 4; d++) {
        if (shape[d] < 1 || shape[d] > MAX_DIMENSION)
            return fail(ctx, MERA_INVALID_ARGUMENT, "tensor \"%.200s\": every dimension must be 1 to 2^24, got %" PRId64,
                        label, shape[d]);
        elements *= shape[d]; /* at most 2^31 * 2^24 */
        if (elements > INT32_MAX)
            return fail(ctx, MERA_INVALID_ARGUMENT,
                        "tensor \"%.200s\": it must have at most 2^31-1 elements, got shape [%" PRId64 ", %" PRId64
                        ", %" PRId64 ", %" PRId64 "]",
                        label, shape[0], shape[1], shape[2], shape[3]);
    }
    if (graph->tensors.count >= MAX_TENSORS)
        return fail(ctx, MERA_INVALID_ARGUMENT, "tensor \"%.200s\": a graph must have at most 2^20 tensors", label);
    graph_tensor t = {.dtype = dtype, .elements = elements, .bytes = elements * (int64_t)dtype_size(dtype), .producer = -1};
    memcpy(t.shape, shape, sizeof t.shape);
    t.name = arena_string(&graph->memory, label);
    if (!t.name || !vec_push(ctx, &graph->tensors, t)) return out_of_memory(ctx);
    *tensor = (int32_t)graph->tensors.count - 1;
    return MERA_OK;
}

mera_status mera_graph_constant(mera_graph *graph, const char *name, mera_dtype dtype, const int64_t shape[4],
                                const void *data, size_t bytes, int32_t *tensor)
{
    TRY(mera_graph_tensor(graph, name, dtype, shape, tensor));
    graph_tensor *t = &graph->tensors.at[*tensor];
    if (bytes != (size_t)t->bytes || !data) {
        graph->tensors.count--;
        return fail(graph->object.ctx, MERA_INVALID_ARGUMENT,
                    "constant \"%.200s\": its data must have %" PRId64 " bytes, got %zu", t->name, t->bytes,
                    data ? bytes : 0);
    }
    void *copy = arena_array(&graph->memory, bytes, 1);
    if (!copy) {
        graph->tensors.count--;
        return out_of_memory(graph->object.ctx);
    }
    memcpy(copy, data, bytes);
    t->data = copy;
    return MERA_OK;
}

mera_status mera_graph_quantize(mera_graph *graph, int32_t tensor, int64_t count, const float *scale,
                                const int32_t *zero_point)
{
    mera_context *ctx = graph->object.ctx;
    TRY(check_open(graph));
    TRY(check_tensor_index(graph, tensor, "quantize"));
    graph_tensor *t = &graph->tensors.at[tensor];
    if (t->dtype != MERA_INT8)
        return fail(ctx, MERA_INVALID_ARGUMENT, "tensor \"%.200s\": only int8 tensors have a quantization, this is %s",
                    t->name, dtype_name(t->dtype));
    if (count != 1 && count != t->shape[0])
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "tensor \"%.200s\": it must have 1 scale or %" PRId64 ", one a channel, got %" PRId64, t->name,
                    t->shape[0], count);
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(scale[i]) || !(scale[i] > 0))
            return fail(ctx, MERA_INVALID_ARGUMENT, "tensor \"%.200s\": scale must be finite and above 0, got %g", t->name,
                        (double)scale[i]);
        if (zero_point[i] < -128 || zero_point[i] > 127)
            return fail(ctx, MERA_INVALID_ARGUMENT, "tensor \"%.200s\": zero point must be -128 to 127, got %d", t->name,
                        zero_point[i]);
    }
    float *scales = arena_array(&graph->memory, (size_t)count, sizeof *scales);
    int32_t *zeros = arena_array(&graph->memory, (size_t)count, sizeof *zeros);
    if (!scales || !zeros) return out_of_memory(ctx);
    memcpy(scales, scale, (size_t)count * sizeof *scales);
    memcpy(zeros, zero_point, (size_t)count * sizeof *zeros);
    t->scale_count = count;
    t->scale = scales;
    t->zero_point = zeros;
    return MERA_OK;
}

mera_status mera_graph_node(mera_graph *graph, int32_t op, const char *name, const char *layer, const char *source,
                            int32_t input_count, const int32_t *inputs, int32_t output, int32_t attr_count,
                            const int64_t *attrs, int32_t *node)
{
    mera_context *ctx = graph->object.ctx;
    TRY(check_open(graph));
    const char *label = name ? name : "";
    if (op < 0 || op >= OP_COUNT)
        return fail(ctx, MERA_INVALID_ARGUMENT, "node \"%.200s\": there is no operator %d", label, op);
    const char *kind = op_name((dna_op)op);
    if (input_count < mera_op_min_inputs(op) || input_count > mera_op_max_inputs(op))
        return fail(ctx, MERA_INVALID_ARGUMENT, "%s \"%.200s\": it must have %d to %d inputs, got %d", kind, label,
                    mera_op_min_inputs(op), mera_op_max_inputs(op), input_count);
    if (attr_count != op_attr_count((dna_op)op))
        return fail(ctx, MERA_INVALID_ARGUMENT, "%s \"%.200s\": it must have %d attributes, got %d", kind, label,
                    op_attr_count((dna_op)op), attr_count);
    for (int32_t i = 0; i < input_count; i++) {
        TRY(check_tensor_index(graph, inputs[i], label));
        const graph_tensor *t = &graph->tensors.at[inputs[i]];
        if (!t->data && !t->is_input && t->producer < 0)
            return fail(ctx, MERA_INVALID_ARGUMENT,
                        "%s \"%.200s\": input %d must be a constant, a graph input or an earlier node's output; "
                        "tensor %d \"%.200s\" is none of them",
                        kind, label, i, inputs[i], t->name);
    }
    TRY(check_tensor_index(graph, output, label));
    graph_tensor *y = &graph->tensors.at[output];
    if (y->data || y->is_input || y->producer >= 0)
        return fail(ctx, MERA_INVALID_ARGUMENT, "%s \"%.200s\": output tensor %d \"%.200s\" must not be %s", kind, label,
                    output, y->name,
                    y->data       ? "a constant"
                    : y->is_input ? "a graph input"
                                  : "written by another node");

    graph_node n = {.op = (dna_op)op, .input_count = input_count, .output = output};
    int32_t *copy = arena_array(&graph->memory, (size_t)input_count, sizeof *copy);
    n.name = arena_string(&graph->memory, name);
    n.layer = arena_string(&graph->memory, layer);
    n.source = arena_string(&graph->memory, source);
    if (!copy || !n.name || !n.layer || !n.source) return out_of_memory(ctx);
    memcpy(copy, inputs, (size_t)input_count * sizeof *copy);
    n.inputs = copy;
    if (attr_count) memcpy(n.attrs, attrs, (size_t)attr_count * sizeof *attrs);
    if (!vec_push(ctx, &graph->nodes, n)) return out_of_memory(ctx);
    for (int32_t i = 0; i < input_count; i++) graph->tensors.at[inputs[i]].uses++;
    y->producer = (int32_t)graph->nodes.count - 1;
    if (node) *node = y->producer;
    return MERA_OK;
}

mera_status mera_graph_input(mera_graph *graph, int32_t tensor)
{
    mera_context *ctx = graph->object.ctx;
    TRY(check_open(graph));
    TRY(check_tensor_index(graph, tensor, "graph input"));
    graph_tensor *t = &graph->tensors.at[tensor];
    if (t->data || t->is_input || t->producer >= 0)
        return fail(ctx, MERA_INVALID_ARGUMENT, "graph input \"%.200s\": the tensor must not be %s", t->name,
                    t->data       ? "a constant"
                    : t->is_input ? "an input already"
                                  : "written by a node");
    if (!vec_push(ctx, &graph->inputs, tensor)) return out_of_memory(ctx);
    t->is_input = true;
    return MERA_OK;
}

mera_status mera_graph_output(mera_graph *graph, int32_t tensor)
{
    mera_context *ctx = graph->object.ctx;
    TRY(check_open(graph));
    TRY(check_tensor_index(graph, tensor, "graph output"));
    graph_tensor *t = &graph->tensors.at[tensor];
    if (t->data || t->is_output)
        return fail(ctx, MERA_INVALID_ARGUMENT, "graph output \"%.200s\": the tensor must not be %s", t->name,
                    t->data ? "a constant" : "an output already");
    if (!vec_push(ctx, &graph->outputs, tensor)) return out_of_memory(ctx);
    t->is_output = true;
    return MERA_OK;
}

/* ---- checking ---- */

static mera_status check_tensor(mera_graph *graph, int32_t index)
{
    mera_context *ctx = graph->object.ctx;
    const graph_tensor *t = &graph->tensors.at[index];
    if (!t->data && !t->is_input && t->producer < 0)
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "tensor %d \"%.200s\": it must be a constant, a graph input or a node's output", index, t->name);
    if (t->uses == 0 && !t->is_output)
        return fail(ctx, MERA_INVALID_ARGUMENT, "tensor %d \"%.200s\": it must be used by a node or be a graph output",
                    index, t->name);
    if (!t->data && t->dtype != MERA_INT8)
        return fail(ctx, MERA_UNSUPPORTED, "tensor %d \"%.200s\": only constants may be %s, activations are int8", index,
                    t->name, dtype_name(t->dtype));
    if (!t->data && t->scale_count != 1)
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "tensor %d \"%.200s\": an activation must be quantized with one scale and zero point, got %" PRId64,
                    index, t->name, t->scale_count);
    return MERA_OK;
}

mera_status mera_graph_finish(mera_graph *graph)
{
    mera_context *ctx = graph->object.ctx;
    TRY(check_open(graph));
    if (graph->nodes.count == 0)
        return fail(ctx, MERA_INVALID_ARGUMENT, "graph '%.64s': it must have at least one node", graph->name);
    if (graph->outputs.count == 0)
        return fail(ctx, MERA_INVALID_ARGUMENT, "graph '%.64s': it must have at least one output", graph->name);
    for (size_t i = 0; i < graph->tensors.count; i++) TRY(check_tensor(graph, (int32_t)i));
    for (size_t i = 0; i < graph->nodes.count; i++) {
        const graph_node *node = &graph->nodes.at[i];
        TRY(op_impl_of(node->op)->check(graph, node));
    }
    graph->finished = true;
    return MERA_OK;
}

mera_status graph_check_finished(mera_graph *graph, const char *what)
{
    if (!graph->finished)
        return fail(graph->object.ctx, MERA_INVALID_ARGUMENT, "graph '%.64s': it must be finished before %s", graph->name,
                    what);
    return MERA_OK;
}

/* ---- accessors: an index out of range gives zero, "" or -1 ---- */

static const graph_tensor *tensor_at(const mera_graph *graph, int32_t tensor)
{
    static const graph_tensor none = {.name = "", .producer = -1};
    return tensor >= 0 && (size_t)tensor < graph->tensors.count ? &graph->tensors.at[tensor] : &none;
}

static const graph_node *node_at(const mera_graph *graph, int32_t node)
{
    static const graph_node none = {.op = OP_COUNT, .name = "", .layer = "", .source = "", .output = -1};
    return node >= 0 && (size_t)node < graph->nodes.count ? &graph->nodes.at[node] : &none;
}

int32_t mera_graph_tensor_count(const mera_graph *graph) { return (int32_t)graph->tensors.count; }
const char *mera_graph_tensor_name(const mera_graph *graph, int32_t tensor) { return tensor_at(graph, tensor)->name; }
mera_dtype mera_graph_tensor_dtype(const mera_graph *graph, int32_t tensor) { return tensor_at(graph, tensor)->dtype; }

void mera_graph_tensor_shape(const mera_graph *graph, int32_t tensor, int64_t shape[4])
{
    memcpy(shape, tensor_at(graph, tensor)->shape, 4 * sizeof *shape);
}

int64_t mera_graph_tensor_bytes(const mera_graph *graph, int32_t tensor) { return tensor_at(graph, tensor)->bytes; }

int32_t mera_graph_tensor_is_constant(const mera_graph *graph, int32_t tensor)
{
    return tensor_at(graph, tensor)->data != NULL;
}

float mera_graph_tensor_scale(const mera_graph *graph, int32_t tensor)
{
    const graph_tensor *t = tensor_at(graph, tensor);
    return t->scale_count ? t->scale[0] : 0.0f;
}

int32_t mera_graph_tensor_zero_point(const mera_graph *graph, int32_t tensor)
{
    const graph_tensor *t = tensor_at(graph, tensor);
    return t->scale_count ? t->zero_point[0] : 0;
}

int32_t mera_graph_node_count(const mera_graph *graph) { return (int32_t)graph->nodes.count; }
int32_t mera_graph_node_op(const mera_graph *graph, int32_t node) { return (int32_t)node_at(graph, node)->op; }
const char *mera_graph_node_name(const mera_graph *graph, int32_t node) { return node_at(graph, node)->name; }
const char *mera_graph_node_layer(const mera_graph *graph, int32_t node) { return node_at(graph, node)->layer; }
const char *mera_graph_node_source(const mera_graph *graph, int32_t node) { return node_at(graph, node)->source; }
int32_t mera_graph_node_output(const mera_graph *graph, int32_t node) { return node_at(graph, node)->output; }

int64_t mera_graph_node_macs(const mera_graph *graph, int32_t node)
{
    const graph_node *n = node_at(graph, node);
    return n->op == OP_CONV2D && graph->finished ? conv2d_macs(graph, n) : 0;
}

int32_t mera_graph_input_count(const mera_graph *graph) { return (int32_t)graph->inputs.count; }
int32_t mera_graph_output_count(const mera_graph *graph) { return (int32_t)graph->outputs.count; }

int32_t mera_graph_input_tensor(const mera_graph *graph, int32_t index)
{
    return index >= 0 && (size_t)index < graph->inputs.count ? graph->inputs.at[index] : -1;
}

int32_t mera_graph_output_tensor(const mera_graph *graph, int32_t index)
{
    return index >= 0 && (size_t)index < graph->outputs.count ? graph->outputs.at[index] : -1;
}
