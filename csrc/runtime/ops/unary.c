/* unary.c: functions of one element. */
#include "unary.h"

#include "floats.h"
#include "rows.h"

/* The same words for float and double; resolved by the type of the argument. */
#define ROUND(a) (sizeof(a) == 4 ? round_f32((float)(a)) : round_f64((double)(a)))
#define ABSOLUTE(a) (sizeof(a) == 4 ? fabsf((float)(a)) : fabs((double)(a)))
#define TRUNC(a) (sizeof(a) == 4 ? truncf((float)(a)) : trunc((double)(a)))
#define FLOOR(a) (sizeof(a) == 4 ? floorf((float)(a)) : floor((double)(a)))
#define CEIL(a) (sizeof(a) == 4 ? ceilf((float)(a)) : ceil((double)(a)))
#define hinge(a) ((a) + 3 < 0 ? 0 : (a) + 3 > 6 ? 6 : (a) + 3)

static inline double logit(double a, double eps)
{
    const double x = a < eps ? eps : a > 1 - eps ? 1 - eps : a;
    return log(x / (1 - x));
}

#define UNARY_REAL(NAME, F32, F64)                                                                                          \
    ROW1(NAME, f32, float, float, F32)                                                                                      \
    ROW1(NAME, f64, double, double, F64)
UNARY_REALS
#undef UNARY_REAL

#define T float
#define UNARY_ACTIVATION(NAME, EXPR) ROW1(NAME, f32, float, float, EXPR)
#define UNARY_ANY(NAME, REAL, INTEGER) ROW1(NAME, f32, float, float, REAL)
UNARY_ACTIVATIONS
UNARY_ANYS
#undef T
#undef UNARY_ACTIVATION
#undef UNARY_ANY
#define T double
#define UNARY_ACTIVATION(NAME, EXPR) ROW1(NAME, f64, double, double, EXPR)
#define UNARY_ANY(NAME, REAL, INTEGER)                                                                                      \
    ROW1(NAME, f64, double, double, REAL)                                                                                   \
    ROW1(NAME, i64, int64_t, int64_t, INTEGER)
UNARY_ACTIVATIONS
UNARY_ANYS
#undef T
#undef UNARY_ACTIVATION
#undef UNARY_ANY

#define UNARY_TEST(NAME, REAL, INTEGER)                                                                                     \
    ROW1(NAME, f32, float, uint8_t, (REAL) != 0)                                                                            \
    ROW1(NAME, f64, double, uint8_t, (REAL) != 0)                                                                           \
    ROW_HEAD(NAME, i64)                                                                                                     \
    {                                                                                                                       \
        const int64_t *x = in[0];                                                                                           \
        (void)k;                                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                                   \
            const int64_t a = x[i];                                                                                         \
            (void)a;                                                                                                        \
            ((uint8_t *)out)[i] = (INTEGER);                                                                                \
        }                                                                                                                   \
    }
UNARY_TESTS
#undef UNARY_TEST

static const row_kernels kernels[] = {
#define UNARY_REAL(NAME, F32, F64) {NAME##_f32, NAME##_f64, NULL},
    UNARY_REALS
#undef UNARY_REAL
#define UNARY_ACTIVATION(NAME, EXPR) {NAME##_f32, NAME##_f64, NULL},
        UNARY_ACTIVATIONS
#undef UNARY_ACTIVATION
#define UNARY_ANY(NAME, REAL, INTEGER) {NAME##_f32, NAME##_f64, NAME##_i64},
            UNARY_ANYS
#undef UNARY_ANY
#define UNARY_TEST(NAME, REAL, INTEGER) {NAME##_f32, NAME##_f64, NAME##_i64},
                UNARY_TESTS
#undef UNARY_TEST
};
_Static_assert(sizeof kernels / sizeof *kernels == UNARY_COUNT, "one row a variant");

