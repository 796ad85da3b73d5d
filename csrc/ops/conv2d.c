/* conv2d.c: convolution: grouped and dense by matrix multiplication over blocks of pixels, depthwise tap by tap. */
#include <inttypes.h>

#include "../ops.h"

typedef struct conv {
    int64_t height, width, channels;       /* of x */
    int64_t out_height, out_width, pixels; /* of y; pixels of all images */
    int64_t outputs;                       /* channels of y */
    int64_t kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w, groups;
    int64_t group_in, group_out, depth; /* channels a group; depth = kernel_h * kernel_w * group_in */
    bool depthwise;                     /* one input and one output channel a group */
    bool direct;                        /* 1x1, stride 1, no padding: x's rows are the matrix */
    int8_t pad;                         /* x's zero point */
    int32_t zero_point, low, high;
    /* A task computes up to `rows` pixels x `columns` channels of one group. */
    int64_t rows, columns;
    const int32_t *bias, *multiplier; /* bias has -zero_point * sum(weights) in it */
    const int8_t *shift;
    const double *factor; /* instead of multiplier and shift if float64_rescale, else NULL */
    uint8_t *weights;     /* packed, group after group; depthwise: [taps][channels] */
    int64_t group_bytes;
} conv;

static mera_status check_axis(const mera_graph *graph, const graph_node *node, int axis, int64_t *out)
{
    const int64_t *a = node->attrs;
    const int64_t size = node_input(graph, node, 0)->shape[1 + axis] + a[ATTR_CONV2D_pad_top + 2 * axis] +
                         a[ATTR_CONV2D_pad_bottom + 2 * axis];
    const int64_t reach = a[ATTR_CONV2D_dilation_h + axis] * (node_input(graph, node, 1)->shape[1 + axis] - 1) + 1;
    if (reach > size)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the kernel must fit the padded input, its %s spans %" PRId64 " of %" PRId64,
                         axis == 0 ? "height" : "width", reach, size);
    *out = (size - reach) / a[ATTR_CONV2D_stride_h + axis] + 1;
    return MERA_OK;
}

static mera_status check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_activation(graph, node, 0));
    TRY(check_attrs(graph, node, ATTR_CONV2D_stride_h, ATTR_CONV2D_stride_w, 1, 65535));
    TRY(check_attrs(graph, node, ATTR_CONV2D_pad_top, ATTR_CONV2D_pad_right, 0, 65535));
    TRY(check_attrs(graph, node, ATTR_CONV2D_dilation_h, ATTR_CONV2D_dilation_w, 1, 65535));
    TRY(check_clamp(graph, node, ATTR_CONV2D_clamp_min));
    TRY(check_attrs(graph, node, ATTR_CONV2D_float64_rescale, ATTR_CONV2D_float64_rescale, 0, 1));
    const graph_tensor *x = node_input(graph, node, 0), *w = node_input(graph, node, 1), *b = node_input(graph, node, 2);
    const int64_t groups = node->attrs[ATTR_CONV2D_groups], outputs = w->shape[0];
    if (groups < 1 || x->shape[3] % groups || outputs % groups)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "groups must divide the input's and the output's channels, got %" PRId64 " for %" PRId64
                         " and %" PRId64,
                         groups, x->shape[3], outputs);
    if (!w->data || w->dtype != MERA_INT8)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT, "the weights must be an int8 constant, \"%.100s\" is not",
                         w->name);
    if (w->shape[3] != x->shape[3] / groups)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the weights' last dimension must be the input's channels / groups = %" PRId64 ", got %" PRId64,
                         x->shape[3] / groups, w->shape[3]);
    if (w->scale_count != 1 && w->scale_count != outputs)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT, "the weights must have 1 scale or %" PRId64 ", got %" PRId64,
                         outputs, w->scale_count);
    for (int64_t i = 0; i < w->scale_count; i++)
        if (w->zero_point[i] != 0)
            return node_fail(graph, node, MERA_INVALID_ARGUMENT, "the weights' zero points must be 0, got %d",
                             w->zero_point[i]);
    if (!b->data || b->dtype != MERA_INT32 || b->elements != outputs || b->shape[3] != outputs)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the bias must be an int32 constant of shape [1, 1, 1, %" PRId64 "]", outputs);
    int64_t shape[4] = {x->shape[0], 0, 0, outputs};
    TRY(check_axis(graph, node, 0, &shape[1]));
    TRY(check_axis(graph, node, 1, &shape[2]));
    return check_output_shape(graph, node, shape);
}

