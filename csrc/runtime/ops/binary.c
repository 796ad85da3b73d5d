/* binary.c: functions of two elements. */
#include "binary.h"

#include <math.h>

#include "rows.h"

#define FMA(x, y, z) (sizeof(T) == 4 ? fmaf((float)(x), (float)(y), (float)(z)) : fma(x, y, z))
#define TRUNC(a) (sizeof(a) == 4 ? truncf((float)(a)) : trunc((double)(a)))
#define FMOD(a, b) (sizeof(a) == 4 ? fmodf((float)(a), (float)(b)) : fmod((double)(a), (double)(b)))
#define REMAINDER(a, b) (sizeof(a) == 4 ? remainder_f32((float)(a), (float)(b)) : remainder_f64(a, b))
#define FLOOR_QUOTIENT(a, b) (sizeof(a) == 4 ? floor_quotient_f32((float)(a), (float)(b)) : floor_quotient_f64(a, b))

/* Python's divmod on reals. */
#define QUOTIENTS(NAME, T, F)                                                                                               \
    static inline T remainder_##NAME(T a, T b)                                                                              \
    {                                                                                                                       \
        const T mod = fmod##F(a, b);                                                                                        \
        return mod != 0 && (b < 0) != (mod < 0) ? mod + b : mod;                                                            \
    }                                                                                                                       \
    static inline T floor_quotient_##NAME(T a, T b)                                                                         \
    {                                                                                                                       \
        if (b == 0) return a / b;                                                                                           \
        const T mod = fmod##F(a, b);                                                                                        \
        T quotient = (a - mod) / b;                                                                                         \
        if (mod != 0 && (b < 0) != (mod < 0)) quotient -= 1;                                                                \
        if (quotient == 0) return copysign##F(0, a / b);                                                                    \
        const T whole = floor##F(quotient);                                                                                 \
        return quotient - whole > (T)0.5 ? whole + 1 : whole;                                                               \
    }
QUOTIENTS(f32, float, f)
QUOTIENTS(f64, double, )

/* Divisors are not 0: see rows.divides. */
static inline int64_t truncated_quotient(int64_t a, int64_t b) { return b == -1 ? wrap_sub(0, a) : a / b; }

static inline int64_t floored_quotient(int64_t a, int64_t b)
{
    if (b == -1) return wrap_sub(0, a);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static inline int64_t floored_remainder(int64_t a, int64_t b)
{
    if (b == -1) return 0;
    const int64_t mod = a % b;
    return mod != 0 && (mod < 0) != (b < 0) ? mod + b : mod;
}

static inline int64_t integer_power(int64_t base, int64_t exponent)
{
    if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent % 2 != 0 ? -1 : 1) : 0;
    int64_t result = 1;
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2 != 0) result = wrap_mul(result, base);
        base = wrap_mul(base, base);
    }
    return result;
}

#define T float
#define BINARY(NAME, REAL, INTEGER) ROW2(NAME, f32, float, float, REAL)
#define BINARY_REAL(NAME, EXPR) ROW2(NAME, f32, float, float, EXPR)
BINARY_ALL
BINARY_REALS
#undef T
#undef BINARY
#undef BINARY_REAL
#define T double
#define BINARY(NAME, REAL, INTEGER)                                                                                         \
    ROW2(NAME, f64, double, double, REAL)                                                                                   \
    ROW_HEAD(NAME, i64)                                                                                                     \
    {                                                                                                                       \
        const int64_t *x0 = in[0], *x1 = in[1];                                                                             \
        (void)k;                                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                                   \
            const int64_t a = x0[i], b = x1[i];                                                                             \
            (void)a;                                                                                                        \
            (void)b;                                                                                                        \
            ((int64_t *)out)[i] = (INTEGER);                                                                                \
        }                                                                                                                   \
    }
#define BINARY_REAL(NAME, EXPR) ROW2(NAME, f64, double, double, EXPR)
#define BINARY_INTEGER(NAME, EXPR) ROW2(NAME, i64, int64_t, int64_t, EXPR)
#define BINARY_TEST(NAME, EXPR)                                                                                             \
    ROW2(NAME, f32, float, uint8_t, EXPR)                                                                                   \
    ROW2(NAME, f64, double, uint8_t, EXPR)                                                                                  \
    ROW2(NAME, i64, int64_t, uint8_t, EXPR)
BINARY_ALL
BINARY_REALS
BINARY_INTEGERS
BINARY_TESTS
#undef T
#undef BINARY
#undef BINARY_REAL
#undef BINARY_INTEGER
#undef BINARY_TEST

