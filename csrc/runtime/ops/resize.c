/* resize.c: upsampling (nearest, linear, cubic), and the resizing operators of mera_torch. */
#include <math.h>

#include "ops.h"

enum { POSITION_UNIT = 1024 }; /* as in library.py */

typedef struct resize {
    int32_t x, rows, columns; /* rows, columns: tables of positions */
    host_dtype dtype;
    resize_mode mode;
    int64_t planes, in[2], out[2];
    int taps;
    int64_t *index[2]; /* [out, taps] */
    float *weight[2];
} resize;

#define T float
#define NAME(x) x##_f32
#include "resize_t.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_f64
#include "resize_t.h"
#undef T
#undef NAME

/* Elements of any dtype, by the index of rows and columns. */
static void pick(const resize *r, size_t size, const int64_t *rows, const int64_t *columns, const char *x, char *y)
{
    for (int64_t p = 0; p < r->planes; p++, x += (size_t)(r->in[0] * r->in[1]) * size)
        for (int64_t i = 0; i < r->out[0]; i++) {
            const char *line = x + (size_t)(rows[i] * r->in[1]) * size;
            switch (size) {
            case 4:
                for (int64_t j = 0; j < r->out[1]; j++, y += 4) memcpy(y, line + 4 * columns[j], 4);
                break;
            case 1:
                for (int64_t j = 0; j < r->out[1]; j++) *y++ = line[columns[j]];
                break;
            default:
                for (int64_t j = 0; j < r->out[1]; j++, y += size) memcpy(y, line + (size_t)columns[j] * size, size);
            }
        }
}

static mera_status run_resize(const host_frame *f)
{
    const resize *r = f->step->plan;
    const void *x = f->tensors[r->x];
    if (host_elements(&f->step->results[0]) == 0) return MERA_OK;
    if (r->mode <= RESIZE_NEAREST_EXACT)
        pick(r, host_dtype_size(r->dtype), r->index[0], r->index[1], x, f->results[0]);
    else if (r->dtype == MERA_HOST_FLOAT32)
        weighted_f32(r, x, f->results[0]);
    else
        weighted_f64(r, x, f->results[0]);
    return MERA_OK;
}

/* ---- where pixels of the result lie ---- */

/* scale: of one step in the result, in steps of the input, as PyTorch rounds it. */
static float step_of(int64_t in, int64_t out, bool aligned, double factor)
{
    if (aligned) return out > 1 ? (float)(in - 1) / (float)(out - 1) : 0;
    return factor > 0 ? (float)(1.0 / factor) : (float)in / (float)out;
}

static int64_t clipped(int64_t i, int64_t size) { return i < 0 ? 0 : min_i64(i, size - 1); }

/* The cubic convolution's kernel with a = -0.75, |t| <= 1 and 1 <= |t| <= 2. */
static float cubic_near(float t) { return ((-0.75f + 2) * t - (-0.75f + 3)) * t * t + 1; }
static float cubic_far(float t) { return ((-0.75f * t + 5 * 0.75f) * t - 8 * 0.75f) * t + 4 * 0.75f; }

static void place(resize *r, int d, int64_t o, float step, bool aligned)
{
    int64_t *index = r->index[d] + o * r->taps;
    float *weight = r->weight[d] + o * r->taps;
    const int64_t in = r->in[d];
    if (r->mode == RESIZE_NEAREST) {
        *index = clipped((int64_t)floorf((float)o * step), in);
    } else if (r->mode == RESIZE_NEAREST_EXACT) {
        *index = clipped((int64_t)floorf(((float)o + 0.5f) * step), in);
    } else if (r->mode == RESIZE_LINEAR) {
        float at = aligned ? step * (float)o : step * ((float)o + 0.5f) - 0.5f;
        if (!aligned && at < 0) at = 0;
        index[0] = clipped((int64_t)at, in);
        index[1] = clipped(index[0] + 1, in);
        const float t = at - (float)index[0] > 1 ? 1 : at - (float)index[0];
        weight[1] = t;
        weight[0] = 1 - t;
    } else {
        const float at = aligned ? step * (float)o : step * ((float)o + 0.5f) - 0.5f, whole = floorf(at), t = at - whole;
        const float weights[] = {cubic_far(t + 1), cubic_near(t), cubic_near(1 - t), cubic_far(2 - t)};
        for (int k = 0; k < 4; k++) {
            index[k] = clipped((int64_t)whole - 1 + k, in);
            weight[k] = weights[k];
        }
    }
}

static mera_status positions(host_planner *p, resize *r, int d, bool aligned, double factor)
{
    const size_t count = (size_t)(r->out[d] * r->taps);
    r->index[d] = arena_array(p->memory, count + 1, sizeof *r->index[d]);
    r->weight[d] = arena_array(p->memory, count + 1, sizeof *r->weight[d]);
    if (r->index[d] == NULL || r->weight[d] == NULL) return out_of_memory(p->ctx);
    const float step = step_of(r->in[d], r->out[d], aligned, factor);
    for (int64_t o = 0; o < r->out[d]; o++) place(r, d, o, step, aligned);
    return MERA_OK;
}

/* ---- planning ---- */

static mera_status begin(host_planner *p, int32_t dims, resize **out)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_rank(p, x, dims + 2, dims + 2, "input"));
    resize *r = NEW_PLAN(p, resize);
    if (r == NULL) return out_of_memory(p->ctx);
    *r =
        (resize){.x = arg_number(p, 0), .dtype = x->dtype, .planes = x->shape[0] * x->shape[1], .in = {1, 1}, .out = {1, 1}};
    for (int32_t d = 0; d < dims; d++) r->in[2 - dims + d] = x->shape[2 + d];
    *out = r;
    return MERA_OK;
}

