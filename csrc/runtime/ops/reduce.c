/* reduce.c: sums, means, extrema and the like over dimensions. Reals are reduced in double, integers in int64_t. */
#include <math.h>

#include "ops.h"

enum { CHUNK = 512 };

typedef enum reduction {
    REDUCE_SUM,
    REDUCE_MEAN,
    REDUCE_PROD,
    REDUCE_MAX,
    REDUCE_MIN,
    REDUCE_ANY,
    REDUCE_ALL,
    REDUCE_VAR,
    REDUCE_STD,
    REDUCE_VAR_MEAN,
    REDUCE_LOGSUMEXP,
    REDUCE_NORM,
    REDUCE_COUNT_NONZERO
} reduction;

typedef struct reducing {
    reduction kind;
    int32_t number;
    host_dtype dtype, as; /* of x; what it is converted to first */
    bool real;
    bool picks;       /* result 1, or the only one, is the position of the extremum */
    double parameter; /* correction, or the norm's order */
    int32_t kept_rank, rank;
    int64_t kept_shape[HOST_MAX_RANK], kept_stride[HOST_MAX_RANK];
    int64_t shape[HOST_MAX_RANK], stride[HOST_MAX_RANK]; /* reduced ones; at least one */
    int64_t count;                                       /* elements that make one */
} reducing;

typedef struct state {
    double real, extra;
    int64_t integer, index, seen;
    bool started;
} state;

/* Four sums side by side, then together: quick, and always in the same order. */
static double sum_of(int64_t n, const double *x)
{
    double a = 0, b = 0, c = 0, d = 0;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        a += x[i];
        b += x[i + 1];
        c += x[i + 2];
        d += x[i + 3];
    }
    for (; i < n; i++) a += x[i];
    return (a + b) + (c + d);
}

static void extremum_real(state *s, int64_t n, const double *x, bool most)
{
    for (int64_t i = 0; i < n; i++) {
        const bool better = !s->started || (s->real == s->real && (most ? x[i] > s->real : x[i] < s->real)) ||
                            (s->real == s->real && x[i] != x[i]);
        if (!better) continue;
        s->started = true;
        s->real = x[i];
        s->index = s->seen + i;
    }
}

static void extremum_integer(state *s, int64_t n, const int64_t *x, bool most)
{
    for (int64_t i = 0; i < n; i++) {
        if (s->started && !(most ? x[i] > s->integer : x[i] < s->integer)) continue;
        s->started = true;
        s->integer = x[i];
        s->index = s->seen + i;
    }
}

static double norm_term(double x, double order)
{
    if (order == 2) return x * x;
    return order == 1 ? fabs(x) : order == 0 ? x != 0 : pow(fabs(x), order);
}

static void take_real(const reducing *r, state *s, int64_t n, double *x)
{
    switch (r->kind) {
    case REDUCE_MAX:
    case REDUCE_MIN:
        extremum_real(s, n, x, r->kind == REDUCE_MAX);
        break;
    case REDUCE_PROD:
        for (int64_t i = 0; i < n; i++) s->real *= x[i];
        break;
    case REDUCE_ANY:
    case REDUCE_ALL:
    case REDUCE_COUNT_NONZERO:
        for (int64_t i = 0; i < n; i++) s->integer += x[i] != 0;
        break;
    case REDUCE_NORM:
        if (isinf(r->parameter)) {
            for (int64_t i = 0; i < n; i++) x[i] = fabs(x[i]);
            extremum_real(s, n, x, r->parameter > 0);
            break;
        }
        for (int64_t i = 0; i < n; i++) x[i] = norm_term(x[i], r->parameter);
        s->real += sum_of(n, x);
        break;
    default:
        s->real += sum_of(n, x);
        break;
    }
    s->seen += n;
}

/* The second time over the elements: squares around the mean, or e^(x - max). */
static void take_again(const reducing *r, state *s, int64_t n, double *x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = r->kind == REDUCE_LOGSUMEXP ? exp(x[i] - s->real) : (x[i] - s->real) * (x[i] - s->real);
    s->extra += sum_of(n, x);
}

