/* ops.h: what an operator is to graph and interpreter: its checks and its kernel. One file of csrc/ops a family. */
#ifndef MERA_OPS_H
#define MERA_OPS_H

#include "graph.h"
#include "kernels.h"

/* What an operator needs at run time; made once, when the interpreter is created. */
typedef struct op_plan {
    const mera_graph *graph;
    const graph_node *node;
    const mera_kernels *kernels;
    int threads;          /* that will share the tasks */
    const void *state;    /* of the operator, in the interpreter's arena; NULL if it needs none */
    int64_t tasks;        /* independent parts of the work, in any order; 1 unless prepare says otherwise */
    size_t scratch_bytes; /* that a task wants, aligned to 64 */
} op_plan;

/* The buffers of one run. */
typedef struct op_run {
    const op_plan *plan;
    const int8_t **in;
    int8_t *out;
} op_run;

typedef struct op_impl {
    mera_status (*check)(const mera_graph *graph, const graph_node *node);
    mera_status (*prepare)(op_plan *plan, arena *memory); /* NULL: nothing to prepare */
    void (*run)(const op_run *run, int64_t task, uint8_t *scratch);
} op_impl;

const op_impl *op_impl_of(dna_op op);

extern const op_impl conv2d_impl, add_impl, sub_impl, mul_impl, lut_impl, max_pool2d_impl, avg_pool2d_impl, mean_impl,
    concat_impl, pad_impl, slice_impl, reshape_impl, transpose_impl, resize_nearest_impl, resize_bilinear_impl, softmax_impl;

int64_t conv2d_macs(const mera_graph *graph, const graph_node *node);

/* ---- helpers for operators ---- */

static inline const graph_tensor *node_input(const mera_graph *graph, const graph_node *node, int32_t i)
{
    return &graph->tensors.at[node->inputs[i]];
}

static inline const graph_tensor *node_output(const mera_graph *graph, const graph_node *node)
{
    return &graph->tensors.at[node->output];
}

/* Fails with: operator, node's name, layer and source, then the sentence. */
mera_status node_fail(const mera_graph *graph, const graph_node *node, mera_status status, const char *format, ...)
    MERA_PRINTF(4, 5);

/* The attributes first..last must be low to high. */
mera_status check_attrs(const mera_graph *graph, const graph_node *node, int first, int last, int64_t low, int64_t high);
/* clamp_min and its neighbour clamp_max must be int8, in order. */
mera_status check_clamp(const mera_graph *graph, const graph_node *node, int clamp_min);
/* Input i is an int8 tensor with one scale and zero point. */
mera_status check_activation(const mera_graph *graph, const graph_node *node, int32_t i);
/* Input i has the output's quantization. */
mera_status check_same_quantization(const mera_graph *graph, const graph_node *node, int32_t i);
/* The output's shape is the one that the operator gives. */
mera_status check_output_shape(const mera_graph *graph, const graph_node *node, const int64_t shape[4]);

/* The taps first..last-1 of `kernel` that fall inside 0..size-1 when the window begins at `start`. */
typedef struct tap_range {
    int64_t first, last;
} tap_range;

static inline tap_range taps_inside(int64_t start, int64_t kernel, int64_t dilation, int64_t size)
{
    const int64_t first = start >= 0 ? 0 : ceil_div(-start, dilation);
    const int64_t last = start >= size ? 0 : min_i64(kernel, ceil_div(size - start, dilation));
    return (tap_range){min_i64(first, kernel), max_i64(min_i64(first, kernel), last)};
}

#endif
