/* softmax.c: softmax and its logarithm over one dimension. */
#include "floats.h"
#include "ops.h"

enum { BLOCK = 64 };

typedef struct softmax {
    host_dtype dtype; /* of x; the result's may be another */
    int64_t outer, size, inner;
    bool in_log;
} softmax;

#define T float
#define NAME(x) x##_f32
#include "softmax_t.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_f64
#include "softmax_t.h"
#undef T
#undef NAME

static mera_status run_softmax(const host_frame *f)
{
    const softmax *s = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const int64_t n = host_elements(y);
    const void *x = f->tensors[f->step->reads[0]];
    const host_dtype form = y->dtype == MERA_HOST_FLOAT64 ? MERA_HOST_FLOAT64 : MERA_HOST_FLOAT32;
    if (n == 0) return MERA_OK;
    if (s->dtype != form) { /* scratch: x, and if need be y, in the form that is computed in */
        convert_row(n, form, f->scratch, s->dtype, x, 1);
        x = f->scratch;
    }
    const bool direct = y->dtype == form;
    void *to = direct ? f->results[0] : (char *)f->scratch + (size_t)n * host_dtype_size(form);
    if (form == MERA_HOST_FLOAT64)
        softmax_f64(s, x, to);
    else
        softmax_f32(s, x, to);
    if (!direct) convert_row(n, y->dtype, f->results[0], form, to, 1);
    return MERA_OK;
}

static mera_status plan(host_planner *p, host_dtype dtype, bool in_log)
{
    const host_tensor *x;
    int32_t dim = 0;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_dim(p, 1, x->rank, &dim));
    if (!is_float(dtype)) return host_refuse(p, MERA_UNSUPPORTED, "it is for real dtypes only");
    softmax *s = NEW_PLAN(p, softmax);
    if (s == NULL) return out_of_memory(p->ctx);
    *s = (softmax){.dtype = x->dtype,
                   .outer = product(dim, x->shape),
                   .size = x->rank > 0 ? x->shape[dim] : 1,
                   .inner = x->rank > 0 ? product(x->rank - dim - 1, x->shape + dim + 1) : 1,
                   .in_log = in_log};
    p->step->run = run_softmax;
    if (x->dtype != dtype || is_half(dtype)) p->step->scratch_bytes = (size_t)host_elements(x) * 16;
    return add_result(p, dtype, x->rank, x->shape);
}

/* (self, dim, dtype); variant: 1 = in logarithms. */
mera_status plan_softmax(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return plan(p, arg_dtype(p, 2, x->dtype), p->variant == 1);
}

/* _softmax(self, dim, half_to_float) */
mera_status plan_softmax_core(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    if (arg_flag(p, 2)) return host_refuse(p, MERA_UNSUPPORTED, "half_to_float is not for the CPU");
    return plan(p, x->dtype, p->variant == 1);
}