static mera_status finish(host_planner *p, int32_t dims, const resize *r)
{
    const host_tensor *x = &p->tensors[r->x];
    int64_t shape[4] = {x->shape[0], x->shape[1], r->out[0], r->out[1]};
    if (dims == 1) shape[2] = r->out[1];
    return add_result(p, x->dtype, dims + 2, shape);
}

/* The parameters of the two forms: .default(input, output_size, [align_corners,] scales...) and
 * .vec(input, output_size, [align_corners,] scale_factors). */
static double factor_of(const host_planner *p, int32_t first, int32_t d)
{
    if (p->variant & RESIZE_BY_FACTORS) {
        if (!arg_given(p, first) || arg_given(p, 1)) return 0;
        const host_arg *a = &p->step->args[first].items[d];
        return a->real;
    }
    return arg_given(p, first + d) ? arg_real(p, first + d) : 0;
}

mera_status plan_upsample(host_planner *p)
{
    const int32_t dims = p->variant & RESIZE_ONE_DIMENSION ? 1 : 2;
    resize *r = NULL;
    TRY(begin(p, dims, &r));
    r->mode = (resize_mode)(p->variant & 7);
    r->taps = r->mode == RESIZE_CUBIC ? 4 : r->mode == RESIZE_LINEAR ? 2 : 1;
    const bool has_corners = r->mode >= RESIZE_LINEAR, aligned = has_corners && arg_flag(p, 2);
    const int32_t first = has_corners ? 3 : 2;
    if (has_corners) TRY(need_float(p, &p->tensors[r->x], "input"));
    const bool by_factors = (p->variant & RESIZE_BY_FACTORS) && !arg_given(p, 1);
    if (by_factors ? arg_count(p, first) != dims : arg_count(p, 1) != dims)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "it needs %d output sizes or scale factors", dims);
    for (int32_t d = 0; d < dims; d++) {
        const int to = 2 - dims + d;
        const double factor = factor_of(p, first, d), size = (double)r->in[to] * factor;
        if (by_factors && !(size >= 1 && size < 0x1p30))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "a scale factor is out of range");
        r->out[to] = by_factors ? (int64_t)size : arg_item(p, 1, d);
        if (r->out[to] < 1 || r->out[to] > 1 << 30 || r->in[to] < 1)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "input and output must have sizes from 1 to 2^30");
        TRY(positions(p, r, to, aligned, factor));
    }
    if (dims == 1) TRY(positions(p, r, 0, false, 0));
    p->step->run = run_resize;
    return finish(p, dims, r);
}

/* ---- mera_torch.resize_nearest, resize_bilinear: tables of positions, which are read when it runs ---- */

static mera_status check_positions(const host_frame *f, int32_t number, int64_t count, int64_t most)
{
    const int32_t *at = f->tensors[number];
    for (int64_t i = 0; i < count; i++)
        if (at[i] < 0 || at[i] > most)
            return fail(f->ctx, MERA_INVALID_ARGUMENT, "step %s: position %d is not 0 to %lld", f->step->name, at[i],
                        (long long)most);
    return MERA_OK;
}

static mera_status run_tables(const host_frame *f)
{
    const resize *r = f->step->plan;
    const int64_t unit = r->mode == RESIZE_NEAREST ? 1 : POSITION_UNIT;
    const int32_t *rows = f->tensors[r->rows], *columns = f->tensors[r->columns];
    TRY(check_positions(f, r->rows, r->out[0], unit * (r->in[0] - 1)));
    TRY(check_positions(f, r->columns, r->out[1], unit * (r->in[1] - 1)));
    if (r->mode == RESIZE_NEAREST) {
        int64_t *y = f->scratch, *x = y + r->out[0];
        for (int64_t i = 0; i < r->out[0]; i++) y[i] = rows[i];
        for (int64_t j = 0; j < r->out[1]; j++) x[j] = columns[j];
        pick(r, host_dtype_size(r->dtype), y, x, f->tensors[r->x], f->results[0]);
    } else if (r->dtype == MERA_HOST_FLOAT32) {
        by_tables_f32(r, rows, columns, f->tensors[r->x], f->results[0], f->scratch);
    } else {
        by_tables_f64(r, rows, columns, f->tensors[r->x], f->results[0], f->scratch);
    }
    return MERA_OK;
}

/* variant: RESIZE_NEAREST or RESIZE_LINEAR. */
mera_status plan_resize(host_planner *p)
{
    const host_tensor *rows, *columns;
    resize *r = NULL;
    TRY(begin(p, 2, &r));
    TRY(arg_tensor(p, 1, &rows));
    TRY(arg_tensor(p, 2, &columns));
    if (rows->dtype != MERA_HOST_INT32 || columns->dtype != MERA_HOST_INT32 || rows->rank != 1 || columns->rank != 1)
        return host_refuse(p, MERA_UNSUPPORTED, "rows and columns must be int32 of one dimension");
    r->mode = (resize_mode)p->variant;
    if (r->mode == RESIZE_LINEAR) TRY(need_float(p, &p->tensors[r->x], "x"));
    r->rows = arg_number(p, 1);
    r->columns = arg_number(p, 2);
    r->out[0] = rows->shape[0];
    r->out[1] = columns->shape[0];
    p->step->scratch_bytes = (size_t)(r->out[0] + r->out[1] + r->in[1] + 1) * sizeof(int64_t);
    p->step->run = run_tables;
    return finish(p, 2, r);
}
