/* softmax.c: softmax over the channels. */
#include "../ops.h"
#include "../rowmath.h"

static mera_status check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_activation(graph, node, 0));
    const graph_tensor *table = node_input(graph, node, 1), *y = node_output(graph, node);
    if (!table->data || table->dtype != MERA_INT32 || table->elements != 256 || table->shape[3] != 256)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT, "the table must be an int32 constant of shape [1, 1, 1, 256]");
    const int32_t *at = table->data;
    for (int k = 0; k < 256; k++)
        if (at[k] < 0 || (k == 0 && at[k] != INT32_MAX))
            return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                             "the table must begin with 2147483647, exp(0), and hold nothing below 0, got %d at index %d",
                             at[k], k);
    if (y->scale[0] != 1.0f / 256 || y->zero_point[0] != -128)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the output must have scale 1/256 and zero point -128, got %.9g and %d", (double)y->scale[0],
                         y->zero_point[0]);
    return check_output_shape(graph, node, node_input(graph, node, 0)->shape);
}

/* A task is a few pixels. */
static int64_t pixels_of(const int64_t *shape) { return max_i64(1, 8192 / shape[3]); }

static mera_status prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    const graph_tensor *y = node_output(plan->graph, plan->node);
    plan->tasks = ceil_div(y->elements / y->shape[3], pixels_of(y->shape));
    return MERA_OK;
}

static void run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)scratch;
    const graph_tensor *y = node_output(r->plan->graph, r->plan->node);
    const int32_t *table = node_input(r->plan->graph, r->plan->node, 1)->data;
    const int64_t channels = y->shape[3], some = pixels_of(y->shape);
    const int64_t end = min_i64((task + 1) * some, y->elements / channels);
    for (int64_t p = task * some; p < end; p++) softmax_s8(channels, r->in[0] + p * channels, table, r->out + p * channels);
}

const op_impl softmax_impl = {check, prepare, run};
