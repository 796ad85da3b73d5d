/* mean.c: the average or the sum over an image. */
#include "../ops.h"

static mera_status check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_activation(graph, node, 0));
    TRY(check_clamp(graph, node, ATTR_MEAN_clamp_min));
    TRY(check_attrs(graph, node, ATTR_MEAN_sum, ATTR_MEAN_sum, 0, 1));
    const int64_t *x = node_input(graph, node, 0)->shape;
    return check_output_shape(graph, node, (int64_t[4]){x[0], 1, 1, x[3]});
}

static mera_status prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    plan->tasks = node_output(plan->graph, plan->node)->shape[0];
    plan->scratch_bytes = (size_t)node_output(plan->graph, plan->node)->shape[3] * sizeof(int32_t);
    return MERA_OK;
}

static void run(const op_run *r, int64_t task, uint8_t *scratch)
{
    const graph_node *node = r->plan->node;
    const graph_tensor *x = node_input(r->plan->graph, node, 0), *y = node_output(r->plan->graph, node);
    const int64_t channels = x->shape[3], pixels = x->shape[1] * x->shape[2];
    const rescale scale = mean_rescale(x->scale[0], y->scale[0], node->attrs[ATTR_MEAN_sum] ? 1 : pixels);
    const int32_t shift = (int32_t)((uint32_t)pixels * (uint32_t)x->zero_point[0]);
    const int32_t low = (int32_t)node->attrs[ATTR_MEAN_clamp_min], high = (int32_t)node->attrs[ATTR_MEAN_clamp_max];
    uint32_t *sum = (uint32_t *)(void *)scratch;
    memset(sum, 0, (size_t)channels * sizeof *sum);
    const int8_t *image = r->in[0] + task * pixels * channels;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++) sum[c] += (uint32_t)(int32_t)image[p * channels + c];
    for (int64_t c = 0; c < channels; c++) {
        const int32_t scaled = apply_rescale((int32_t)(sum[c] - (uint32_t)shift), scale);
        r->out[task * channels + c] = (int8_t)clamp_i32((int32_t)((uint32_t)scaled + (uint32_t)y->zero_point[0]), low, high);
    }
}

const op_impl mean_impl = {check, prepare, run};