static const row_kernels kernels[] = {
#define BINARY(NAME, REAL, INTEGER) {NAME##_f32, NAME##_f64, NAME##_i64},
    BINARY_ALL
#undef BINARY
#define BINARY_REAL(NAME, EXPR) {NAME##_f32, NAME##_f64, NULL},
        BINARY_REALS
#undef BINARY_REAL
#define BINARY_INTEGER(NAME, EXPR) {NULL, NULL, NAME##_i64},
            BINARY_INTEGERS
#undef BINARY_INTEGER
#define BINARY_TEST(NAME, EXPR) {NAME##_f32, NAME##_f64, NAME##_i64},
                BINARY_TESTS
#undef BINARY_TEST
};
_Static_assert(sizeof kernels / sizeof *kernels == BINARY_COUNT, "one row a variant");

static const int32_t both[] = {0, 1};

static bool is_test(int32_t variant) { return variant >= BINARY_EQ; }

/* r's operands are parameters a and b; a swaps with b for rsub. */
static mera_status begin(host_planner *p, int32_t variant, int32_t a, int32_t b, host_dtype as, rows **out)
{
    rows *r = NULL;
    TRY(rows_begin(p, &r, as, &kernels[variant]));
    TRY(rows_operand(p, r, a, as));
    TRY(rows_operand(p, r, b, as));
    *out = r;
    return MERA_OK;
}

mera_status plan_binary(host_planner *p)
{
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    TRY(rows_promote(p, 2, both, &as));
    TRY(begin(p, p->variant, 0, 1, as, &r));
    const bool divides = p->variant == BINARY_DIV_TRUNC || p->variant == BINARY_DIV_FLOOR ||
                         p->variant == BINARY_REMAINDER || p->variant == BINARY_FMOD;
    r->divides = divides && !is_float(as);
    return rows_finish(p, r, is_test(p->variant) ? MERA_HOST_BOOL : as, is_test(p->variant));
}

/* Of reals: integers become float32. */
mera_status plan_real_binary(host_planner *p)
{
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    TRY(rows_promote(p, 2, both, &as));
    as = real_dtype(as);
    TRY(begin(p, p->variant, 0, 1, as, &r));
    return rows_finish(p, r, as, false);
}

/* add, sub (variant: BINARY_ADD, BINARY_SUB), and rsub (BINARY_COUNT): a + alpha b. */
mera_status plan_add(host_planner *p)
{
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    const host_arg *alpha = &p->step->args[2];
    const bool reversed = p->variant == BINARY_COUNT, minus = p->variant != BINARY_ADD;
    const double scale = arg_real(p, 2);
    TRY(rows_promote(p, 2, both, &as));
    if (as == MERA_HOST_BOOL && minus) return host_refuse(p, MERA_UNSUPPORTED, "bool cannot be subtracted");
    if (alpha->kind == MERA_HOST_REAL && !is_float(as))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "alpha must be an integer, as the operands are");
    const int32_t variant = scale != 1 ? BINARY_ADD_SCALED : minus ? BINARY_SUB : BINARY_ADD;
    TRY(begin(p, variant, reversed, !reversed, as, &r));
    r->constants.real[0] = minus ? -scale : scale;
    r->constants.integer[0] = minus ? wrap_sub(0, alpha->integer) : alpha->integer;
    return rows_finish(p, r, as, false);
}

/* div with rounding_mode. */
mera_status plan_div_mode(host_planner *p)
{
    const char *mode = arg_text(p, 2);
    p->variant = BINARY_DIV;
    if (!arg_given(p, 2)) return plan_real_binary(p);
    p->variant = BINARY_DIV_FLOOR;
    if (strcmp(mode, "trunc") == 0)
        p->variant = BINARY_DIV_TRUNC;
    else if (strcmp(mode, "floor") != 0)
        return host_refuse(p, MERA_UNSUPPORTED, "rounding_mode must be trunc or floor, not %s", mode);
    return plan_binary(p);
}

mera_status plan_shift(host_planner *p)
{
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    TRY(rows_promote(p, 2, both, &as));
    if (as == MERA_HOST_BOOL) return host_refuse(p, MERA_UNSUPPORTED, "it is not for bool");
    TRY(begin(p, p->variant, 0, 1, as, &r));
    const int64_t bits = 8 * (int64_t)host_dtype_size(as);
    r->constants.integer[0] = bits;
    r->constants.integer[1] = as == MERA_HOST_UINT8 ? bits : bits - 1;
    return rows_finish(p, r, as, false);
}

/* ---- powers ---- */

#define POWER(NAME, REAL)                                                                                                   \
    ROW1(NAME, f32, float, float, REAL)                                                                                     \
    ROW1(NAME, f64, double, double, REAL)
#define SQUARE_ROOT(a) (sizeof(a) == 4 ? sqrtf((float)(a)) : sqrt((double)(a)))
POWER(square, a *a)
POWER(cube, a *a *a)
POWER(root, SQUARE_ROOT(a))
POWER(inverse_root, sizeof(a) == 4 ? 1.0f / sqrtf((float)a) : 1.0 / sqrt((double)a))
POWER(inverse, 1 / a)
POWER(inverse_square, 1 / (a * a))

