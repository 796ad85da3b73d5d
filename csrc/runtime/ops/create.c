/* create.c: tensors from numbers: they are made when the step is planned, and copied by each run. */
#include <math.h>

#include "ops.h"

typedef struct made {
    _Alignas(8) uint8_t value[8];
    bool range;
    host_arg start, step; /* of a range */
} made;

static mera_status run_fill(const host_frame *f)
{
    const made *m = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    convert_row(host_elements(y), y->dtype, f->results[0], y->dtype, m->value, 0);
    return MERA_OK;
}

static mera_status filled(host_planner *p, host_dtype dtype, int32_t rank, const int64_t *shape, const host_arg *value)
{
    made *m = NEW_PLAN(p, made);
    if (m == NULL) return out_of_memory(p->ctx);
    store_number(dtype, m->value, value);
    p->step->run = run_fill;
    return add_result(p, dtype, rank, shape);
}

static host_dtype dtype_of_number(const host_arg *a)
{
    return a->kind == MERA_HOST_REAL ? MERA_HOST_FLOAT32 : a->kind == MERA_HOST_INT ? MERA_HOST_INT64 : MERA_HOST_BOOL;
}

static mera_status shape_of(host_planner *p, int32_t index, int32_t *rank, int64_t shape[HOST_MAX_RANK])
{
    *rank = arg_count(p, index);
    if (*rank > HOST_MAX_RANK) return host_refuse(p, MERA_UNSUPPORTED, "a shape has at most 8 sizes");
    for (int32_t d = 0; d < *rank; d++) shape[d] = arg_item(p, index, d);
    return MERA_OK;
}

/* full(size, value, *, dtype) */
mera_status plan_full(host_planner *p)
{
    int32_t rank;
    int64_t shape[HOST_MAX_RANK];
    TRY(shape_of(p, 0, &rank, shape));
    return filled(p, arg_dtype(p, 2, dtype_of_number(&p->step->args[1])), rank, shape, &p->step->args[1]);
}

/* zeros(size, *, dtype) and ones; variant: the value. */
mera_status plan_constant(host_planner *p)
{
    const host_arg value = {.kind = MERA_HOST_INT, .integer = p->variant};
    int32_t rank;
    int64_t shape[HOST_MAX_RANK];
    TRY(shape_of(p, 0, &rank, shape));
    return filled(p, arg_dtype(p, 1, MERA_HOST_FLOAT32), rank, shape, &value);
}

/* full_like(self, value, *, dtype) */
mera_status plan_full_like(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return filled(p, arg_dtype(p, 2, x->dtype), x->rank, x->shape, &p->step->args[1]);
}

/* zeros_like(self, *, dtype) and ones_like; variant: the value. */
mera_status plan_constant_like(host_planner *p)
{
    const host_arg value = {.kind = MERA_HOST_INT, .integer = p->variant};
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return filled(p, arg_dtype(p, 1, x->dtype), x->rank, x->shape, &value);
}

/* new_full(self, size, value, *, dtype) */
mera_status plan_new_full(host_planner *p)
{
    const host_tensor *x;
    int32_t rank;
    int64_t shape[HOST_MAX_RANK];
    TRY(arg_tensor(p, 0, &x));
    TRY(shape_of(p, 1, &rank, shape));
    return filled(p, arg_dtype(p, 3, x->dtype), rank, shape, &p->step->args[2]);
}

/* new_zeros(self, size, *, dtype) and new_ones; variant: the value. */
mera_status plan_new_constant(host_planner *p)
{
    const host_arg value = {.kind = MERA_HOST_INT, .integer = p->variant};
    const host_tensor *x;
    int32_t rank;
    int64_t shape[HOST_MAX_RANK];
    TRY(arg_tensor(p, 0, &x));
    TRY(shape_of(p, 1, &rank, shape));
    return filled(p, arg_dtype(p, 2, x->dtype), rank, shape, &value);
}

/* fill(self, value): self's dtype. */
mera_status plan_fill(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return filled(p, x->dtype, x->rank, x->shape, &p->step->args[1]);
}

mera_status plan_scalar_tensor(host_planner *p)
{
    return filled(p, arg_dtype(p, 1, MERA_HOST_FLOAT32), 0, NULL, &p->step->args[0]);
}

/* ---- arange ---- */

static mera_status run_arange(const host_frame *f)
{
    const made *m = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    char *to = f->results[0];
    const size_t size = host_dtype_size(y->dtype);
    for (int64_t i = 0; i < y->shape[0]; i++) {
        if (is_float(y->dtype)) {
            const double start = m->start.real, step = m->step.real;
            double value = start + (double)i * step;
            convert_row(1, y->dtype, to + (size_t)i * size, MERA_HOST_FLOAT64, &value, 1);
        } else {
            const int64_t value = (int64_t)((uint64_t)m->start.integer + (uint64_t)i * (uint64_t)m->step.integer);
            convert_row(1, y->dtype, to + (size_t)i * size, MERA_HOST_INT64, &value, 1);
        }
    }
    return MERA_OK;
}

/* A number as an integer and as a real. */
static host_arg in_both(const host_arg *a)
{
    host_arg b = {.kind = a->kind, .integer = a->integer, .real = (double)a->integer};
    if (a->kind == MERA_HOST_REAL) {
        b.real = a->real;
        convert_row(1, MERA_HOST_INT64, &b.integer, MERA_HOST_FLOAT64, &a->real, 1);
    }
    return b;
}

/* variant: how many of start, end, step the operator has: 1 = end, 2 = start and end, 3 = all. dtype follows. */
mera_status plan_arange(host_planner *p)
{
    const host_arg zero = {.kind = MERA_HOST_INT}, one = {.kind = MERA_HOST_INT, .integer = 1};
    const host_arg start = in_both(p->variant > 1 ? &p->step->args[0] : &zero);
    const host_arg end = in_both(&p->step->args[p->variant > 1]);
    const host_arg step = in_both(p->variant > 2 ? &p->step->args[2] : &one);
    const bool real = start.kind == MERA_HOST_REAL || end.kind == MERA_HOST_REAL || step.kind == MERA_HOST_REAL;
    const host_dtype dtype = arg_dtype(p, p->variant, real ? MERA_HOST_FLOAT32 : MERA_HOST_INT64);
    if (dtype == MERA_HOST_BOOL) return host_refuse(p, MERA_UNSUPPORTED, "it is not for bool");
    const bool whole = dtype == MERA_HOST_INT64; /* PyTorch counts whole numbers only for int64 */
    const double from = whole ? (double)start.integer : start.real, to = whole ? (double)end.integer : end.real;
    const double by = whole ? (double)step.integer : step.real, count = ceil((to - from) / by);
    if (!(by != 0) || !(count >= 0) || count > 0x1p40)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "start, end and step do not make a range of at most 2^40 numbers");
    made *m = NEW_PLAN(p, made);
    if (m == NULL) return out_of_memory(p->ctx);
    m->start = start;
    m->step = step;
    p->step->run = run_arange;
    return add_result(p, dtype, 1, (const int64_t[]){(int64_t)count});
}