int64_t conv2d_macs(const mera_graph *graph, const graph_node *node)
{
    const int64_t *w = node_input(graph, node, 1)->shape;
    return node_output(graph, node)->elements * (w[1] * w[2] * w[3]);
}

/* ---- preparation ---- */

static conv conv_of(const mera_graph *graph, const graph_node *node)
{
    const int64_t *x = node_input(graph, node, 0)->shape, *w = node_input(graph, node, 1)->shape, *a = node->attrs;
    const int64_t *y = node_output(graph, node)->shape;
    conv c = {
        .height = x[1],
        .width = x[2],
        .channels = x[3],
        .out_height = y[1],
        .out_width = y[2],
        .pixels = y[0] * y[1] * y[2],
        .outputs = y[3],
        .kernel_h = w[1],
        .kernel_w = w[2],
        .stride_h = a[ATTR_CONV2D_stride_h],
        .stride_w = a[ATTR_CONV2D_stride_w],
        .top = a[ATTR_CONV2D_pad_top],
        .left = a[ATTR_CONV2D_pad_left],
        .dilation_h = a[ATTR_CONV2D_dilation_h],
        .dilation_w = a[ATTR_CONV2D_dilation_w],
        .groups = a[ATTR_CONV2D_groups],
        .pad = (int8_t)node_input(graph, node, 0)->zero_point[0],
        .zero_point = node_output(graph, node)->zero_point[0],
        .low = (int32_t)a[ATTR_CONV2D_clamp_min],
        .high = (int32_t)a[ATTR_CONV2D_clamp_max],
    };
    c.group_in = c.channels / c.groups;
    c.group_out = c.outputs / c.groups;
    c.depth = c.kernel_h * c.kernel_w * c.group_in;
    c.depthwise = c.groups > 1 && c.group_in == 1 && c.group_out == 1;
    /* x and y then have the same pixels, whatever lies between images */
    c.direct =
        c.kernel_h * c.kernel_w == 1 && c.stride_h * c.stride_w == 1 && c.out_height == c.height && c.out_width == c.width;
    return c;
}

/* Blocks small enough for the cache and to give every thread work. */
static void choose_blocks(conv *c, int threads)
{
    enum { CACHE = 192 * 1024, SHARES = 3 };
    c->columns = c->group_out;
    c->rows = max_i64(12, min_i64(384, CACHE / (c->depth + 4 * min_i64(c->columns, 4 * GEMM_PANEL))));
    const int64_t want = (int64_t)threads * SHARES;
    if (ceil_div(c->pixels, c->rows) * c->groups < want) {
        c->columns = max_i64(GEMM_PANEL, ceil_div(ceil_div(c->group_out, want), GEMM_PANEL) * GEMM_PANEL);
        const int64_t column_blocks = ceil_div(c->group_out, c->columns);
        c->rows = max_i64(12, min_i64(c->rows, ceil_div(c->pixels * column_blocks * c->groups, want)));
    }
    c->columns = min_i64(c->columns, c->group_out);
}