/* as: what x is promoted to. The numbers behind x become constants. */
static mera_status unary(host_planner *p, int32_t variant, host_dtype as, host_dtype out)
{
    rows *r = NULL;
    TRY(rows_begin(p, &r, as, &kernels[variant]));
    TRY(rows_operand(p, r, 0, as));
    for (int32_t i = 1; i < p->step->arg_count && i <= 4; i++) {
        const host_arg *a = &p->step->args[i];
        if (a->kind != MERA_HOST_INT && a->kind != MERA_HOST_REAL && a->kind != MERA_HOST_FLAG) continue;
        r->constants.real[i - 1] = arg_real(p, i);
        convert_row(1, MERA_HOST_INT64, &r->constants.integer[i - 1], MERA_HOST_FLOAT64, &r->constants.real[i - 1], 1);
        if (a->kind != MERA_HOST_REAL) r->constants.integer[i - 1] = a->integer;
    }
    if (variant == UNARY_ROUND_DECIMALS) r->constants.real[1] = pow(10.0, fabs(r->constants.real[0]));
    return rows_finish(p, r, out, out == MERA_HOST_BOOL && variant >= UNARY_LOGICAL_NOT);
}

static mera_status dtype_of(host_planner *p, host_dtype *dtype)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    *dtype = x->dtype;
    return MERA_OK;
}

/* Real functions: of integers in float32. */
mera_status plan_real(host_planner *p)
{
    host_dtype dtype;
    TRY(dtype_of(p, &dtype));
    return unary(p, p->variant, real_dtype(dtype), real_dtype(dtype));
}

/* For real dtypes alone. */
mera_status plan_activation(host_planner *p)
{
    host_dtype dtype;
    TRY(dtype_of(p, &dtype));
    return unary(p, p->variant, dtype, dtype);
}

/* For every dtype but bool. */
mera_status plan_unary(host_planner *p)
{
    host_dtype dtype;
    TRY(dtype_of(p, &dtype));
    if (dtype == MERA_HOST_BOOL) return host_refuse(p, MERA_UNSUPPORTED, "it is not for bool");
    return unary(p, p->variant, dtype, dtype);
}

mera_status plan_test(host_planner *p)
{
    host_dtype dtype;
    TRY(dtype_of(p, &dtype));
    return unary(p, p->variant, dtype, MERA_HOST_BOOL);
}

mera_status plan_gelu(host_planner *p)
{
    host_dtype dtype;
    TRY(dtype_of(p, &dtype));
    const bool none = strcmp(arg_text(p, 1), "none") == 0;
    if (!none && strcmp(arg_text(p, 1), "tanh") != 0)
        return host_refuse(p, MERA_UNSUPPORTED, "approximate must be none or tanh, not %s", arg_text(p, 1));
    return unary(p, none ? UNARY_GELU : UNARY_GELU_TANH, dtype, dtype);
}

mera_status plan_logit(host_planner *p)
{
    host_dtype dtype;
    TRY(dtype_of(p, &dtype));
    return unary(p, arg_given(p, 1) ? UNARY_LOGIT_EPS : UNARY_LOGIT, real_dtype(dtype), real_dtype(dtype));
}

/* ---- frexp: two results ---- */

static mera_status run_frexp(const host_frame *f)
{
    const host_tensor *y = &f->step->results[0];
    const void *x = f->tensors[f->step->reads[0]];
    int32_t *exponent = f->results[1];
    for (int64_t i = 0; i < host_elements(y); i++) {
        int e = 0;
        if (y->dtype == MERA_HOST_FLOAT32)
            ((float *)f->results[0])[i] = frexpf(((const float *)x)[i], &e);
        else
            ((double *)f->results[0])[i] = frexp(((const double *)x)[i], &e);
        exponent[i] = e;
    }
    return MERA_OK;
}

mera_status plan_frexp(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_float(p, x, "self"));
    p->step->many = true;
    p->step->run = run_frexp;
    TRY(add_result(p, x->dtype, x->rank, x->shape));
    return add_result(p, MERA_HOST_INT32, x->rank, x->shape);
}
