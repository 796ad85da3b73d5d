/* pool.c: max_pool2d and avg_pool2d. */
#include <inttypes.h>
#include <stdio.h>

#include "../ops.h"

#define MAX_AVERAGE ((int64_t)1 << 23)

typedef struct pool {
    int64_t kernel[2], stride[2], before[2], after[2], dilation[2]; /* rows, columns */
    int32_t low, high;
} pool;

static pool pool_of(const graph_node *node)
{
    const int64_t *a = node->attrs;
    /* kernel, stride and padding stand at the same indices in both operators */
    pool p = {{a[0], a[1]}, {a[2], a[3]}, {a[4], a[6]}, {a[5], a[7]}, {1, 1}, 0, 0};
    const bool max = node->op == OP_MAX_POOL2D;
    if (max) p.dilation[0] = a[ATTR_MAX_POOL2D_dilation_h], p.dilation[1] = a[ATTR_MAX_POOL2D_dilation_w];
    p.low = (int32_t)a[max ? ATTR_MAX_POOL2D_clamp_min : ATTR_AVG_POOL2D_clamp_min];
    p.high = (int32_t)a[max ? ATTR_MAX_POOL2D_clamp_max : ATTR_AVG_POOL2D_clamp_max];
    return p;
}

_Static_assert((int)ATTR_MAX_POOL2D_kernel_h == (int)ATTR_AVG_POOL2D_kernel_h &&
                   (int)ATTR_MAX_POOL2D_pad_right == (int)ATTR_AVG_POOL2D_pad_right && (int)ATTR_MAX_POOL2D_pad_right == 7,
               "pool_of relies on it");

/* The output's size may be the floor or the ceiling of the formula; either way every window holds an element. */
static mera_status check_axis(const mera_graph *graph, const graph_node *node, const pool *p, int axis)
{
    const char *name = axis == 0 ? "height" : "width";
    const int64_t size = node_input(graph, node, 0)->shape[1 + axis], out = node_output(graph, node)->shape[1 + axis];
    const int64_t room = size + p->before[axis] + p->after[axis] - p->dilation[axis] * (p->kernel[axis] - 1) - 1;
    const int64_t least = room < 0 ? 1 : room / p->stride[axis] + 1;
    const int64_t most = room < 0 ? 1 : ceil_div(room, p->stride[axis]) + 1;
    if (out < least || out > most) {
        char also[32] = "";
        if (most > least) snprintf(also, sizeof also, " or %" PRId64, most);
        return node_fail(graph, node, MERA_INVALID_ARGUMENT, "the output's %s must be %" PRId64 "%s, got %" PRId64, name,
                         least, also, out);
    }
    /* A window that begins inside holds the element that it begins with; one that begins behind the end holds none. */
    const int64_t stride = p->stride[axis], before = p->before[axis];
    int64_t empty = (out - 1) * stride - before >= size ? ceil_div(size + before, stride) : -1;
    for (int64_t i = min_i64(out, ceil_div(before, stride)) - 1; i >= 0; i--) {
        const tap_range t = taps_inside(i * stride - before, p->kernel[axis], p->dilation[axis], size);
        if (t.first >= t.last) empty = i;
    }
    if (empty >= 0)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "every window must hold an element of the input; along the %s window %" PRId64 " holds none", name,
                         empty);
    return MERA_OK;
}

static mera_status check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_same_quantization(graph, node, 0));
    TRY(check_attrs(graph, node, ATTR_MAX_POOL2D_kernel_h, ATTR_MAX_POOL2D_stride_w, 1, 65535));
    TRY(check_attrs(graph, node, ATTR_MAX_POOL2D_pad_top, ATTR_MAX_POOL2D_pad_right, 0, 65535));
    if (node->op == OP_MAX_POOL2D) {
        TRY(check_attrs(graph, node, ATTR_MAX_POOL2D_dilation_h, ATTR_MAX_POOL2D_dilation_w, 1, 65535));
        TRY(check_clamp(graph, node, ATTR_MAX_POOL2D_clamp_min));
    } else {
        TRY(check_attrs(graph, node, ATTR_AVG_POOL2D_count_include_pad, ATTR_AVG_POOL2D_count_include_pad, 0, 1));
        TRY(check_clamp(graph, node, ATTR_AVG_POOL2D_clamp_min));
        const int64_t taps = node->attrs[ATTR_AVG_POOL2D_kernel_h] * node->attrs[ATTR_AVG_POOL2D_kernel_w];
        if (taps > MAX_AVERAGE)
            return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                             "a window must have at most 2^23 elements, so that their sum fits int32, got %" PRId64, taps);
    }
    const int64_t *x = node_input(graph, node, 0)->shape, *y = node_output(graph, node)->shape;
    TRY(check_output_shape(graph, node, (int64_t[4]){x[0], y[1], y[2], x[3]}));
    const pool p = pool_of(node);
    TRY(check_axis(graph, node, &p, 0));
    return check_axis(graph, node, &p, 1);
}