static mera_status prepare(op_plan *plan, arena *memory)
{
    mera_context *ctx = memory->ctx;
    const graph_node *node = plan->node;
    const graph_tensor *x = node_input(plan->graph, node, 0), *w = node_input(plan->graph, node, 1);
    const graph_tensor *b = node_input(plan->graph, node, 2), *y = node_output(plan->graph, node);
    conv *c = ARENA_NEW(memory, conv);
    if (!c) return out_of_memory(ctx);
    *c = conv_of(plan->graph, node);
    const int64_t taps = c->kernel_h * c->kernel_w;
    const mera_kernels *k = plan->kernels;
    choose_blocks(c, plan->threads);
    c->group_bytes = c->depthwise ? 0 : k->packed_bytes(c->group_out, c->depth);
    c->group_bytes = ceil_div(c->group_bytes, 64) * 64;

    int32_t *bias = arena_array(memory, (size_t)c->outputs, sizeof *bias);
    int32_t *multiplier = arena_array(memory, (size_t)c->outputs, sizeof *multiplier);
    int8_t *shift = arena_array(memory, (size_t)c->outputs, sizeof *shift);
    const bool wide = node->attrs[ATTR_CONV2D_float64_rescale] != 0;
    double *factor = wide ? arena_array(memory, (size_t)c->outputs, sizeof *factor) : NULL;
    c->weights =
        arena_array(memory, (size_t)(c->depthwise ? 1 : c->groups), (size_t)(c->depthwise ? w->bytes : c->group_bytes));
    if (!bias || !multiplier || !shift || (wide && !factor) || !c->weights) return out_of_memory(ctx);
    c->bias = bias, c->multiplier = multiplier, c->shift = shift, c->factor = factor;

    const int8_t *weights = w->data;
    for (int64_t o = 0; o < c->outputs; o++) {
        uint32_t sum = 0;
        for (int64_t d = 0; d < c->depth; d++) sum += (uint32_t)(int32_t)weights[o * c->depth + d];
        bias[o] = (int32_t)((uint32_t)((const int32_t *)b->data)[o] - (uint32_t)x->zero_point[0] * sum);
        const double real = conv_factor(x->scale[0], w->scale[w->scale_count == 1 ? 0 : o], y->scale[0]);
        const rescale r = rescale_from_real(real);
        multiplier[o] = r.multiplier;
        shift[o] = (int8_t)r.shift;
        if (factor) factor[o] = real;
    }
    if (c->depthwise) {
        plan->tasks = x->shape[0] * c->out_height;
        for (int64_t t = 0; t < taps; t++)
            for (int64_t o = 0; o < c->outputs; o++) ((int8_t *)c->weights)[t * c->outputs + o] = weights[o * taps + t];
        /* pointers to the taps, a row of padding, accumulators */
        plan->scratch_bytes = (size_t)taps * sizeof(int8_t *) + (size_t)c->channels * (1 + sizeof(int32_t)) + 64;
    } else {
        plan->tasks = ceil_div(c->pixels, c->rows) * ceil_div(c->group_out, c->columns) * c->groups;
        for (int64_t g = 0; g < c->groups; g++)
            k->pack(c->group_out, c->depth, weights + g * c->group_out * c->depth, c->depth,
                    c->weights + g * c->group_bytes);
        plan->scratch_bytes = (size_t)c->rows * (size_t)((c->direct ? 0 : c->depth) + 4 * c->columns) + 64;
    }
    plan->state = c;
    return MERA_OK;
}

/* ---- running ---- */

/* Accumulators of channels [channel, channel + n) of one pixel become its output. */
static void requantize(const op_run *r, const conv *c, int64_t channel, int64_t n, const int32_t *acc, int8_t *y)
{
    if (c->factor)
        requantize_float64(n, acc, c->bias + channel, c->factor + channel, c->zero_point, c->low, c->high, y);
    else
        r->plan->kernels->requantize(n, acc, c->bias + channel, c->multiplier + channel, c->shift + channel, c->zero_point,
                                     c->low, c->high, y);
}

/* One pixel's window of one group as a row of the matrix. */
static void gather_window(const conv *c, const int8_t *image, int64_t top, int64_t left, int64_t first_channel, int8_t *row)
{
    const int64_t line = c->kernel_w * c->group_in;
    const tap_range columns = taps_inside(left, c->kernel_w, c->dilation_w, c->width);
    const bool dense = c->dilation_w == 1 && c->groups == 1;
    for (int64_t kh = 0; kh < c->kernel_h; kh++, row += line) {
        const int64_t h = top + kh * c->dilation_h;
        if (h < 0 || h >= c->height || columns.first >= columns.last) {
            memset(row, c->pad, (size_t)line);
            continue;
        }
        const int8_t *from = image + (h * c->width + left) * c->channels + first_channel;
        if (columns.first > 0) memset(row, c->pad, (size_t)(columns.first * c->group_in));
        if (dense)
            memcpy(row + columns.first * c->group_in, from + columns.first * c->group_in,
                   (size_t)((columns.last - columns.first) * c->group_in));
        else
            for (int64_t kw = columns.first; kw < columns.last; kw++)
                memcpy(row + kw * c->group_in, from + kw * c->dilation_w * c->channels, (size_t)c->group_in);
        if (columns.last < c->kernel_w)
            memset(row + columns.last * c->group_in, c->pad, (size_t)((c->kernel_w - columns.last) * c->group_in));
    }
}

