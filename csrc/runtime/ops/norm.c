/* norm.c: normalization by given or by own statistics. Statistics are computed in double. */
#include <math.h>

#include "ops.h"

/* x as [outer, channels, inner]: groups of `group` elements that stand side by side share statistics; weight and bias belong
 * to a channel, or (by_element) to a position in the group. */
typedef struct norm {
    int32_t x, weight, bias, mean, var; /* -1: none; mean and var: given statistics, one a channel */
    host_dtype dtype;
    int64_t outer, channels, inner, group;
    bool by_element;
    double eps;
} norm;

static double value_at(const host_frame *f, const norm *n, int32_t number, int64_t i, double otherwise)
{
    if (number < 0) return otherwise;
    return n->dtype == MERA_HOST_FLOAT32 ? (double)((const float *)f->tensors[number])[i]
                                         : ((const double *)f->tensors[number])[i];
}

/* y = x * scale + shift */
static void line(const norm *n, int64_t count, int64_t at, const void *x, double scale, double shift, void *y)
{
    if (n->dtype == MERA_HOST_FLOAT32) {
        const float *a = (const float *)x + at;
        for (int64_t i = 0; i < count; i++) ((float *)y)[at + i] = (float)((double)a[i] * scale + shift);
    } else {
        const double *a = (const double *)x + at;
        for (int64_t i = 0; i < count; i++) ((double *)y)[at + i] = a[i] * scale + shift;
    }
}

static mera_status run_batch_norm(const host_frame *f)
{
    const norm *n = f->step->plan;
    for (int64_t o = 0; o < n->outer; o++)
        for (int64_t c = 0; c < n->channels; c++) {
            const double scale = value_at(f, n, n->weight, c, 1) / sqrt(value_at(f, n, n->var, c, 1) + n->eps);
            const double shift = value_at(f, n, n->bias, c, 0) - value_at(f, n, n->mean, c, 0) * scale;
            line(n, n->inner, (o * n->channels + c) * n->inner, f->tensors[n->x], scale, shift, f->results[0]);
        }
    return MERA_OK;
}

static double element(const norm *n, const void *x, int64_t i)
{
    return n->dtype == MERA_HOST_FLOAT32 ? (double)((const float *)x)[i] : ((const double *)x)[i];
}

static void put(const norm *n, void *y, int64_t i, double value)
{
    if (n->dtype == MERA_HOST_FLOAT32)
        ((float *)y)[i] = (float)value;
    else
        ((double *)y)[i] = value;
}

static void statistics(const norm *n, const void *x, int64_t at, double *mean, double *inverse)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n->group; i++) sum += element(n, x, at + i);
    *mean = sum / (double)n->group;
    for (int64_t i = 0; i < n->group; i++) {
        const double d = element(n, x, at + i) - *mean;
        squares += d * d;
    }
    *inverse = 1 / sqrt(squares / (double)n->group + n->eps);
}

/* Groups with statistics of their own; results 1 and 2, if there are any, are mean and 1 / deviation. */
static mera_status run_own(const host_frame *f)
{
    const norm *n = f->step->plan;
    const void *x = f->tensors[n->x];
    const int64_t all = n->outer * n->channels * n->inner, groups = n->group > 0 ? all / n->group : 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t at = g * n->group;
        double mean, inverse;
        statistics(n, x, at, &mean, &inverse);
        if (f->step->result_count > 1) {
            put(n, f->results[1], g, mean);
            put(n, f->results[2], g, inverse);
        }
        for (int64_t i = 0; i < n->group; i += n->by_element ? n->group : n->inner) {
            const int64_t c = (at + i) / n->inner % n->channels;
            if (!n->by_element) {
                const double scale = inverse * value_at(f, n, n->weight, c, 1);
                line(n, n->inner, at + i, x, scale, value_at(f, n, n->bias, c, 0) - mean * scale, f->results[0]);
                continue;
            }
            for (int64_t k = 0; k < n->group; k++)
                put(n, f->results[0], at + k,
                    (element(n, x, at + k) - mean) * inverse * value_at(f, n, n->weight, k, 1) +
                        value_at(f, n, n->bias, k, 0));
        }
    }
    return MERA_OK;
}

