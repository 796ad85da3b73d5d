/* patches.c: windows of a picture as columns, and back. */
#include "ops.h"

/* [N, C, H, W] and [N, C * kernel, positions]. */
typedef struct patches {
    int64_t planes, size[2], kernel[2], dilation[2], pad[2], stride[2], count[2];
} patches;

/* The pixel of tap t at position q, or -1 beside the picture. */
static int64_t pixel_of(const patches *g, int64_t t, int64_t q)
{
    const int64_t y = q / g->count[1] * g->stride[0] - g->pad[0] + t / g->kernel[1] * g->dilation[0];
    const int64_t x = q % g->count[1] * g->stride[1] - g->pad[1] + t % g->kernel[1] * g->dilation[1];
    return y < 0 || y >= g->size[0] || x < 0 || x >= g->size[1] ? -1 : y * g->size[1] + x;
}

static mera_status run_im2col(const host_frame *f)
{
    const patches *g = f->step->plan;
    const size_t size = host_dtype_size(f->step->results[0].dtype);
    const int64_t taps = g->kernel[0] * g->kernel[1], positions = g->count[0] * g->count[1];
    const char *x = f->tensors[f->step->reads[0]];
    char *y = f->results[0];
    for (int64_t p = 0; p < g->planes; p++, x += (size_t)(g->size[0] * g->size[1]) * size)
        for (int64_t t = 0; t < taps; t++)
            for (int64_t q = 0; q < positions; q++, y += size) {
                const int64_t at = pixel_of(g, t, q);
                if (at < 0)
                    memset(y, 0, size);
                else
                    memcpy(y, x + (size_t)at * size, size);
            }
    return MERA_OK;
}

static mera_status run_col2im(const host_frame *f)
{
    const patches *g = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const int64_t taps = g->kernel[0] * g->kernel[1], positions = g->count[0] * g->count[1];
    const int64_t plane = g->size[0] * g->size[1];
    const void *x = f->tensors[f->step->reads[0]];
    if (host_elements(y) > 0) memset(f->results[0], 0, host_bytes(y));
    for (int64_t i = 0; i < g->planes * taps * positions; i++) {
        const int64_t at = pixel_of(g, i / positions % taps, i % positions), p = i / positions / taps;
        if (at < 0) continue;
        if (y->dtype == MERA_HOST_FLOAT32)
            ((float *)f->results[0])[p * plane + at] += ((const float *)x)[i];
        else
            ((double *)f->results[0])[p * plane + at] += ((const double *)x)[i];
    }
    return MERA_OK;
}

/* Parameters first..: kernel_size, dilation, padding, stride. */
static mera_status windows(host_planner *p, patches *g, int32_t first)
{
    const int64_t most = INT64_C(1) << 30;
    TRY(arg_values(p, first, 2, g->kernel));
    TRY(arg_values(p, first + 1, 2, g->dilation));
    TRY(arg_values(p, first + 2, 2, g->pad));
    TRY(arg_values(p, first + 3, 2, g->stride));
    for (int d = 0; d < 2; d++) {
        const bool good = g->kernel[d] > 0 && g->kernel[d] < most && g->dilation[d] > 0 && g->dilation[d] < most &&
                          g->pad[d] >= 0 && g->pad[d] < most && g->stride[d] > 0 && g->stride[d] < most && g->size[d] > 0 &&
                          g->size[d] < most;
        const int64_t room = good ? g->size[d] + 2 * g->pad[d] - g->dilation[d] * (g->kernel[d] - 1) - 1 : -1;
        if (room < 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "the windows do not suit the picture");
        g->count[d] = room / g->stride[d] + 1;
    }
    return MERA_OK;
}

static mera_status begin(host_planner *p, const host_tensor **x, patches **out)
{
    TRY(arg_tensor(p, 0, x));
    patches *g = NEW_PLAN(p, patches);
    if (g == NULL) return out_of_memory(p->ctx);
    *out = g;
    return MERA_OK;
}

/* (self, kernel_size, dilation, padding, stride) */
mera_status plan_im2col(host_planner *p)
{
    const host_tensor *x;
    patches *g = NULL;
    TRY(begin(p, &x, &g));
    TRY(need_rank(p, x, 3, 4, "self"));
    const int32_t r = x->rank;
    g->planes = product(r - 2, x->shape);
    memcpy(g->size, x->shape + r - 2, sizeof g->size);
    TRY(windows(p, g, 1));
    const int64_t taps = g->kernel[0] * g->kernel[1], most = INT64_C(1) << 40;
    if (x->shape[r - 3] > most / taps) return host_refuse(p, MERA_UNSUPPORTED, "the result is too large");
    const int64_t shape[] = {x->shape[0], x->shape[r - 3] * taps, g->count[0] * g->count[1]};
    p->step->run = run_im2col;
    return add_result(p, x->dtype, r - 1, shape + (r == 3));
}

/* (self, output_size, kernel_size, dilation, padding, stride) */
mera_status plan_col2im(host_planner *p)
{
    const host_tensor *x;
    patches *g = NULL;
    TRY(begin(p, &x, &g));
    TRY(need_rank(p, x, 2, 3, "self"));
    TRY(need_float(p, x, "self"));
    TRY(arg_values(p, 1, 2, g->size));
    TRY(windows(p, g, 2));
    const int64_t taps = g->kernel[0] * g->kernel[1], rows = x->shape[x->rank - 2];
    if (rows % taps != 0 || x->shape[x->rank - 1] != g->count[0] * g->count[1])
        return host_refuse(p, MERA_INVALID_ARGUMENT, "self does not have the windows of that output_size");
    const int64_t batch = x->rank == 3 ? x->shape[0] : 1, shape[] = {batch, rows / taps, g->size[0], g->size[1]};
    g->planes = batch * (rows / taps);
    p->step->run = run_col2im;
    return add_result(p, x->dtype, x->rank + 1, shape + (x->rank == 2));
}

/* ---- one_hot ---- */

static mera_status run_one_hot(const host_frame *f)
{
    const host_tensor *y = &f->step->results[0];
    const int64_t classes = y->shape[y->rank - 1], n = classes > 0 ? host_elements(y) / classes : 0;
    const int64_t *x = f->tensors[f->step->reads[0]];
    if (n > 0) memset(f->results[0], 0, host_bytes(y));
    for (int64_t i = 0; i < n; i++) {
        if (x[i] < 0 || x[i] >= classes)
            return fail(f->ctx, MERA_INVALID_ARGUMENT, "step %s: class %lld is not one of %lld", f->step->name,
                        (long long)x[i], (long long)classes);
        ((int64_t *)f->results[0])[i * classes + x[i]] = 1;
    }
    return MERA_OK;
}

mera_status plan_one_hot(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_rank(p, x, 0, HOST_MAX_RANK - 1, "self"));
    if (x->dtype != MERA_HOST_INT64) return host_refuse(p, MERA_UNSUPPORTED, "self must be int64");
    if (arg_int(p, 1) < 1) return host_refuse(p, MERA_UNSUPPORTED, "num_classes must be given: the shape depends on it");
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->rank] = arg_int(p, 1);
    p->step->run = run_one_hot;
    return add_result(p, MERA_HOST_INT64, x->rank + 1, shape);
}
