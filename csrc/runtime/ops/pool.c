/* pool.c: maximum and average over windows of one and two dimensions. */
#include <math.h>

#include "ops.h"

typedef struct pool {
    int32_t number;
    host_dtype dtype;
    bool adaptive;
    int64_t planes, in[2], out[2];
    int64_t kernel[2], stride[2], pad[2], dilation[2];
    bool count_pad;
    int64_t divisor; /* 0: none is given */
} pool;

/* The window of an output pixel in dimension d: from..to, `dilation` apart; to may lie beyond the input. */
typedef struct window {
    int64_t from, to;
} window;

static window window_of(const pool *g, int d, int64_t o)
{
    if (g->adaptive) return (window){o * g->in[d] / g->out[d], ((o + 1) * g->in[d] + g->out[d] - 1) / g->out[d]};
    const int64_t from = o * g->stride[d] - g->pad[d];
    return (window){from, from + (g->kernel[d] - 1) * g->dilation[d] + 1};
}

static int64_t step_of(const pool *g, int d) { return g->adaptive ? 1 : g->dilation[d]; }

/* The first position of the window that is in the input. */
static int64_t first_of(const pool *g, int d, window w)
{
    return w.from >= 0 ? w.from : w.from + ceil_div(-w.from, step_of(g, d)) * step_of(g, d);
}

/* ---- maximum; the first of equals, or the last NaN ---- */

#define MAX_POOL(NAME, T, LEAST, IS_NAN)                                                                                    \
    static void greatest_##NAME(const pool *g, const T *x, T *y, int64_t *indices)                                          \
    {                                                                                                                       \
        for (int64_t p = 0; p < g->planes; p++, x += g->in[0] * g->in[1])                                                   \
            for (int64_t oy = 0; oy < g->out[0]; oy++)                                                                      \
                for (int64_t ox = 0; ox < g->out[1]; ox++) {                                                                \
                    const window wy = window_of(g, 0, oy), wx = window_of(g, 1, ox);                                        \
                    const int64_t y0 = first_of(g, 0, wy), x0 = first_of(g, 1, wx);                                         \
                    int64_t best = y0 * g->in[1] + x0;                                                                      \
                    T most = LEAST; /* -inf, or the least: also what a window beside the input gives */                     \
                    for (int64_t iy = y0; iy < min_i64(wy.to, g->in[0]); iy += step_of(g, 0))                               \
                        for (int64_t ix = x0; ix < min_i64(wx.to, g->in[1]); ix += step_of(g, 1)) {                         \
                            const T v = x[iy * g->in[1] + ix];                                                              \
                            if (!(v > most || IS_NAN)) continue;                                                            \
                            most = v;                                                                                       \
                            best = iy * g->in[1] + ix;                                                                      \
                        }                                                                                                   \
                    *y++ = most;                                                                                            \
                    if (indices != NULL) *indices++ = best;                                                                 \
                }                                                                                                           \
    }
MAX_POOL(f32, float, -(float)INFINITY, v != v)
MAX_POOL(f64, double, -(double)INFINITY, v != v)
MAX_POOL(u8, uint8_t, 0, false)
MAX_POOL(i8, int8_t, INT8_MIN, false)
MAX_POOL(i16, int16_t, INT16_MIN, false)
MAX_POOL(i32, int32_t, INT32_MIN, false)
MAX_POOL(i64, int64_t, INT64_MIN, false)

static mera_status run_max(const host_frame *f)
{
    const pool *g = f->step->plan;
    const void *x = f->tensors[g->number];
    void *y = f->results[0];
    int64_t *indices = f->step->result_count > 1 ? f->results[1] : NULL;
    if (host_elements(&f->step->results[0]) == 0) return MERA_OK;
    switch (g->dtype) {
    case MERA_HOST_FLOAT32:
        greatest_f32(g, x, y, indices);
        break;
    case MERA_HOST_FLOAT64:
        greatest_f64(g, x, y, indices);
        break;
    case MERA_HOST_UINT8:
        greatest_u8(g, x, y, indices);
        break;
    case MERA_HOST_INT8:
        greatest_i8(g, x, y, indices);
        break;
    case MERA_HOST_INT16:
        greatest_i16(g, x, y, indices);
        break;
    case MERA_HOST_INT32:
        greatest_i32(g, x, y, indices);
        break;
    default:
        greatest_i64(g, x, y, indices);
        break;
    }
    return MERA_OK;
}