static void matrix_task(const op_run *r, const conv *c, int64_t task, uint8_t *scratch)
{
    const int64_t row_blocks = ceil_div(c->pixels, c->rows), column_blocks = ceil_div(c->group_out, c->columns);
    const int64_t first = task % row_blocks * c->rows, rows = min_i64(c->rows, c->pixels - first);
    const int64_t group = task / row_blocks / column_blocks, column = task / row_blocks % column_blocks * c->columns;
    const mera_kernels *k = r->plan->kernels;
    const int64_t columns = min_i64(c->columns, c->group_out - column), channel = group * c->group_out + column;
    int32_t *acc = (int32_t *)(void *)scratch;
    const int8_t *a = r->in[0] + first * c->channels + group * c->group_in;
    int64_t lda = c->channels;
    if (!c->direct) {
        int8_t *block = (int8_t *)(acc + c->rows * c->columns);
        a = block;
        lda = c->depth;
        for (int64_t i = 0; i < rows; i++) {
            const int64_t pixel = first + i, line = pixel / c->out_width, image = line / c->out_height;
            gather_window(c, r->in[0] + image * c->height * c->width * c->channels,
                          line % c->out_height * c->stride_h - c->top, pixel % c->out_width * c->stride_w - c->left,
                          group * c->group_in, block + i * c->depth);
        }
    }
    const uint8_t *weights =
        c->weights + group * c->group_bytes + column / GEMM_PANEL * k->packed_bytes(GEMM_PANEL, c->depth);
    k->gemm_packed(rows, columns, c->depth, a, lda, weights, acc, columns);
    for (int64_t i = 0; i < rows; i++)
        requantize(r, c, channel, columns, acc + i * columns, r->out + (first + i) * c->outputs + channel);
}

static void depthwise_line(const op_run *r, const conv *c, int64_t line, uint8_t *scratch)
{
    const mera_kernels *k = r->plan->kernels;
    const int64_t taps = c->kernel_h * c->kernel_w;
    const int8_t **tap = (const int8_t **)(void *)scratch;
    int32_t *acc = (int32_t *)(void *)(tap + taps);
    int8_t *padding = (int8_t *)(acc + c->channels);
    memset(padding, c->pad, (size_t)c->channels);
    const int8_t *image = r->in[0] + line / c->out_height * c->height * c->width * c->channels;
    const int64_t top = line % c->out_height * c->stride_h - c->top;
    for (int64_t column = 0; column < c->out_width; column++) {
        const int64_t left = column * c->stride_w - c->left;
        for (int64_t kh = 0; kh < c->kernel_h; kh++)
            for (int64_t kw = 0; kw < c->kernel_w; kw++) {
                const int64_t h = top + kh * c->dilation_h, w = left + kw * c->dilation_w;
                const bool inside = h >= 0 && h < c->height && w >= 0 && w < c->width;
                tap[kh * c->kernel_w + kw] = inside ? image + (h * c->width + w) * c->channels : padding;
            }
        k->depthwise_s8(c->channels, taps, tap, (const int8_t *)c->weights, c->channels, acc);
        requantize(r, c, 0, c->channels, acc, r->out + (line * c->out_width + column) * c->channels);
    }
}

static void run(const op_run *r, int64_t task, uint8_t *scratch)
{
    const conv *c = r->plan->state;
    if (c->depthwise)
        depthwise_line(r, c, task, scratch);
    else
        matrix_task(r, c, task, scratch);
}

const op_impl conv2d_impl = {check, prepare, run};
