/* lut.c: every unary function of an int8 value. */
#include "../ops.h"

static mera_status check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_activation(graph, node, 0));
    const graph_tensor *table = node_input(graph, node, 1);
    if (!table->data || table->dtype != MERA_INT8 || table->elements != 256 || table->shape[3] != 256)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT, "the table must be an int8 constant of shape [1, 1, 1, 256]");
    return check_output_shape(graph, node, node_input(graph, node, 0)->shape);
}

enum { CHUNK = 1 << 14 };

static mera_status prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    plan->tasks = ceil_div(node_output(plan->graph, plan->node)->elements, CHUNK);
    return MERA_OK;
}

static void run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)scratch;
    const int8_t *x = r->in[0], *table = r->in[1] + 128;
    int8_t *y = r->out;
    const int64_t end = min_i64((task + 1) * CHUNK, node_output(r->plan->graph, r->plan->node)->elements);
    for (int64_t i = task * CHUNK; i < end; i++) y[i] = table[x[i]];
}

const op_impl lut_impl = {check, prepare, run};