static void take_integer(const reducing *r, state *s, int64_t n, const int64_t *x)
{
    switch (r->kind) {
    case REDUCE_MAX:
    case REDUCE_MIN:
        extremum_integer(s, n, x, r->kind == REDUCE_MAX);
        break;
    case REDUCE_PROD:
        for (int64_t i = 0; i < n; i++) s->integer = (int64_t)((uint64_t)s->integer * (uint64_t)x[i]);
        break;
    case REDUCE_ANY:
    case REDUCE_ALL:
    case REDUCE_COUNT_NONZERO:
        for (int64_t i = 0; i < n; i++) s->integer += x[i] != 0;
        break;
    default:
        for (int64_t i = 0; i < n; i++) s->integer = (int64_t)((uint64_t)s->integer + (uint64_t)x[i]);
        break;
    }
    s->seen += n;
}

/* Feeds the elements that make one result; again: the second time. */
static void walk(const reducing *r, state *s, const char *x, int64_t at, bool again)
{
    union {
        double real[CHUNK];
        int64_t integer[CHUNK];
    } chunk, given;
    const size_t size = host_dtype_size(r->dtype);
    const host_dtype form = r->real ? MERA_HOST_FLOAT64 : MERA_HOST_INT64;
    const int64_t n = r->shape[r->rank - 1], stride = r->stride[r->rank - 1];
    const int64_t lines = n > 0 ? r->count / n : 0;
    int64_t index[HOST_MAX_RANK] = {0};
    for (int64_t line = 0; line < lines; line++) {
        for (int64_t i = 0; i < n; i += CHUNK) {
            const int64_t m = min_i64(CHUNK, n - i);
            const void *from = x + (at + i * stride) * (int64_t)size;
            if (r->as == r->dtype) {
                convert_row(m, form, &chunk, r->dtype, from, stride);
            } else {
                convert_row(m, r->as, &given, r->dtype, from, stride);
                convert_row(m, form, &chunk, r->as, &given, 1);
            }
            if (again)
                take_again(r, s, m, chunk.real);
            else if (r->real)
                take_real(r, s, m, chunk.real);
            else
                take_integer(r, s, m, chunk.integer);
        }
        for (int32_t d = r->rank - 2; d >= 0; d--) {
            at += r->stride[d];
            if (++index[d] < r->shape[d]) break;
            at -= r->stride[d] * r->shape[d];
            index[d] = 0;
        }
    }
}

static double finish_real(const reducing *r, state *s, const char *x, int64_t at)
{
    const double n = (double)r->count;
    switch (r->kind) {
    case REDUCE_MEAN:
        return s->real / n;
    case REDUCE_NORM: {
        if (isinf(r->parameter) || r->parameter == 0 || r->parameter == 1) return s->real;
        return r->parameter == 2 ? sqrt(s->real) : pow(s->real, 1 / r->parameter);
    }
    case REDUCE_VAR:
    case REDUCE_STD:
    case REDUCE_VAR_MEAN: {
        s->real /= n;
        walk(r, s, x, at, true);
        const double degrees = n - r->parameter, var = s->extra / (degrees > 0 ? degrees : 0);
        return r->kind == REDUCE_STD ? sqrt(var) : var;
    }
    default:
        return s->real;
    }
}

static double log_sum(const reducing *r, const char *x, int64_t at)
{
    reducing most = *r;
    most.kind = REDUCE_MAX;
    state s = {.started = false};
    walk(&most, &s, x, at, false);
    if (!s.started) return -INFINITY;
    if (isinf(s.real)) s.real = s.real > 0 ? s.real : 0;
    walk(r, &s, x, at, true);
    return log(s.extra) + s.real;
}

static void reduce_one(const reducing *r, const host_frame *f, int64_t at, int64_t k)
{
    const char *x = f->tensors[r->number];
    const host_tensor *results = f->step->results;
    state s = {.real = r->kind == REDUCE_PROD, .integer = r->kind == REDUCE_PROD};
    char *to = f->results[0] ? (char *)f->results[0] + (size_t)k * host_dtype_size(results[0].dtype) : NULL;
    if (r->kind == REDUCE_LOGSUMEXP) {
        const double value = log_sum(r, x, at);
        convert_row(1, results[0].dtype, to, MERA_HOST_FLOAT64, &value, 1);
        return;
    }
    walk(r, &s, x, at, false);
    if (r->picks) {
        const int32_t where = f->step->result_count - 1;
        ((int64_t *)f->results[where])[k] = s.index;
        if (where == 0) return;
    }
    if (r->kind == REDUCE_ANY || r->kind == REDUCE_ALL || r->kind == REDUCE_COUNT_NONZERO || !r->real) {
        if (r->kind == REDUCE_ANY) s.integer = s.integer > 0;
        if (r->kind == REDUCE_ALL) s.integer = s.integer == r->count;
        convert_row(1, results[0].dtype, to, MERA_HOST_INT64, &s.integer, 1);
        return;
    }
    const double value = finish_real(r, &s, x, at);
    convert_row(1, results[0].dtype, to, MERA_HOST_FLOAT64, &value, 1);
    if (r->kind == REDUCE_VAR_MEAN)
        convert_row(1, results[1].dtype, (char *)f->results[1] + (size_t)k * host_dtype_size(results[1].dtype),
                    MERA_HOST_FLOAT64, &s.real, 1);
}