/* rms_norm: no mean. */
static mera_status run_rms(const host_frame *f)
{
    const norm *n = f->step->plan;
    const void *x = f->tensors[n->x];
    const int64_t all = n->outer * n->channels * n->inner, groups = n->group > 0 ? all / n->group : 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t at = g * n->group;
        double squares = 0;
        for (int64_t i = 0; i < n->group; i++) squares += element(n, x, at + i) * element(n, x, at + i);
        const double inverse = 1 / sqrt(squares / (double)n->group + n->eps);
        for (int64_t i = 0; i < n->group; i++)
            put(n, f->results[0], at + i, element(n, x, at + i) * inverse * value_at(f, n, n->weight, i, 1));
    }
    return MERA_OK;
}

/* ---- planning ---- */

/* An optional tensor of x's dtype with so many elements; its number or -1. */
static mera_status optional(host_planner *p, const norm *n, int32_t index, int64_t elements, int32_t *number)
{
    const host_tensor *t;
    TRY(arg_tensor_or_none(p, index, &t));
    *number = -1;
    if (t == NULL) return MERA_OK;
    if (t->dtype != n->dtype || host_elements(t) != elements)
        return host_refuse(p, MERA_UNSUPPORTED, "weight, bias and statistics must have input's dtype and %lld elements",
                           (long long)elements);
    *number = arg_number(p, index);
    return MERA_OK;
}

static mera_status begin(host_planner *p, const host_tensor **x, norm **out)
{
    TRY(arg_tensor(p, 0, x));
    TRY(need_float(p, *x, "input"));
    norm *n = NEW_PLAN(p, norm);
    if (n == NULL) return out_of_memory(p->ctx);
    *n = (norm){.x = arg_number(p, 0), .weight = -1, .bias = -1, .mean = -1, .var = -1, .dtype = (*x)->dtype};
    *out = n;
    return MERA_OK;
}

static mera_status by_channel(host_planner *p, const host_tensor *x, norm *n)
{
    TRY(need_rank(p, x, 2, HOST_MAX_RANK, "input"));
    n->outer = x->shape[0];
    n->channels = x->shape[1];
    n->inner = product(x->rank - 2, x->shape + 2);
    return MERA_OK;
}

static mera_status own_statistics(host_planner *p, norm *n, int64_t group)
{
    n->group = group;
    if (n->inner == 0) n->inner = 1, n->outer = 0;
    if (n->channels == 0) n->channels = 1, n->outer = 0;
    p->step->run = run_own;
    return MERA_OK;
}

/* (input, weight, bias, running_mean, running_var, ...): variant 0 = training, momentum, eps; 1 = momentum, eps, and two
 * empty results more; 2 = training, momentum, eps, and those. */
mera_status plan_batch_norm(host_planner *p)
{
    const host_tensor *x;
    norm *n = NULL;
    TRY(begin(p, &x, &n));
    TRY(by_channel(p, x, n));
    if (p->variant != 1 && arg_flag(p, 5)) return host_refuse(p, MERA_UNSUPPORTED, "it cannot train");
    TRY(optional(p, n, 1, n->channels, &n->weight));
    TRY(optional(p, n, 2, n->channels, &n->bias));
    TRY(optional(p, n, 3, n->channels, &n->mean));
    TRY(optional(p, n, 4, n->channels, &n->var));
    if (n->mean < 0 || n->var < 0) return host_refuse(p, MERA_UNSUPPORTED, "it needs running_mean and running_var");
    n->eps = arg_real(p, p->variant == 1 ? 6 : 7);
    p->step->run = run_batch_norm;
    TRY(add_result(p, x->dtype, x->rank, x->shape));
    if (p->variant == 0) return MERA_OK;
    p->step->many = true;
    TRY(add_result(p, x->dtype, 1, (const int64_t[]){0}));
    return add_result(p, x->dtype, 1, (const int64_t[]){0});
}

/* (input, normalized_shape, weight, bias, eps); variant: 0 = layer_norm, 1 = native: mean and rstd, too; 2 = rms_norm
 * (input, normalized_shape, weight, eps). */
