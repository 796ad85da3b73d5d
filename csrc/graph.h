/* graph.h: the DNA graph, the first IR: what the network computes, in the accelerator's arithmetic. */
#ifndef MERA_GRAPH_H
#define MERA_GRAPH_H

#include "core.h"

typedef enum dna_op {
#define MERA_OP(NAME, name, min_inputs, max_inputs, doc) OP_##NAME,
#define MERA_ATTR(NAME, name, default)
#include "dna_ops.def"
    OP_COUNT
} dna_op;

/* Indices into node.attrs: ATTR_CONV2D_stride_h ... */
#define MERA_OP(NAME, name, min_inputs, max_inputs, doc) ATTR_BASE_##NAME##_, ATTR_RESET_##NAME##_ = -1,
#define MERA_ATTR(NAME, name, default) ATTR_##NAME##_##name,
enum dna_attr {
#include "dna_ops.def"
    ATTR_END_
};

#define DNA_MAX_ATTRS 16
#define DNA_MAX_INPUTS 64

typedef struct graph_tensor {
    const char *name;
    mera_dtype dtype;
    int64_t shape[4]; /* N H W C */
    int64_t elements, bytes;
    const void *data; /* constants; else NULL */
    /* Quantization: scale_count is 0 (none), 1, or the number of output channels. */
    int64_t scale_count;
    const float *scale;
    const int32_t *zero_point;
    int32_t producer; /* node, or -1 */
    int32_t uses;     /* by nodes */
    bool is_input, is_output;
} graph_tensor;

typedef struct graph_node {
    dna_op op;
    const char *name, *layer, *source;
    int32_t input_count;
    const int32_t *inputs;
    int32_t output;
    int64_t attrs[DNA_MAX_ATTRS];
} graph_node;

struct mera_graph {
    mera_object object;
    arena memory;
    const char *name;
    VEC(graph_tensor) tensors;
    VEC(graph_node) nodes;
    VEC(int32_t) inputs;
    VEC(int32_t) outputs;
    bool finished;
    uint8_t *saved; /* what mera_graph_save last returned */
};

const char *op_name(dna_op op);
int op_attr_count(dna_op op);
const char *op_attr_name(dna_op op, int attr);
int op_by_name(const char *name); /* -1 if there is none */

/* An interpreter on a context of its own, so that several threads can run one finished graph. plans: NULL, or an interpreter
 * of the same graph whose plans (packed weights, tables) this one reads; it must live longer. */
mera_status interpreter_create_on(mera_context *ctx, mera_graph *graph, const mera_interpreter *plans,
                                  mera_interpreter **interpreter);

mera_status graph_check_finished(mera_graph *graph, const char *what);

#endif