static mera_status run_reduce(const host_frame *f)
{
    const reducing *r = f->step->plan;
    int64_t index[HOST_MAX_RANK] = {0}, at = 0;
    const int64_t n = product(r->kept_rank, r->kept_shape);
    for (int64_t k = 0; k < n; k++) {
        reduce_one(r, f, at, k);
        for (int32_t d = r->kept_rank - 1; d >= 0; d--) {
            at += r->kept_stride[d];
            if (++index[d] < r->kept_shape[d]) break;
            at -= r->kept_stride[d] * r->kept_shape[d];
            index[d] = 0;
        }
    }
    return MERA_OK;
}

/* ---- planning ---- */

/* x without or with 1 for the flagged dimensions. */
static int32_t kept_shape(const host_tensor *x, const bool *flags, bool keep, int64_t *shape)
{
    int32_t rank = 0;
    for (int32_t d = 0; d < x->rank; d++)
        if (!flags[d] || keep) shape[rank++] = flags[d] ? 1 : x->shape[d];
    return rank;
}

static mera_status begin(host_planner *p, reduction kind, host_dtype as, const bool *flags, reducing **out)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    reducing *r = NEW_PLAN(p, reducing);
    if (r == NULL) return out_of_memory(p->ctx);
    *r = (reducing){.kind = kind, .number = arg_number(p, 0), .dtype = x->dtype, .as = as, .real = is_float(as), .count = 1};
    int64_t strides[HOST_MAX_RANK];
    dense_strides(x->rank, x->shape, strides);
    for (int32_t d = 0; d < x->rank; d++) {
        if (!flags[d]) {
            r->kept_shape[r->kept_rank] = x->shape[d];
            r->kept_stride[r->kept_rank++] = strides[d];
            continue;
        }
        r->count *= x->shape[d];
        const bool join = r->rank > 0 && r->stride[r->rank - 1] == strides[d] * x->shape[d];
        if (join)
            r->shape[r->rank - 1] *= x->shape[d];
        else
            r->shape[r->rank++] = x->shape[d];
        r->stride[r->rank - 1] = strides[d];
    }
    if (r->rank == 0) r->shape[r->rank++] = 1;
    p->step->run = run_reduce;
    *out = r;
    return MERA_OK;
}

static mera_status finish(host_planner *p, const bool *flags, bool keep, host_dtype dtype)
{
    int64_t shape[HOST_MAX_RANK];
    const int32_t rank = kept_shape(&p->tensors[arg_number(p, 0)], flags, keep, shape);
    return add_result(p, dtype, rank, shape);
}

static mera_status first_tensor(host_planner *p, const host_tensor **x) { return arg_tensor(p, 0, x); }

/* The dims of parameter 1 (none given: all), keepdim is parameter 2; forms without them reduce all. */
static mera_status dims_of(host_planner *p, const host_tensor *x, bool has_dims, bool one, bool *flags, bool *keep)
{
    *keep = has_dims && arg_flag(p, 2);
    if (has_dims && !one) return arg_dims(p, 1, x->rank, flags);
    for (int32_t d = 0; d < HOST_MAX_RANK; d++) flags[d] = !has_dims;
    if (!has_dims) return MERA_OK;
    int32_t dim = 0;
    TRY(arg_dim(p, 1, x->rank, &dim));
    flags[dim] = true;
    return MERA_OK;
}

/* sum and mean; variant: 0 = sum(self, *, dtype), 1 = sum(self, dim, keepdim, *, dtype), 2 and 3 = mean, 4 = prod(self),
 * 5 = prod of one dim. */
