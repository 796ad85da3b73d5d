/* rows.c: promotion, broadcasting and the walk over rows of elementwise operators. */
#include "rows.h"

host_dtype real_dtype(host_dtype dtype) { return is_float(dtype) ? dtype : MERA_HOST_FLOAT32; }

host_dtype form_of_dtype(host_dtype dtype)
{
    if (!is_float(dtype)) return MERA_HOST_INT64;
    return dtype == MERA_HOST_FLOAT64 ? MERA_HOST_FLOAT64 : MERA_HOST_FLOAT32;
}

/* ---- promotion: tensors with dimensions before tensors without before numbers, unless only the later are real ---- */

typedef struct kinds {
    bool found[3];
    host_dtype dtype[3];
} kinds;

static void note(kinds *k, int category, host_dtype dtype)
{
    k->dtype[category] = k->found[category] ? promote(k->dtype[category], dtype) : dtype;
    k->found[category] = true;
}

static bool combine(bool have, host_dtype *dtype, bool found, host_dtype lower)
{
    if (!found) return have;
    if (!have)
        *dtype = lower;
    else if (!is_float(*dtype) && (*dtype == MERA_HOST_BOOL || is_float(lower)))
        *dtype = promote(*dtype, lower);
    return true;
}

mera_status rows_promote(host_planner *p, int32_t count, const int32_t *parameters, host_dtype *dtype)
{
    kinds k = {.found = {false}};
    for (int32_t i = 0; i < count; i++) {
        const host_arg *a = &p->step->args[parameters[i]];
        switch (a->kind) {
        case MERA_HOST_TENSOR: {
            const host_tensor *t = &p->tensors[a->integer];
            note(&k, t->rank == 0, t->dtype);
            break;
        }
        case MERA_HOST_FLAG:
            note(&k, 2, MERA_HOST_BOOL);
            break;
        case MERA_HOST_INT:
            note(&k, 2, MERA_HOST_INT64);
            break;
        case MERA_HOST_REAL:
            note(&k, 2, MERA_HOST_FLOAT32);
            break;
        default:
            break;
        }
    }
    bool have = combine(false, dtype, k.found[0], k.dtype[0]);
    have = combine(have, dtype, k.found[1], k.dtype[1]);
    have = combine(have, dtype, k.found[2], k.dtype[2]);
    return have ? MERA_OK : host_refuse(p, MERA_INVALID_ARGUMENT, "there is no operand");
}

/* ---- planning ---- */

static mera_status run_rows(const host_frame *f);

mera_status rows_begin(host_planner *p, rows **out, host_dtype dtype, const row_kernels *kernels)
{
    rows *r = NEW_PLAN(p, rows);
    if (r == NULL) return out_of_memory(p->ctx);
    r->form = form_of_dtype(dtype);
    r->kernel = r->form == MERA_HOST_INT64 ? kernels->i64 : r->form == MERA_HOST_FLOAT64 ? kernels->f64 : kernels->f32;
    if (r->kernel == NULL) return host_refuse(p, MERA_UNSUPPORTED, "it is not for %s", host_dtype_name(dtype));
    p->step->run = run_rows;
    *out = r;
    return MERA_OK;
}

static mera_status operand(host_planner *p, rows *r, int32_t parameter, host_dtype as, host_dtype form)
{
    row_operand *o = &r->operands[r->count++];
    const host_arg *a = &p->step->args[parameter];
    o->as = as;
    o->form = form;
    if (a->kind == MERA_HOST_TENSOR) {
        o->number = (int32_t)a->integer;
        o->dtype = p->tensors[o->number].dtype;
    } else {
        o->number = -1;
        o->dtype = as;
        store_number(as, o->value, a);
    }
    return MERA_OK;
}

mera_status rows_operand(host_planner *p, rows *r, int32_t parameter, host_dtype as)
{
    return operand(p, r, parameter, as, form_of_dtype(as));
}

mera_status rows_condition(host_planner *p, rows *r, int32_t parameter)
{
    return operand(p, r, parameter, MERA_HOST_BOOL, MERA_HOST_BOOL);
}

static mera_status broadcast(host_planner *p, rows *r)
{
    for (int32_t k = 0; k < r->count; k++)
        if (r->operands[k].number >= 0)
            r->rank = (int32_t)max_i64(r->rank, p->tensors[r->operands[k].number].rank + r->operands[k].behind);
    for (int32_t d = 0; d < r->rank; d++) r->shape[d] = 1;
    for (int32_t k = 0; k < r->count; k++) {
        row_operand *o = &r->operands[k];
        if (o->number < 0) continue;
        const host_tensor *t = &p->tensors[o->number];
        const int32_t lead = r->rank - t->rank - o->behind;
        dense_strides(t->rank, t->shape, o->stride + lead);
        for (int32_t d = 0; d < t->rank; d++) {
            int64_t *size = &r->shape[lead + d];
            if (t->shape[d] == 1)
                o->stride[lead + d] = 0;
            else if (*size == 1)
                *size = t->shape[d];
            else if (*size != t->shape[d])
                return host_refuse(p, MERA_INVALID_ARGUMENT, "sizes %lld and %lld cannot be broadcast together",
                                   (long long)*size, (long long)t->shape[d]);
        }
    }
    return MERA_OK;
}