/* ---- average ---- */

#define AVERAGE_POOL(NAME, T)                                                                                               \
    static void average_##NAME(const pool *g, const T *x, T *y)                                                             \
    {                                                                                                                       \
        for (int64_t p = 0; p < g->planes; p++, x += g->in[0] * g->in[1])                                                   \
            for (int64_t oy = 0; oy < g->out[0]; oy++)                                                                      \
                for (int64_t ox = 0; ox < g->out[1]; ox++) {                                                                \
                    const window wy = window_of(g, 0, oy), wx = window_of(g, 1, ox);                                        \
                    const int64_t y0 = max_i64(wy.from, 0), y1 = min_i64(wy.to, g->in[0]);                                  \
                    const int64_t x0 = max_i64(wx.from, 0), x1 = min_i64(wx.to, g->in[1]);                                  \
                    double sum = 0;                                                                                         \
                    for (int64_t iy = y0; iy < y1; iy++)                                                                    \
                        for (int64_t ix = x0; ix < x1; ix++) sum += (double)x[iy * g->in[1] + ix];                          \
                    const int64_t padded = (min_i64(wy.to, g->in[0] + g->pad[0]) - wy.from) *                               \
                                           (min_i64(wx.to, g->in[1] + g->pad[1]) - wx.from);                                \
                    const int64_t n = g->divisor ? g->divisor : g->count_pad ? padded : (y1 - y0) * (x1 - x0);              \
                    *y++ = y1 > y0 && x1 > x0 ? (T)(sum / (double)n) : 0;                                                   \
                }                                                                                                           \
    }
AVERAGE_POOL(f32, float)
AVERAGE_POOL(f64, double)

static mera_status run_average(const host_frame *f)
{
    const pool *g = f->step->plan;
    if (g->dtype == MERA_HOST_FLOAT32)
        average_f32(g, f->tensors[g->number], f->results[0]);
    else
        average_f64(g, f->tensors[g->number], f->results[0]);
    return MERA_OK;
}

/* ---- planning ---- */

/* x [N,C,H,W], [C,H,W], or without H for one dimension: planes of two dimensions. */
static mera_status begin(host_planner *p, int32_t dims, const host_tensor **x, pool **out)
{
    TRY(arg_tensor(p, 0, x));
    TRY(need_rank(p, *x, dims + 1, dims + 2, "self"));
    pool *g = NEW_PLAN(p, pool);
    if (g == NULL) return out_of_memory(p->ctx);
    *g = (pool){.number = arg_number(p, 0),
                .dtype = (*x)->dtype,
                .planes = product((*x)->rank - dims, (*x)->shape),
                .in = {1, 1},
                .out = {1, 1},
                .kernel = {1, 1},
                .stride = {1, 1},
                .dilation = {1, 1}};
    for (int32_t d = 0; d < dims; d++) {
        g->in[2 - dims + d] = (*x)->shape[(*x)->rank - dims + d];
        if ((*x)->shape[(*x)->rank - dims + d] == 0) return host_refuse(p, MERA_UNSUPPORTED, "a plane has no elements");
    }
    *out = g;
    return MERA_OK;
}

static mera_status finish(host_planner *p, int32_t dims, const host_tensor *x, const pool *g, host_dtype dtype)
{
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, x->shape, sizeof shape);
    for (int32_t d = 0; d < dims; d++) shape[x->rank - dims + d] = g->out[2 - dims + d];
    return add_result(p, dtype, x->rank, shape);
}