/* Exponents that PyTorch computes with products and roots. */
static const struct {
    double exponent;
    row_kernels kernels;
} powers[] = {
    {2, {square_f32, square_f64, NULL}},    {3, {cube_f32, cube_f64, NULL}},
    {0.5, {root_f32, root_f64, NULL}},      {-0.5, {inverse_root_f32, inverse_root_f64, NULL}},
    {-1, {inverse_f32, inverse_f64, NULL}}, {-2, {inverse_square_f32, inverse_square_f64, NULL}},
};

/* variant: 0 = a tensor's, 1 = of one exponent, 2 = of one base. */
mera_status plan_pow(host_planner *p)
{
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    const host_arg *exponent = &p->step->args[1];
    TRY(rows_promote(p, 2, both, &as));
    if (p->variant == 1 && !is_float(as) && exponent->integer < 0)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "an integer has no power of %lld", (long long)exponent->integer);
    for (size_t i = 0; p->variant == 1 && is_float(as) && i < sizeof powers / sizeof *powers; i++) {
        if (arg_real(p, 1) != powers[i].exponent) continue;
        TRY(rows_begin(p, &r, as, &powers[i].kernels));
        TRY(rows_operand(p, r, 0, as));
        return rows_finish(p, r, as, false);
    }
    TRY(begin(p, BINARY_POW, 0, 1, as, &r));
    return rows_finish(p, r, as, false);
}

/* ---- prelu: one slope, or one a channel ---- */

mera_status plan_prelu(host_planner *p)
{
    const host_tensor *x, *slope;
    rows *r = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 1, &slope));
    if (!is_float(x->dtype) || slope->dtype != x->dtype)
        return host_refuse(p, MERA_UNSUPPORTED, "self and weight must have one real dtype");
    TRY(begin(p, BINARY_PRELU, 0, 1, x->dtype, &r));
    return rows_finish(p, r, x->dtype, false);
}

/* aten.prelu: the weight has one element a channel of dimension 1. */
mera_status plan_prelu_channels(host_planner *p)
{
    const host_tensor *x, *slope;
    rows *r = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 1, &slope));
    TRY(need_rank(p, slope, 0, 1, "weight"));
    if (!is_float(x->dtype) || slope->dtype != x->dtype)
        return host_refuse(p, MERA_UNSUPPORTED, "self and weight must have one real dtype");
    const int64_t channels = x->rank > 1 ? x->shape[1] : 1, n = host_elements(slope);
    if (n != 1 && n != channels)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld slopes do not suit %lld channels", (long long)n,
                           (long long)channels);
    TRY(begin(p, BINARY_PRELU, 0, 1, x->dtype, &r));
    return rows_finish_over(p, r, x->dtype, 1, x->rank > 2 ? x->rank - 2 : 0);
}

/* ---- three operands ---- */

ROW_HEAD(where, f32)
{
    const uint8_t *c = in[0];
    const float *a = in[1], *b = in[2];
    (void)k;
    for (int64_t i = 0; i < n; i++) ((float *)out)[i] = c[i] ? a[i] : b[i];
}
ROW_HEAD(where, f64)
{
    const uint8_t *c = in[0];
    const double *a = in[1], *b = in[2];
    (void)k;
    for (int64_t i = 0; i < n; i++) ((double *)out)[i] = c[i] ? a[i] : b[i];
}
ROW_HEAD(where, i64)
{
    const uint8_t *c = in[0];
    const int64_t *a = in[1], *b = in[2];
    (void)k;
    for (int64_t i = 0; i < n; i++) ((int64_t *)out)[i] = c[i] ? a[i] : b[i];
}
static const row_kernels where_kernels = {where_f32, where_f64, where_i64};

static mera_status need_mask(host_planner *p, int32_t parameter)
{
    const host_tensor *t;
    TRY(arg_tensor(p, parameter, &t));
    if (t->dtype == MERA_HOST_BOOL || t->dtype == MERA_HOST_UINT8) return MERA_OK;
    return host_refuse(p, MERA_UNSUPPORTED, "a condition must be bool, not %s", host_dtype_name(t->dtype));
}

mera_status plan_where(host_planner *p)
{
    static const int32_t values[] = {1, 2};
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    TRY(need_mask(p, 0));
    TRY(rows_promote(p, 2, values, &as));
    TRY(rows_begin(p, &r, as, &where_kernels));
    TRY(rows_condition(p, r, 0));
    TRY(rows_operand(p, r, 1, as));
    TRY(rows_operand(p, r, 2, as));
    return rows_finish(p, r, as, false);
}