/* Dimensions that all operands walk as one become one. */
static void simplify(rows *r)
{
    int32_t n = 0;
    for (int32_t d = 0; d < r->rank; d++) {
        if (r->shape[d] == 1) continue;
        bool join = n > 0;
        for (int32_t k = 0; join && k < r->count; k++)
            join = r->operands[k].stride[n - 1] == r->operands[k].stride[d] * r->shape[d];
        if (join)
            r->shape[n - 1] *= r->shape[d];
        else
            r->shape[n++] = r->shape[d];
        for (int32_t k = 0; k < r->count; k++) r->operands[k].stride[n - 1] = r->operands[k].stride[d];
    }
    r->rank = n;
}

mera_status rows_finish(host_planner *p, rows *r, host_dtype out, bool writes_bool)
{
    TRY(broadcast(p, r));
    TRY(add_result(p, out, r->rank, r->shape));
    simplify(r);
    if (writes_bool) r->form = MERA_HOST_BOOL;
    return MERA_OK;
}

mera_status rows_finish_over(host_planner *p, rows *r, host_dtype out, int32_t index, int32_t behind)
{
    if (p->tensors[r->operands[index].number].rank > 0) r->operands[index].behind = behind;
    return rows_finish(p, r, out, false);
}

/* ---- running ---- */

typedef union chunk {
    double align;
    uint8_t bytes[ROW_CHUNK * 8];
} chunk;

/* Elements at.. of an operand in the kernel's form: where they stand, or converted into `buffers`. */
static const void *fetch(const row_operand *o, const void *base, int64_t at, int64_t stride, int64_t n, chunk *buffer,
                         chunk *other)
{
    const char *from = (const char *)base + at * (int64_t)host_dtype_size(o->dtype);
    if (o->dtype == o->form && stride == 1) return from;
    if (o->dtype == o->as || o->as == o->form) {
        convert_row(n, o->form, buffer->bytes, o->dtype, from, stride);
    } else {
        convert_row(n, o->as, other->bytes, o->dtype, from, stride);
        convert_row(n, o->form, buffer->bytes, o->as, other->bytes, 1);
    }
    return buffer->bytes;
}

static bool has_zero(const void *row, host_dtype form, int64_t n)
{
    bool zero = false;
    if (form == MERA_HOST_INT64)
        for (int64_t i = 0; i < n; i++) zero |= ((const int64_t *)row)[i] == 0;
    return zero;
}

static mera_status run_row(const host_frame *f, const rows *r, const int64_t *at, int64_t n, char *to)
{
    chunk buffers[ROW_OPERANDS + 1], result;
    const host_dtype out = f->step->results[0].dtype;
    const size_t size = host_dtype_size(out);
    for (int64_t i = 0; i < n; i += ROW_CHUNK) {
        const int64_t m = min_i64(ROW_CHUNK, n - i);
        const void *in[ROW_OPERANDS];
        for (int32_t k = 0; k < r->count; k++) {
            const row_operand *o = &r->operands[k];
            const int64_t stride = r->rank > 0 ? o->stride[r->rank - 1] : 1;
            const void *base = o->number < 0 ? o->value : f->tensors[o->number];
            in[k] = fetch(o, base, at[k] + i * stride, stride, m, &buffers[k], &buffers[ROW_OPERANDS]);
        }
        if (r->divides && has_zero(in[1], r->operands[1].form, m))
            return fail(f->ctx, MERA_INVALID_ARGUMENT, "step %s: an integer is divided by 0", f->step->name);
        char *y = to + (size_t)i * size;
        r->kernel(m, r->form == out ? y : (char *)result.bytes, in, &r->constants);
        if (r->form != out) convert_row(m, out, y, r->form, result.bytes, 1);
    }
    return MERA_OK;
}

static mera_status run_rows(const host_frame *f)
{
    const rows *r = f->step->plan;
    const size_t size = host_dtype_size(f->step->results[0].dtype);
    const int64_t n = r->rank > 0 ? r->shape[r->rank - 1] : 1;
    const int64_t lines = r->rank > 0 ? product(r->rank - 1, r->shape) : 1;
    int64_t index[HOST_MAX_RANK] = {0}, at[ROW_OPERANDS] = {0};
    char *to = f->results[0];
    if (n == 0) return MERA_OK;
    for (int64_t line = 0; line < lines; line++, to += (size_t)n * size) {
        TRY(run_row(f, r, at, n, to));
        for (int32_t d = r->rank - 2; d >= 0; d--) {
            const bool more = ++index[d] < r->shape[d];
            for (int32_t k = 0; k < r->count; k++)
                at[k] += more ? r->operands[k].stride[d] : -(r->shape[d] - 1) * r->operands[k].stride[d];
            if (more) break;
            index[d] = 0;
        }
    }
    return MERA_OK;
}