/* Kernel, stride, padding and dilation (parameter < 0: none) and the sizes that they give. */
static mera_status windows(host_planner *p, int32_t dims, pool *g, int32_t dilation, bool ceiled)
{
    const int32_t skip = 2 - dims;
    TRY(arg_values(p, 1, dims, g->kernel + skip));
    memcpy(g->stride + skip, g->kernel + skip, (size_t)dims * sizeof *g->stride);
    if (arg_count(p, 2) > 0) TRY(arg_values(p, 2, dims, g->stride + skip));
    TRY(arg_values(p, 3, dims, g->pad + skip));
    if (dilation >= 0) TRY(arg_values(p, dilation, dims, g->dilation + skip));
    const int64_t most = INT64_C(1) << 30;
    for (int d = 0; d < 2; d++) {
        if (g->kernel[d] < 1 || g->stride[d] < 1 || g->dilation[d] < 1 || g->kernel[d] > most || g->stride[d] > most ||
            g->dilation[d] > most || g->pad[d] < 0 || g->pad[d] > g->kernel[d] / 2)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "kernel, stride, padding or dilation is out of range");
        const int64_t room = g->in[d] + 2 * g->pad[d] - g->dilation[d] * (g->kernel[d] - 1) - 1;
        int64_t n = room < 0 ? -1 : (ceiled ? ceil_div(room, g->stride[d]) : room / g->stride[d]) + 1;
        if (room < 0 && ceiled && room + g->stride[d] > 0) n = 1;
        if (ceiled && n > 0 && (n - 1) * g->stride[d] >= g->in[d] + g->pad[d]) n--;
        if (n < 1) return host_refuse(p, MERA_INVALID_ARGUMENT, "the window is larger than the padded input");
        g->out[d] = n;
    }
    return MERA_OK;
}

static mera_status need_numbers(host_planner *p, const host_tensor *x)
{
    if (x->dtype != MERA_HOST_BOOL && !is_half(x->dtype)) return MERA_OK;
    return host_refuse(p, MERA_UNSUPPORTED, "it is not for %s", host_dtype_name(x->dtype));
}

/* (self, kernel_size, stride, padding, dilation, ceil_mode); variant: dimensions, negative: with indices. */
mera_status plan_max_pool(host_planner *p)
{
    const int32_t dims = p->variant < 0 ? -p->variant : p->variant;
    const host_tensor *x;
    pool *g = NULL;
    TRY(begin(p, dims, &x, &g));
    TRY(need_numbers(p, x));
    TRY(windows(p, dims, g, 4, arg_flag(p, 5)));
    p->step->run = run_max;
    TRY(finish(p, dims, x, g, x->dtype));
    p->step->many = p->variant < 0;
    return p->variant < 0 ? finish(p, dims, x, g, MERA_HOST_INT64) : MERA_OK;
}

/* (self, kernel_size, stride, padding, ceil_mode, count_include_pad[, divisor_override]); variant: dimensions. */
mera_status plan_average_pool(host_planner *p)
{
    const host_tensor *x;
    pool *g = NULL;
    TRY(begin(p, p->variant, &x, &g));
    TRY(need_float(p, x, "self"));
    TRY(windows(p, p->variant, g, -1, arg_flag(p, 4)));
    g->count_pad = arg_flag(p, 5);
    if (p->variant == 2 && arg_given(p, 6)) {
        g->divisor = arg_int(p, 6);
        if (g->divisor == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "divisor_override must not be 0");
    }
    p->step->run = run_average;
    return finish(p, p->variant, x, g, x->dtype);
}

static mera_status adaptive_sizes(host_planner *p, int32_t dims, pool *g)
{
    g->adaptive = true;
    TRY(arg_values(p, 1, dims, g->out + 2 - dims));
    for (int d = 0; d < 2; d++)
        if (g->out[d] < 0 || g->out[d] > INT64_C(1) << 20 || g->in[d] > INT64_C(1) << 40)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "output_size is out of range");
    return MERA_OK;
}

/* (self, output_size); variant: dimensions. */
mera_status plan_adaptive_average(host_planner *p)
{
    const host_tensor *x;
    pool *g = NULL;
    TRY(begin(p, p->variant, &x, &g));
    TRY(need_float(p, x, "self"));
    TRY(adaptive_sizes(p, p->variant, g));
    p->step->run = run_average;
    return finish(p, p->variant, x, g, x->dtype);
}

/* The same, values and indices. */
mera_status plan_adaptive_max(host_planner *p)
{
    const host_tensor *x;
    pool *g = NULL;
    TRY(begin(p, p->variant, &x, &g));
    TRY(need_numbers(p, x));
    TRY(adaptive_sizes(p, p->variant, g));
    p->step->run = run_max;
    p->step->many = true;
    TRY(finish(p, p->variant, x, g, x->dtype));
    return finish(p, p->variant, x, g, MERA_HOST_INT64);
}