static void max_pixel(const pool *p, const int8_t *image, int64_t width, int64_t channels, int64_t top, int64_t left,
                      tap_range rows, tap_range columns, int8_t *y)
{
    memset(y, p->low, (size_t)channels); /* the clamp from below */
    for (int64_t kh = rows.first; kh < rows.last; kh++)
        for (int64_t kw = columns.first; kw < columns.last; kw++) {
            const int8_t *x = image + ((top + kh * p->dilation[0]) * width + left + kw * p->dilation[1]) * channels;
            for (int64_t c = 0; c < channels; c++) y[c] = x[c] > y[c] ? x[c] : y[c];
        }
    for (int64_t c = 0; c < channels; c++) y[c] = y[c] < p->high ? y[c] : (int8_t)p->high;
}

static void average_pixel(const pool *p, const int8_t *image, int64_t width, int64_t channels, int64_t top, int64_t left,
                          tap_range rows, tap_range columns, int32_t padded, int32_t zero_point, int32_t *sum, int8_t *y)
{
    const int32_t inside = (int32_t)((rows.last - rows.first) * (columns.last - columns.first));
    for (int64_t c = 0; c < channels; c++) sum[c] = (int32_t)((uint32_t)padded * (uint32_t)zero_point);
    for (int64_t kh = rows.first; kh < rows.last; kh++)
        for (int64_t kw = columns.first; kw < columns.last; kw++) {
            const int8_t *x = image + ((top + kh) * width + left + kw) * channels;
            for (int64_t c = 0; c < channels; c++) sum[c] = (int32_t)((uint32_t)sum[c] + (uint32_t)(int32_t)x[c]);
        }
    for (int64_t c = 0; c < channels; c++)
        y[c] = (int8_t)clamp_i32(rounding_divide(sum[c], inside + padded), p->low, p->high);
}

static mera_status prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    const int64_t *y = node_output(plan->graph, plan->node)->shape;
    plan->tasks = y[0] * y[1];
    plan->scratch_bytes = (size_t)y[3] * sizeof(int32_t); /* sums */
    return MERA_OK;
}

/* A task is a row of the output. */
static void run(const op_run *r, int64_t task, uint8_t *scratch)
{
    const graph_node *node = r->plan->node;
    const graph_tensor *x = node_input(r->plan->graph, node, 0);
    const int64_t *out = node_output(r->plan->graph, node)->shape;
    const int64_t height = x->shape[1], width = x->shape[2], channels = x->shape[3];
    const pool p = pool_of(node);
    const bool include_pad = node->op == OP_AVG_POOL2D && node->attrs[ATTR_AVG_POOL2D_count_include_pad];
    const int8_t *image = r->in[0] + task / out[1] * height * width * channels;
    const int64_t top = task % out[1] * p.stride[0] - p.before[0];
    const tap_range rows = taps_inside(top, p.kernel[0], p.dilation[0], height);
    /* rows that the window has within input and padding */
    const int64_t full_rows = min_i64(top + p.kernel[0], height + p.after[0]) - top;
    for (int64_t column = 0; column < out[2]; column++) {
        const int64_t left = column * p.stride[1] - p.before[1];
        const tap_range columns = taps_inside(left, p.kernel[1], p.dilation[1], width);
        int8_t *y = r->out + (task * out[2] + column) * channels;
        if (node->op == OP_MAX_POOL2D) {
            max_pixel(&p, image, width, channels, top, left, rows, columns, y);
        } else {
            const int64_t full = full_rows * (min_i64(left + p.kernel[1], width + p.after[1]) - left);
            const int64_t inside = (rows.last - rows.first) * (columns.last - columns.first);
            average_pixel(&p, image, width, channels, top, left, rows, columns, include_pad ? (int32_t)(full - inside) : 0,
                          x->zero_point[0], (int32_t *)(void *)scratch, y);
        }
    }
}

const op_impl max_pool2d_impl = {check, prepare, run};
const op_impl avg_pool2d_impl = {check, prepare, run};