mera_status plan_layer_norm(host_planner *p)
{
    const host_tensor *x;
    norm *n = NULL;
    TRY(begin(p, &x, &n));
    const int32_t count = arg_count(p, 1), lead = x->rank - count;
    bool good = count > 0 && lead >= 0;
    for (int32_t d = 0; good && d < count; d++) good = arg_item(p, 1, d) == x->shape[lead + d];
    if (!good) return host_refuse(p, MERA_INVALID_ARGUMENT, "normalized_shape is not how input's shape ends");
    const int64_t group = product(count, x->shape + lead);
    n->outer = product(lead, x->shape);
    n->channels = group;
    n->inner = 1;
    n->by_element = true;
    TRY(optional(p, n, 2, group, &n->weight));
    if (p->variant < 2) TRY(optional(p, n, 3, group, &n->bias));
    const double usual = n->dtype == MERA_HOST_FLOAT32 ? 0x1p-23 : 0x1p-52;
    n->eps = p->variant == 2 ? (arg_given(p, 3) ? arg_real(p, 3) : usual) : arg_real(p, 4);
    TRY(own_statistics(p, n, group));
    if (p->variant == 2) p->step->run = run_rms;
    TRY(add_result(p, x->dtype, x->rank, x->shape));
    if (p->variant != 1) return MERA_OK;
    int64_t shape[HOST_MAX_RANK];
    for (int32_t d = 0; d < x->rank; d++) shape[d] = d < lead ? x->shape[d] : 1;
    if (group == 0) return host_refuse(p, MERA_UNSUPPORTED, "normalized_shape is empty");
    p->step->many = true;
    TRY(add_result(p, x->dtype, x->rank, shape));
    return add_result(p, x->dtype, x->rank, shape);
}

/* (input, num_groups, weight, bias, eps) */
mera_status plan_group_norm(host_planner *p)
{
    const host_tensor *x;
    norm *n = NULL;
    TRY(begin(p, &x, &n));
    TRY(by_channel(p, x, n));
    const int64_t groups = arg_int(p, 1);
    if (groups < 1 || n->channels % groups != 0)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld channels cannot be in %lld groups", (long long)n->channels,
                           (long long)groups);
    TRY(optional(p, n, 2, n->channels, &n->weight));
    TRY(optional(p, n, 3, n->channels, &n->bias));
    n->eps = arg_real(p, 4);
    TRY(own_statistics(p, n, n->channels / groups * n->inner));
    return add_result(p, x->dtype, x->rank, x->shape);
}

/* (input, weight, bias, N, C, HxW, group, eps): mean and rstd, too */
mera_status plan_native_group_norm(host_planner *p)
{
    const host_tensor *x;
    norm *n = NULL;
    TRY(begin(p, &x, &n));
    n->outer = arg_int(p, 3);
    n->channels = arg_int(p, 4);
    n->inner = arg_int(p, 5);
    const int64_t groups = arg_int(p, 6), all = host_elements(x);
    const bool sized = n->outer > 0 && n->channels > 0 && n->inner > 0 && all > 0 && n->outer <= all &&
                       n->channels <= all / n->outer && n->inner <= all / n->outer / n->channels &&
                       n->outer * n->channels * n->inner == all;
    if (!sized || groups < 1 || n->channels % groups != 0)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "N, C, HxW and group are not those of the input");
    TRY(optional(p, n, 1, n->channels, &n->weight));
    TRY(optional(p, n, 2, n->channels, &n->bias));
    n->eps = arg_real(p, 7);
    TRY(own_statistics(p, n, n->channels / groups * n->inner));
    p->step->many = true;
    const int64_t shape[] = {n->outer, groups};
    TRY(add_result(p, x->dtype, x->rank, x->shape));
    TRY(add_result(p, x->dtype, 2, shape));
    return add_result(p, x->dtype, 2, shape);
}

/* (input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled) */
mera_status plan_instance_norm(host_planner *p)
{
    const host_tensor *x;
    norm *n = NULL;
    TRY(begin(p, &x, &n));
    TRY(by_channel(p, x, n));
    TRY(optional(p, n, 1, n->channels, &n->weight));
    TRY(optional(p, n, 2, n->channels, &n->bias));
    n->eps = arg_real(p, 7);
    if (arg_flag(p, 5)) {
        if (arg_given(p, 3) || arg_given(p, 4)) return host_refuse(p, MERA_UNSUPPORTED, "it cannot train");
        TRY(own_statistics(p, n, n->inner));
    } else {
        TRY(optional(p, n, 3, n->channels, &n->mean));
        TRY(optional(p, n, 4, n->channels, &n->var));
        if (n->mean < 0 || n->var < 0) return host_refuse(p, MERA_UNSUPPORTED, "it needs running_mean and running_var");
        p->step->run = run_batch_norm;
    }
    return add_result(p, x->dtype, x->rank, x->shape);
}