mera_status plan_sum(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK], keep;
    reducing *r = NULL;
    const bool has_dims = p->variant % 2 == 1, mean = p->variant == 2 || p->variant == 3;
    TRY(first_tensor(p, &x));
    TRY(dims_of(p, x, has_dims, p->variant == 5, flags, &keep));
    const host_dtype usual = is_float(x->dtype) ? x->dtype : MERA_HOST_INT64;
    const host_dtype dtype = arg_dtype(p, has_dims ? 3 : 1, usual);
    if (mean && !is_float(dtype))
        return host_refuse(p, MERA_UNSUPPORTED, "the mean of %s is not real", host_dtype_name(dtype));
    TRY(begin(p, mean ? REDUCE_MEAN : p->variant >= 4 ? REDUCE_PROD : REDUCE_SUM, dtype, flags, &r));
    return finish(p, flags, keep, dtype);
}

/* Of the greatest (variant 0) or the least (1) element, which there must be. */
static mera_status begin_choice(host_planner *p, const host_tensor *x, const bool *flags, reducing **r)
{
    TRY(begin(p, p->variant == 0 ? REDUCE_MAX : REDUCE_MIN, x->dtype, flags, r));
    if ((*r)->count == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "there are no elements to choose from");
    return MERA_OK;
}

/* amax, amin; variant: 0 = greatest, 1 = least. */
mera_status plan_amax(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK], keep;
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(dims_of(p, x, true, false, flags, &keep));
    TRY(begin_choice(p, x, flags, &r));
    return finish(p, flags, keep, x->dtype);
}

/* max(self) and min(self); variant as in amax. */
mera_status plan_max(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK], keep;
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(dims_of(p, x, false, false, flags, &keep));
    TRY(begin_choice(p, x, flags, &r));
    return finish(p, flags, false, x->dtype);
}

/* max.dim and min.dim: values and indices. */
mera_status plan_max_dim(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK], keep;
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(dims_of(p, x, true, true, flags, &keep));
    TRY(begin_choice(p, x, flags, &r));
    r->picks = true;
    p->step->many = true;
    TRY(finish(p, flags, keep, x->dtype));
    return finish(p, flags, keep, MERA_HOST_INT64);
}

mera_status plan_argmax(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK], keep;
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(dims_of(p, x, arg_given(p, 1), true, flags, &keep));
    keep = arg_flag(p, 2);
    TRY(begin_choice(p, x, flags, &r));
    r->picks = true;
    return finish(p, flags, keep, MERA_HOST_INT64);
}

/* any and all; variant: 0 = any(self), 1 = any of one dim, 2 = any of dims; 3 to 5 = all. */
mera_status plan_any(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK], keep;
    reducing *r = NULL;
    const int32_t form = p->variant % 3;
    TRY(first_tensor(p, &x));
    TRY(dims_of(p, x, form > 0, form == 1, flags, &keep));
    TRY(begin(p, p->variant < 3 ? REDUCE_ANY : REDUCE_ALL, x->dtype, flags, &r));
    return finish(p, flags, keep, x->dtype == MERA_HOST_UINT8 ? MERA_HOST_UINT8 : MERA_HOST_BOOL);
}

/* var, std, var_mean of (self, dim, *, correction, keepdim); variant: 0, 1, 2. */
mera_status plan_var(host_planner *p)
{
    static const reduction kinds[] = {REDUCE_VAR, REDUCE_STD, REDUCE_VAR_MEAN};
    const host_tensor *x;
    bool flags[HOST_MAX_RANK];
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(arg_dims(p, 1, x->rank, flags));
    if (!is_float(x->dtype)) return host_refuse(p, MERA_UNSUPPORTED, "it is for real dtypes only");
    TRY(begin(p, kinds[p->variant], x->dtype, flags, &r));
    r->parameter = arg_given(p, 2) ? arg_real(p, 2) : 1;
    p->step->many = p->variant == 2;
    TRY(finish(p, flags, arg_flag(p, 3), x->dtype));
    return p->variant == 2 ? finish(p, flags, arg_flag(p, 3), x->dtype) : MERA_OK;
}