/* masked_fill(self, mask, value): self's dtype. */
mera_status plan_masked_fill(host_planner *p)
{
    const host_tensor *x;
    rows *r = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_mask(p, 1));
    TRY(rows_begin(p, &r, x->dtype, &where_kernels));
    TRY(rows_condition(p, r, 1));
    TRY(rows_operand(p, r, 2, x->dtype));
    TRY(rows_operand(p, r, 0, x->dtype));
    return rows_finish(p, r, x->dtype, false);
}

#define CLAMP_LOW(a, b) ((a) != (a) ? (a) : (b) != (b) || (a) < (b) ? (b) : (a))
#define CLAMP_HIGH(a, b) ((a) != (a) ? (a) : (b) != (b) || (a) > (b) ? (b) : (a))
#define CLAMPS(FORM, T)                                                                                                     \
    ROW2(clamp_low, FORM, T, T, CLAMP_LOW(a, b))                                                                            \
    ROW2(clamp_high, FORM, T, T, CLAMP_HIGH(a, b))                                                                          \
    ROW_HEAD(clamp_both, FORM)                                                                                              \
    {                                                                                                                       \
        const T *a = in[0], *low = in[1], *high = in[2];                                                                    \
        (void)k;                                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                                   \
            const T raised = CLAMP_LOW(a[i], low[i]);                                                                       \
            ((T *)out)[i] = CLAMP_HIGH(raised, high[i]);                                                                    \
        }                                                                                                                   \
    }
CLAMPS(f32, float)
CLAMPS(f64, double)
CLAMPS(i64, int64_t)

/* clamp(self, min, max): numbers or tensors, either may be None. variant: 1 = clamp_min, 2 = clamp_max. */
mera_status plan_clamp(host_planner *p)
{
    static const row_kernels low = {clamp_low_f32, clamp_low_f64, clamp_low_i64};
    static const row_kernels high = {clamp_high_f32, clamp_high_f64, clamp_high_i64};
    static const row_kernels two = {clamp_both_f32, clamp_both_f64, clamp_both_i64};
    int32_t parameters[3] = {0, 0, 0}, count = 1;
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    for (int32_t i = 1; i < p->step->arg_count; i++)
        if (arg_given(p, i)) parameters[count++] = i;
    if (count == 1) return host_refuse(p, MERA_INVALID_ARGUMENT, "min and max are both None");
    const bool has_low = p->variant == 1 || (p->variant == 0 && arg_given(p, 1));
    TRY(rows_promote(p, count, parameters, &as));
    if (as == MERA_HOST_BOOL) return host_refuse(p, MERA_UNSUPPORTED, "it is not for bool");
    TRY(rows_begin(p, &r, as, count == 3 ? &two : has_low ? &low : &high));
    for (int32_t i = 0; i < count; i++) TRY(rows_operand(p, r, parameters[i], as));
    return rows_finish(p, r, as, false);
}

#define THREES(FORM, T)                                                                                                     \
    ROW3(addcmul, FORM, T, T, a + (T)k->real[0] * b * c)                                                                    \
    ROW3(addcdiv, FORM, T, T, a + (T)k->real[0] * b / c)                                                                    \
    ROW3(lerp, FORM, T, T, (c < 0 ? -c : c) < (T)0.5 ? a + c * (b - a) : b - (b - a) * (1 - c))
THREES(f32, float)
THREES(f64, double)

/* variant: 0 = addcmul, 1 = addcdiv, 2 = lerp with a tensor or a number. */
mera_status plan_three(host_planner *p)
{
    static const row_kernels kernels_of[] = {
        {addcmul_f32, addcmul_f64, NULL}, {addcdiv_f32, addcdiv_f64, NULL}, {lerp_f32, lerp_f64, NULL}};
    static const int32_t all[] = {0, 1, 2};
    host_dtype as = MERA_HOST_BOOL;
    rows *r = NULL;
    TRY(rows_promote(p, 3, all, &as));
    TRY(rows_begin(p, &r, as, &kernels_of[p->variant]));
    for (int32_t i = 0; i < 3; i++) TRY(rows_operand(p, r, i, as));
    r->constants.real[0] = p->variant < 2 ? arg_real(p, 3) : 0;
    return rows_finish(p, r, as, false);
}

/* ---- bitwise_not: of bool it is logical ---- */

ROW1(bitwise_not, i64, int64_t, int64_t, ~a)
ROW1(logical_not, i64, int64_t, int64_t, a == 0)

mera_status plan_bitwise_not(host_planner *p)
{
    static const row_kernels bits = {NULL, NULL, bitwise_not_i64}, truth = {NULL, NULL, logical_not_i64};
    const host_tensor *x;
    rows *r = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(rows_begin(p, &r, x->dtype, x->dtype == MERA_HOST_BOOL ? &truth : &bits));
    TRY(rows_operand(p, r, 0, x->dtype));
    return rows_finish(p, r, x->dtype, false);
}
