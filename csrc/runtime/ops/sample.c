/* sample.c: grid_sampler: a picture read at positions that a tensor gives; glu. */
#include <math.h>

#include "floats.h"
#include "ops.h"

typedef enum border { BORDER_ZEROS, BORDER_EDGE, BORDER_REFLECTION } border;

typedef struct sampling {
    host_dtype dtype;
    int32_t x, grid;
    int64_t batch, channels, in[2], out[2];
    bool nearest, aligned;
    border border;
} sampling;

static double reflect(double at, double low, double high) /* bounds times 2 */
{
    if (low == high) return 0;
    const double first = low / 2, span = (high - low) / 2, from = fabs(at - first), rest = fmod(from, span);
    return fmod(floor(from / span), 2) == 0 ? rest + first : span - rest + first;
}

/* A position of -1 to 1 as one in pixels of a dimension of `size`. */
static double place(const sampling *s, double at, int64_t size)
{
    const double n = (double)size, x = s->aligned ? (at + 1) / 2 * (n - 1) : ((at + 1) * n - 1) / 2;
    if (s->border == BORDER_ZEROS) return x;
    const double inside = s->border == BORDER_EDGE ? x : s->aligned ? reflect(x, 0, 2 * (n - 1)) : reflect(x, -1, 2 * n - 1);
    return fmin(n - 1, fmax(inside, 0)); /* NaN becomes 0 */
}

static double at_real(const void *data, host_dtype dtype, int64_t i)
{
    return dtype == MERA_HOST_FLOAT32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

static double pixel(const sampling *s, const void *x, int64_t plane, double row, double column)
{
    if (!(row >= 0 && row < (double)s->in[0] && column >= 0 && column < (double)s->in[1])) return 0;
    return at_real(x, s->dtype, (plane * s->in[0] + (int64_t)row) * s->in[1] + (int64_t)column);
}

static double sample(const sampling *s, const void *x, int64_t plane, double row, double column)
{
    if (s->nearest) return pixel(s, x, plane, nearbyint(row), nearbyint(column));
    const double r = floor(row), c = floor(column), dr = row - r, dc = column - c;
    return pixel(s, x, plane, r, c) * (1 - dr) * (1 - dc) + pixel(s, x, plane, r, c + 1) * (1 - dr) * dc +
           pixel(s, x, plane, r + 1, c) * dr * (1 - dc) + pixel(s, x, plane, r + 1, c + 1) * dr * dc;
}

static mera_status run_sample(const host_frame *f)
{
    const sampling *s = f->step->plan;
    const int64_t pixels = s->out[0] * s->out[1];
    for (int64_t i = 0; i < s->batch * pixels; i++) {
        const double column = place(s, at_real(f->tensors[s->grid], s->dtype, 2 * i), s->in[1]);
        const double row = place(s, at_real(f->tensors[s->grid], s->dtype, 2 * i + 1), s->in[0]);
        for (int64_t c = 0; c < s->channels; c++) {
            const int64_t plane = i / pixels * s->channels + c, to = plane * pixels + i % pixels;
            const double value = sample(s, f->tensors[s->x], plane, row, column);
            if (s->dtype == MERA_HOST_FLOAT32)
                ((float *)f->results[0])[to] = (float)value;
            else
                ((double *)f->results[0])[to] = value;
        }
    }
    return MERA_OK;
}

/* (input, grid, interpolation_mode, padding_mode, align_corners) */
mera_status plan_grid_sample(host_planner *p)
{
    const host_tensor *x, *grid;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 1, &grid));
    TRY(need_rank(p, x, 4, 4, "input"));
    TRY(need_rank(p, grid, 4, 4, "grid"));
    TRY(need_float(p, x, "input"));
    const int64_t mode = arg_int(p, 2), edge = arg_int(p, 3);
    if (mode < 0 || mode > 1 || edge < 0 || edge > 2)
        return host_refuse(p, MERA_UNSUPPORTED, "it is bilinear or nearest, padded by zeros, border or reflection");
    if (grid->dtype != x->dtype || grid->shape[0] != x->shape[0] || grid->shape[3] != 2 || x->shape[2] < 1 ||
        x->shape[3] < 1)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "grid must have input's dtype and batch, and two values a pixel");
    sampling *s = NEW_PLAN(p, sampling);
    if (s == NULL) return out_of_memory(p->ctx);
    *s = (sampling){.dtype = x->dtype,
                    .x = arg_number(p, 0),
                    .grid = arg_number(p, 1),
                    .batch = x->shape[0],
                    .channels = x->shape[1],
                    .in = {x->shape[2], x->shape[3]},
                    .out = {grid->shape[1], grid->shape[2]},
                    .nearest = mode == 1,
                    .aligned = arg_flag(p, 4),
                    .border = (border)edge};
    p->step->run = run_sample;
    const int64_t shape[] = {s->batch, s->channels, s->out[0], s->out[1]};
    return add_result(p, x->dtype, 4, shape);
}

/* ---- glu: the first half of a dimension times sigmoid of the second ---- */

typedef struct halves {
    int64_t outer, inner;
} halves;

static mera_status run_glu(const host_frame *f)
{
    const halves *h = f->step->plan;
    const host_dtype dtype = f->step->results[0].dtype;
    const void *x = f->tensors[f->step->reads[0]];
    for (int64_t i = 0; i < h->outer * h->inner; i++) {
        const int64_t at = i / h->inner * 2 * h->inner + i % h->inner;
        const double a = at_real(x, dtype, at), b = at_real(x, dtype, at + h->inner);
        if (dtype == MERA_HOST_FLOAT32)
            ((float *)f->results[0])[i] = (float)(a / (1 + exp_to_float(-b)));
        else
            ((double *)f->results[0])[i] = a / (1 + exp(-b));
    }
    return MERA_OK;
}

mera_status plan_glu(host_planner *p)
{
    const host_tensor *x;
    int32_t dim = 0;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_float(p, x, "self"));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 1, x->rank, &dim));
    if (x->shape[dim] % 2 != 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "the dimension cannot be halved");
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, x->shape, sizeof shape);
    shape[dim] /= 2;
    halves *h = NEW_PLAN(p, halves);
    if (h == NULL) return out_of_memory(p->ctx);
    *h = (halves){.outer = product(dim, x->shape), .inner = product(x->rank - dim, shape + dim)};
    p->step->run = run_glu;
    return add_result(p, x->dtype, x->rank, shape);
}
