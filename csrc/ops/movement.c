/* movement.c: the operators that only move bytes: concat, pad, slice, reshape, transpose. */
#include <inttypes.h>

#include "../ops.h"

#define MAX_EXTENT ((int64_t)1 << 24)

static const graph_tensor *input_of(const op_run *r, int32_t i) { return node_input(r->plan->graph, r->plan->node, i); }
static const graph_tensor *output_of(const op_run *r) { return node_output(r->plan->graph, r->plan->node); }

/* ---- concat ---- */

static mera_status concat_check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_attrs(graph, node, ATTR_CONCAT_axis, ATTR_CONCAT_axis, 0, 3));
    const int64_t axis = node->attrs[ATTR_CONCAT_axis];
    int64_t shape[4];
    memcpy(shape, node_input(graph, node, 0)->shape, sizeof shape);
    shape[axis] = 0;
    for (int32_t i = 0; i < node->input_count; i++) {
        TRY(check_same_quantization(graph, node, i));
        const int64_t *x = node_input(graph, node, i)->shape;
        for (int d = 0; d < 4; d++)
            if (d != axis && x[d] != shape[d])
                return node_fail(
                    graph, node, MERA_INVALID_ARGUMENT,
                    "the inputs must agree in all dimensions but the axis; in dimension %d input %d has %" PRId64
                    ", input 0 has %" PRId64,
                    d, i, x[d], shape[d]);
        shape[axis] += x[axis];
    }
    return check_output_shape(graph, node, shape);
}

static void concat_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)task, (void)scratch;
    const int64_t axis = r->plan->node->attrs[ATTR_CONCAT_axis], *y = output_of(r)->shape;
    int64_t outer = 1, inner = 1;
    for (int64_t d = 0; d < axis; d++) outer *= y[d];
    for (int64_t d = axis + 1; d < 4; d++) inner *= y[d];
    int8_t *to = r->out;
    for (int64_t row = 0; row < outer; row++)
        for (int32_t i = 0; i < r->plan->node->input_count; i++) {
            const int64_t run = input_of(r, i)->shape[axis] * inner;
            memcpy(to, r->in[i] + row * run, (size_t)run);
            to += run;
        }
}

const op_impl concat_impl = {concat_check, NULL, concat_run};

/* ---- pad ---- */

static mera_status pad_check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_same_quantization(graph, node, 0));
    TRY(check_attrs(graph, node, ATTR_PAD_pad_top, ATTR_PAD_pad_channel_after, 0, MAX_EXTENT));
    TRY(check_attrs(graph, node, ATTR_PAD_value, ATTR_PAD_value, -128, 127));
    const int64_t *x = node_input(graph, node, 0)->shape, *a = node->attrs;
    return check_output_shape(graph, node,
                              (int64_t[4]){x[0], x[1] + a[ATTR_PAD_pad_top] + a[ATTR_PAD_pad_bottom],
                                           x[2] + a[ATTR_PAD_pad_left] + a[ATTR_PAD_pad_right],
                                           x[3] + a[ATTR_PAD_pad_channel_before] + a[ATTR_PAD_pad_channel_after]});
}

static void pad_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)task, (void)scratch;
    const int64_t *x = input_of(r, 0)->shape, *y = output_of(r)->shape, *a = r->plan->node->attrs;
    memset(r->out, (int)a[ATTR_PAD_value], (size_t)output_of(r)->elements);
    for (int64_t n = 0; n < x[0]; n++)
        for (int64_t h = 0; h < x[1]; h++)
            for (int64_t w = 0; w < x[2]; w++)
                memcpy(r->out + ((n * y[1] + h + a[ATTR_PAD_pad_top]) * y[2] + w + a[ATTR_PAD_pad_left]) * y[3] +
                           a[ATTR_PAD_pad_channel_before],
                       r->in[0] + ((n * x[1] + h) * x[2] + w) * x[3], (size_t)x[3]);
}

const op_impl pad_impl = {pad_check, NULL, pad_run};

/* ---- reshape ---- */

static mera_status reshape_check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_same_quantization(graph, node, 0));
    const int64_t x = node_input(graph, node, 0)->elements, y = node_output(graph, node)->elements;
    if (x != y)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the output must have as many elements as the input, got %" PRId64 " and %" PRId64, y, x);
    return MERA_OK;
}

