/* conv.c: convolutions of one and two dimensions, transposed ones too. */
#include "gemm.h"

enum { UNFOLDED = 512 };

/* One dimension is two with a height of 1. */
typedef struct conv {
    int32_t x, w, bias; /* bias: -1 for none */
    host_dtype dtype;
    bool transposed;
    bool plain;  /* 1x1, stride 1, no padding: the image is the matrix */
    bool direct; /* too few channels in a group for a product of matrices */
    int64_t batch, groups, in_group, out_group, at_once;
    int64_t in[2], out[2], kernel[2], stride[2], pad[2], dilation[2];
} conv;

#define T float
#define NAME(x) x##_f32
#include "conv_t.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_f64
#include "conv_t.h"
#undef T
#undef NAME

static mera_status run_conv(const host_frame *f)
{
    const conv *g = f->step->plan;
    const void *x = f->tensors[g->x], *w = f->tensors[g->w], *bias = g->bias < 0 ? NULL : f->tensors[g->bias];
    if (host_elements(&f->step->results[0]) == 0) return MERA_OK;
    if (g->dtype == MERA_HOST_FLOAT32)
        convolve_f32(g, x, w, bias, f->results[0], f->scratch);
    else
        convolve_f64(g, x, w, bias, f->results[0], f->scratch);
    return MERA_OK;
}

/* ---- planning ---- */

/* The parameters of a convolution, however an operator orders them. */
typedef struct settings {
    int64_t stride[2], pad[2], dilation[2], extra[2], groups; /* extra: output_padding */
    int64_t pad_end[2];                                       /* after the last pixel */
    bool transposed;
} settings;

static bool small(int64_t value, int64_t least) { return value >= least && value <= INT64_C(1) << 30; }

/* A list of 1 or `dims` values (conv1d: of the second dimension). */
static mera_status pair_of(host_planner *p, int32_t index, int32_t dims, int64_t least, int64_t missing, int64_t *values)
{
    values[0] = missing;
    if (index < 0 || arg_count(p, index) == 0) {
        values[1] = missing;
        return MERA_OK;
    }
    TRY(arg_values(p, index, dims, values + 2 - dims));
    if (small(values[0], least) && small(values[1], least)) return MERA_OK;
    return host_refuse(p, MERA_INVALID_ARGUMENT, "stride, padding or dilation is out of range");
}

/* The output's sizes, and what of the input and of memory they ask for. */
static mera_status sizes(host_planner *p, conv *g, const settings *s)
{
    for (int d = 0; d < 2; d++) {
        const int64_t extent = s->dilation[d] * (g->kernel[d] - 1) + 1;
        if (!small(extent, 1)) return host_refuse(p, MERA_INVALID_ARGUMENT, "the kernel is out of range");
        if (s->transposed) {
            if (g->in[d] > INT64_C(1) << 30) return host_refuse(p, MERA_UNSUPPORTED, "the input is too large");
            g->out[d] = (g->in[d] - 1) * s->stride[d] - s->pad[d] - s->pad_end[d] + extent + s->extra[d];
        } else {
            const int64_t room = g->in[d] + s->pad[d] + s->pad_end[d] - extent;
            g->out[d] = room < 0 ? -1 : room / s->stride[d] + 1;
        }
        if (g->out[d] < 0 || (g->out[d] == 0 && !s->transposed))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "the kernel is larger than the padded input");
        g->stride[d] = s->stride[d];
        g->pad[d] = s->pad[d];
        g->dilation[d] = s->dilation[d];
    }
    return MERA_OK;
}

static mera_status scratch(host_planner *p, conv *g)
{
    const int64_t taps = g->kernel[0] * g->kernel[1];
    const bool one = taps == 1 && g->stride[0] == 1 && g->stride[1] == 1;
    g->plain = one && g->pad[0] == 0 && g->pad[1] == 0 && g->out[0] == g->in[0] && g->out[1] == g->in[1];
    g->direct = !g->transposed && (g->in_group * taps < 16 || g->out_group < 3);
    g->at_once = min_i64(max_i64(64 / taps, 1), max_i64(g->out_group, 1));
    if (g->direct) return MERA_OK;
    const int64_t pixels = g->out[0] * g->out[1];
    const int64_t matrix[] = {g->transposed ? g->at_once * taps : g->in_group * taps, g->transposed ? g->in[0] * g->in[1]
                                                                                      : g->plain
                                                                                          ? 0
                                                                                          : min_i64(UNFOLDED, pixels)};
    host_tensor t;
    TRY(host_tensor_init(p->ctx, &t, g->dtype, 2, matrix));
    p->step->scratch_bytes = gemm_scratch(g->dtype) + host_bytes(&t);
    return MERA_OK;
}

