/* resize.c: nearest and bilinear resizing by tables of source positions. */
#include <inttypes.h>

#include "../ops.h"
#include "../rowmath.h"

/* Input i holds a position of 0 to last for each of the `count` rows or columns of the output. */
static mera_status check_positions(const mera_graph *graph, const graph_node *node, int32_t i, int64_t count, int64_t last)
{
    const graph_tensor *table = node_input(graph, node, i);
    if (!table->data || table->dtype != MERA_INT32 || table->elements != count || table->shape[3] != count)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "input %d must be an int32 constant of shape [1, 1, 1, %" PRId64 "]", i, count);
    const int32_t *at = table->data;
    for (int64_t k = 0; k < count; k++)
        if (at[k] < 0 || at[k] > last)
            return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                             "the positions of input %d must be 0 to %" PRId64 ", got %d at index %" PRId64, i, last, at[k],
                             k);
    return MERA_OK;
}

static mera_status check(const mera_graph *graph, const graph_node *node, int64_t unit)
{
    TRY(check_same_quantization(graph, node, 0));
    const int64_t *x = node_input(graph, node, 0)->shape, *y = node_output(graph, node)->shape;
    TRY(check_positions(graph, node, 1, y[1], (x[1] - 1) * unit));
    TRY(check_positions(graph, node, 2, y[2], (x[2] - 1) * unit));
    return check_output_shape(graph, node, (int64_t[4]){x[0], y[1], y[2], x[3]});
}

static mera_status nearest_check(const mera_graph *graph, const graph_node *node) { return check(graph, node, 1); }
static mera_status bilinear_check(const mera_graph *graph, const graph_node *node) { return check(graph, node, RESIZE_ONE); }

/* A task is one row of the output. */
static mera_status prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    const int64_t *y = node_output(plan->graph, plan->node)->shape;
    plan->tasks = y[0] * y[1];
    return MERA_OK;
}

typedef struct resized_row {
    const int8_t *image; /* of x */
    int8_t *out;
    int64_t position, pitch, columns, channels;
    const int32_t *column; /* positions */
} resized_row;

static resized_row row_of(const op_run *r, int64_t task)
{
    const graph_node *node = r->plan->node;
    const int64_t *x = node_input(r->plan->graph, node, 0)->shape, *y = node_output(r->plan->graph, node)->shape;
    const int32_t *rows = node_input(r->plan->graph, node, 1)->data;
    return (resized_row){
        .image = r->in[0] + task / y[1] * x[1] * x[2] * x[3],
        .out = r->out + task * y[2] * y[3],
        .position = rows[task % y[1]],
        .pitch = x[2] * x[3],
        .columns = y[2],
        .channels = x[3],
        .column = node_input(r->plan->graph, node, 2)->data,
    };
}

static void nearest_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)scratch;
    const resized_row o = row_of(r, task);
    const int8_t *line = o.image + o.position * o.pitch;
    for (int64_t j = 0; j < o.columns; j++)
        memcpy(o.out + j * o.channels, line + o.column[j] * o.channels, (size_t)o.channels);
}

static void bilinear_run(const op_run *r, int64_t task, uint8_t *scratch)
{
    (void)scratch;
    const resized_row o = row_of(r, task);
    const int32_t f = (int32_t)(o.position % RESIZE_ONE);
    const int8_t *top = o.image + o.position / RESIZE_ONE * o.pitch, *bottom = f ? top + o.pitch : top;
    for (int64_t j = 0; j < o.columns; j++) {
        const int32_t g = o.column[j] % RESIZE_ONE;
        const int64_t left = o.column[j] / RESIZE_ONE * o.channels, right = left + (g ? o.channels : 0);
        const int8_t *const corner[2][2] = {{top + left, top + right}, {bottom + left, bottom + right}};
        interpolate_s8(o.channels, corner, f, g, o.out + j * o.channels);
    }
}

const op_impl resize_nearest_impl = {nearest_check, prepare, nearest_run};
const op_impl resize_bilinear_impl = {bilinear_check, prepare, bilinear_run};