/* var.dim and std.dim of (self, dim, unbiased, keepdim); variant as in var. */
mera_status plan_var_dim(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK];
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(arg_dims(p, 1, x->rank, flags));
    if (!is_float(x->dtype)) return host_refuse(p, MERA_UNSUPPORTED, "it is for real dtypes only");
    TRY(begin(p, p->variant == 0 ? REDUCE_VAR : REDUCE_STD, x->dtype, flags, &r));
    r->parameter = arg_flag(p, 2);
    return finish(p, flags, arg_flag(p, 3), x->dtype);
}

mera_status plan_logsumexp(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK];
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(arg_dims(p, 1, x->rank, flags));
    const host_dtype dtype = is_float(x->dtype) ? x->dtype : MERA_HOST_FLOAT32;
    TRY(begin(p, REDUCE_LOGSUMEXP, dtype, flags, &r));
    return finish(p, flags, arg_flag(p, 2), dtype);
}

/* linalg_vector_norm(self, ord, dim, keepdim, *, dtype); variant 1: norm(self, p, dim, keepdim). */
mera_status plan_norm(host_planner *p)
{
    const host_tensor *x;
    bool flags[HOST_MAX_RANK];
    reducing *r = NULL;
    TRY(first_tensor(p, &x));
    TRY(arg_dims(p, 2, x->rank, flags));
    const host_dtype dtype = p->variant == 0 ? arg_dtype(p, 4, x->dtype) : x->dtype;
    if (!is_float(x->dtype) || !is_float(dtype)) return host_refuse(p, MERA_UNSUPPORTED, "it is for real dtypes only");
    TRY(begin(p, REDUCE_NORM, dtype, flags, &r));
    r->parameter = arg_given(p, 1) ? arg_real(p, 1) : 2;
    if (r->count == 0 && isinf(r->parameter))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "there are no elements to choose from");
    return finish(p, flags, arg_flag(p, 3), dtype);
}

/* ---- cumulative sums and products ---- */

typedef struct scan {
    host_dtype dtype;
    int64_t outer, size, inner;
    bool product;
} scan;

static mera_status run_scan(const host_frame *f)
{
    const scan *s = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const bool real = is_float(y->dtype);
    const size_t from = host_dtype_size(s->dtype), size = host_dtype_size(y->dtype);
    for (int64_t line = 0; line < s->outer * s->inner; line++) {
        double sum = s->product;
        int64_t integer = s->product;
        const int64_t base = line / s->inner * s->size * s->inner + line % s->inner;
        for (int64_t i = 0; i < s->size; i++) {
            const char *x = (const char *)f->tensors[f->step->reads[0]] + (size_t)(base + i * s->inner) * from;
            char *to = (char *)f->results[0] + (size_t)(base + i * s->inner) * size;
            if (real) {
                double value;
                convert_row(1, y->dtype, to, s->dtype, x, 1);
                convert_row(1, MERA_HOST_FLOAT64, &value, y->dtype, to, 1);
                sum = s->product ? sum * value : sum + value;
                convert_row(1, y->dtype, to, MERA_HOST_FLOAT64, &sum, 1);
            } else {
                int64_t value;
                convert_row(1, MERA_HOST_INT64, &value, s->dtype, x, 1);
                integer = (int64_t)(s->product ? (uint64_t)integer * (uint64_t)value : (uint64_t)integer + (uint64_t)value);
                convert_row(1, y->dtype, to, MERA_HOST_INT64, &integer, 1);
            }
        }
    }
    return MERA_OK;
}

/* variant: 0 = cumsum, 1 = cumprod. */
mera_status plan_scan(host_planner *p)
{
    const host_tensor *x;
    int32_t dim = 0;
    TRY(first_tensor(p, &x));
    TRY(arg_dim(p, 1, x->rank, &dim));
    scan *s = NEW_PLAN(p, scan);
    if (s == NULL) return out_of_memory(p->ctx);
    *s = (scan){.dtype = x->dtype,
                .outer = product(dim, x->shape),
                .size = x->rank > 0 ? x->shape[dim] : 1,
                .inner = x->rank > 0 ? product(x->rank - dim - 1, x->shape + dim + 1) : 1,
                .product = p->variant == 1};
    p->step->run = run_scan;
    return add_result(p, arg_dtype(p, 2, is_float(x->dtype) ? x->dtype : MERA_HOST_INT64), x->rank, x->shape);
}