static mera_status plan(host_planner *p, int32_t dims, const settings *s)
{
    const host_tensor *x, *w, *bias;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 1, &w));
    TRY(arg_tensor_or_none(p, 2, &bias));
    TRY(need_rank(p, w, dims + 2, dims + 2, "weight"));
    TRY(need_rank(p, x, dims + 1, dims + 2, "input"));
    TRY(need_float(p, x, "input"));
    if (w->dtype != x->dtype || (bias && bias->dtype != x->dtype))
        return host_refuse(p, MERA_UNSUPPORTED, "input, weight and bias must have one dtype");
    const bool batched = x->rank == dims + 2;
    const int64_t channels = x->shape[batched];
    conv *g = NEW_PLAN(p, conv);
    if (g == NULL) return out_of_memory(p->ctx);
    *g = (conv){.x = arg_number(p, 0),
                .w = arg_number(p, 1),
                .bias = bias ? arg_number(p, 2) : -1,
                .dtype = x->dtype,
                .transposed = s->transposed,
                .batch = batched ? x->shape[0] : 1,
                .groups = s->groups,
                .in = {1, 1},
                .kernel = {1, 1}};
    const int64_t in_weight = w->shape[s->transposed ? 0 : 1], out_weight = w->shape[s->transposed ? 1 : 0];
    const int64_t group = s->groups;
    if (!small(group, 1) || channels % group != 0 ||
        (s->transposed ? in_weight != channels : in_weight * group != channels) ||
        (!s->transposed && out_weight % group != 0))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld channels in %lld groups do not suit the weight",
                           (long long)channels, (long long)group);
    g->in_group = channels / group;
    g->out_group = s->transposed ? out_weight : out_weight / group;
    for (int32_t d = 0; d < dims; d++) {
        g->in[2 - dims + d] = x->shape[x->rank - dims + d];
        g->kernel[2 - dims + d] = w->shape[2 + d];
        if (w->shape[2 + d] == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "the kernel is empty");
    }
    const int64_t outputs = g->out_group * group;
    if (bias && (bias->rank != 1 || bias->shape[0] != outputs))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "bias must have %lld elements", (long long)outputs);
    TRY(sizes(p, g, s));
    p->step->run = run_conv;
    int64_t shape[4] = {g->batch, outputs, g->out[0], g->out[1]};
    if (dims == 1) shape[2] = g->out[1];
    TRY(add_result(p, x->dtype, x->rank, shape + !batched));
    return scratch(p, g);
}

static void same_end(settings *s) { memcpy(s->pad_end, s->pad, sizeof s->pad); }

/* (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups) */
mera_status plan_convolution(host_planner *p)
{
    const host_tensor *w;
    TRY(arg_tensor(p, 1, &w));
    TRY(need_rank(p, w, 3, 4, "weight (of one and two dimensions only)"));
    const int32_t dims = w->rank - 2;
    settings s = {.transposed = arg_flag(p, 6), .groups = arg_int(p, 8)};
    TRY(pair_of(p, 3, dims, 1, 1, s.stride));
    TRY(pair_of(p, 4, dims, 0, 0, s.pad));
    TRY(pair_of(p, 5, dims, 1, 1, s.dilation));
    TRY(pair_of(p, 7, dims, 0, 0, s.extra));
    same_end(&s);
    return plan(p, dims, &s);
}

/* conv1d, conv2d (input, weight, bias, stride, padding, dilation, groups); variant: dimensions. */
mera_status plan_conv(host_planner *p)
{
    settings s = {.groups = arg_int(p, 6)};
    TRY(pair_of(p, 3, p->variant, 1, 1, s.stride));
    TRY(pair_of(p, 4, p->variant, 0, 0, s.pad));
    TRY(pair_of(p, 5, p->variant, 1, 1, s.dilation));
    same_end(&s);
    return plan(p, p->variant, &s);
}

/* The same with padding "valid" or "same". */
mera_status plan_conv_padding(host_planner *p)
{
    const bool same = strcmp(arg_text(p, 4), "same") == 0;
    const host_tensor *w;
    settings s = {.groups = arg_int(p, 6)};
    TRY(arg_tensor(p, 1, &w));
    TRY(need_rank(p, w, p->variant + 2, p->variant + 2, "weight"));
    TRY(pair_of(p, 3, p->variant, 1, 1, s.stride));
    TRY(pair_of(p, 5, p->variant, 1, 1, s.dilation));
    if (!same && strcmp(arg_text(p, 4), "valid") != 0)
        return host_refuse(p, MERA_UNSUPPORTED, "padding must be same or valid, not %s", arg_text(p, 4));
    for (int32_t d = 0; same && d < p->variant; d++) {
        const int32_t to = 2 - p->variant + d;
        if (s.stride[to] != 1) return host_refuse(p, MERA_UNSUPPORTED, "padding same needs a stride of 1");
        const int64_t all = s.dilation[to] * (w->shape[2 + d] - 1);
        s.pad[to] = all / 2;
        s.pad_end[to] = all - all / 2;
    }
    return plan(p, p->variant, &s);
}

/* conv_transpose1d, 2d (input, weight, bias, stride, padding, output_padding, groups, dilation) */
mera_status plan_conv_transpose(host_planner *p)
{
    settings s = {.transposed = true, .groups = arg_int(p, 6)};
    TRY(pair_of(p, 3, p->variant, 1, 1, s.stride));
    TRY(pair_of(p, 4, p->variant, 0, 0, s.pad));
    TRY(pair_of(p, 5, p->variant, 0, 0, s.extra));
    TRY(pair_of(p, 7, p->variant, 1, 1, s.dilation));
    same_end(&s);
    return plan(p, p->variant, &s);
}