static void reshape_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)task, (void)scratch;
    memcpy(r->out, r->in[0], (size_t)output_of(r)->elements);
}

const op_impl reshape_impl = {reshape_check, NULL, reshape_run};

/* ---- slice, transpose: y[i0, i1, i2, i3] = x at the sum of four offsets ---- */

/* y's element [i] is x[base + sum(i[d] * stride[d])]. */
typedef struct gather {
    int64_t base, stride[4];
} gather;

/* A task is one row, [i0, i1]. */
static mera_status gather_prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    const int64_t *y = node_output(plan->graph, plan->node)->shape;
    plan->tasks = y[0] * y[1];
    return MERA_OK;
}

static void gather_row(const op_run *r, const gather *g, int64_t row)
{
    const int64_t *y = output_of(r)->shape;
    const int8_t *line = r->in[0] + g->base + row / y[1] * g->stride[0] + row % y[1] * g->stride[1];
    int8_t *to = r->out + row * y[2] * y[3];
    for (int64_t w = 0; w < y[2]; w++, to += y[3]) {
        const int8_t *from = line + w * g->stride[2];
        if (g->stride[3] == 1)
            memcpy(to, from, (size_t)y[3]);
        else
            for (int64_t c = 0; c < y[3]; c++) to[c] = from[c * g->stride[3]];
    }
}

static gather gather_of(const int64_t *x) { return (gather){0, {x[1] * x[2] * x[3], x[2] * x[3], x[3], 1}}; }

static mera_status slice_check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_same_quantization(graph, node, 0));
    TRY(check_attrs(graph, node, ATTR_SLICE_begin_n, ATTR_SLICE_begin_c, 0, MAX_EXTENT));
    TRY(check_attrs(graph, node, ATTR_SLICE_step_n, ATTR_SLICE_step_c, 1, MAX_EXTENT));
    const int64_t *x = node_input(graph, node, 0)->shape, *y = node_output(graph, node)->shape;
    for (int d = 0; d < 4; d++) {
        const int64_t last = node->attrs[ATTR_SLICE_begin_n + d] + (y[d] - 1) * node->attrs[ATTR_SLICE_step_n + d];
        if (last >= x[d])
            return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                             "the last index taken must be below the input's size; in dimension %d it is %" PRId64
                             " of %" PRId64,
                             d, last, x[d]);
    }
    return MERA_OK;
}

static void slice_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)scratch;
    gather g = gather_of(input_of(r, 0)->shape);
    for (int d = 0; d < 4; d++) {
        g.base += r->plan->node->attrs[ATTR_SLICE_begin_n + d] * g.stride[d];
        g.stride[d] *= r->plan->node->attrs[ATTR_SLICE_step_n + d];
    }
    gather_row(r, &g, task);
}

const op_impl slice_impl = {slice_check, gather_prepare, slice_run};

static mera_status transpose_check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_same_quantization(graph, node, 0));
    TRY(check_attrs(graph, node, ATTR_TRANSPOSE_perm_0, ATTR_TRANSPOSE_perm_3, 0, 3));
    const int64_t *x = node_input(graph, node, 0)->shape, *perm = node->attrs;
    int64_t shape[4], seen = 0;
    for (int d = 0; d < 4; d++) {
        seen |= (int64_t)1 << perm[d];
        shape[d] = x[perm[d]];
    }
    if (seen != 15)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "perm must name each of the dimensions 0 to 3 once, got %" PRId64 ", %" PRId64 ", %" PRId64
                         ", %" PRId64,
                         perm[0], perm[1], perm[2], perm[3]);
    return check_output_shape(graph, node, shape);
}

static void transpose_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)scratch;
    const gather x = gather_of(input_of(r, 0)->shape);
    gather g = x;
    for (int d = 0; d < 4; d++) g.stride[d] = x.stride[r->plan->node->attrs[ATTR_TRANSPOSE_perm_0 + d]];
    gather_row(r, &g, task);
}

const op_impl transpose_impl = {transpose_check, gather_prepare, transpose_run};
