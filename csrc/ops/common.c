/* common.c: the operators' table and the checks that several of them share. */
#include <inttypes.h>
#include <stdio.h>

#include "../ops.h"

static const op_impl *const impls[] = {
#define MERA_OP(NAME, name, min_inputs, max_inputs, doc) &name##_impl,
#define MERA_ATTR(NAME, name, default)
#include "../dna_ops.def"
};

const op_impl *op_impl_of(dna_op op) { return impls[op]; }

mera_status node_fail(const mera_graph *graph, const graph_node *node, mera_status status, const char *format, ...)
{
    char sentence[600];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    const bool layer = node->layer[0] != '\0', source = node->source[0] != '\0';
    return fail(graph->object.ctx, status, "%s \"%.120s\"%s%.80s%s%s%.80s%s: %s", op_name(node->op), node->name,
                layer ? " in layer " : "", node->layer, "", source ? " (" : "", node->source, source ? ")" : "", sentence);
}

mera_status check_attrs(const mera_graph *graph, const graph_node *node, int first, int last, int64_t low, int64_t high)
{
    for (int attr = first; attr <= last; attr++)
        if (node->attrs[attr] < low || node->attrs[attr] > high)
            return node_fail(graph, node, MERA_INVALID_ARGUMENT, "%s must be %" PRId64 " to %" PRId64 ", got %" PRId64,
                             op_attr_name(node->op, attr), low, high, node->attrs[attr]);
    return MERA_OK;
}

mera_status check_clamp(const mera_graph *graph, const graph_node *node, int clamp_min)
{
    TRY(check_attrs(graph, node, clamp_min, clamp_min + 1, -128, 127));
    if (node->attrs[clamp_min] > node->attrs[clamp_min + 1])
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "clamp_min must not exceed clamp_max, got %" PRId64 " and %" PRId64, node->attrs[clamp_min],
                         node->attrs[clamp_min + 1]);
    return MERA_OK;
}

mera_status check_activation(const mera_graph *graph, const graph_node *node, int32_t i)
{
    const graph_tensor *x = node_input(graph, node, i);
    if (x->dtype != MERA_INT8 || x->scale_count != 1)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "input %d must be int8 with one scale and zero point; tensor %d \"%.100s\" is %s with %" PRId64, i,
                         node->inputs[i], x->name, x->dtype == MERA_INT8 ? "int8" : "int32", x->scale_count);
    return MERA_OK;
}

mera_status check_same_quantization(const mera_graph *graph, const graph_node *node, int32_t i)
{
    TRY(check_activation(graph, node, i));
    const graph_tensor *x = node_input(graph, node, i), *y = node_output(graph, node);
    if (x->scale[0] != y->scale[0] || x->zero_point[0] != y->zero_point[0])
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "input %d must have the output's scale and zero point, got %.9g, %d and %.9g, %d", i,
                         (double)x->scale[0], x->zero_point[0], (double)y->scale[0], y->zero_point[0]);
    return MERA_OK;
}

mera_status check_output_shape(const mera_graph *graph, const graph_node *node, const int64_t shape[4])
{
    const int64_t *is = node_output(graph, node)->shape;
    if (memcmp(is, shape, 4 * sizeof *shape) != 0)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the output's shape must be [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "], got [%" PRId64
                         ", %" PRId64 ", %" PRId64 ", %" PRId64 "]",
                         shape[0], shape[1], shape[2], shape[3], is[0], is[1], is[2], is[3]);
    return MERA_OK;
}
