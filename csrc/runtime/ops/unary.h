/* unary.h: the functions of one element; variants in host_ops.def. */
#ifndef MERA_RUNTIME_UNARY_H
#define MERA_RUNTIME_UNARY_H

/* Real functions: integers become float32 first. UNARY_REAL(name, in float, in double) */
#define UNARY_REALS                                                                                                         \
    UNARY_REAL(EXP, exp_f32(a), exp(a))                                                                                     \
    UNARY_REAL(EXP2, exp2((double)a), exp2(a))                                                                              \
    UNARY_REAL(EXPM1, expm1((double)a), expm1(a))                                                                           \
    UNARY_REAL(LOG, log((double)a), log(a))                                                                                 \
    UNARY_REAL(LOG2, log2((double)a), log2(a))                                                                              \
    UNARY_REAL(LOG10, log10((double)a), log10(a))                                                                           \
    UNARY_REAL(LOG1P, log1p((double)a), log1p(a))                                                                           \
    UNARY_REAL(SQRT, sqrtf(a), sqrt(a))                                                                                     \
    UNARY_REAL(RSQRT, 1.0f / sqrtf(a), 1.0 / sqrt(a))                                                                       \
    UNARY_REAL(RECIPROCAL, 1.0f / a, 1.0 / a)                                                                               \
    UNARY_REAL(SIN, sin((double)a), sin(a))                                                                                 \
    UNARY_REAL(COS, cos((double)a), cos(a))                                                                                 \
    UNARY_REAL(TAN, tan((double)a), tan(a))                                                                                 \
    UNARY_REAL(ASIN, asin((double)a), asin(a))                                                                              \
    UNARY_REAL(ACOS, acos((double)a), acos(a))                                                                              \
    UNARY_REAL(ATAN, atan((double)a), atan(a))                                                                              \
    UNARY_REAL(SINH, sinh((double)a), sinh(a))                                                                              \
    UNARY_REAL(COSH, cosh((double)a), cosh(a))                                                                              \
    UNARY_REAL(TANH, tanh((double)a), tanh(a))                                                                              \
    UNARY_REAL(ASINH, asinh((double)a), asinh(a))                                                                           \
    UNARY_REAL(ACOSH, acosh((double)a), acosh(a))                                                                           \
    UNARY_REAL(ATANH, atanh((double)a), atanh(a))                                                                           \
    UNARY_REAL(ERF, erf((double)a), erf(a))                                                                                 \
    UNARY_REAL(ERFC, erfc((double)a), erfc(a))                                                                              \
    UNARY_REAL(SIGMOID, sigmoid_f32(a), sigmoid_f64(a))

/* For real dtypes only; T is the type, k->real the arguments behind the first. */
#define UNARY_ACTIVATIONS                                                                                                   \
    UNARY_ACTIVATION(SILU, sizeof(T) == 4 ? (double)a / (1.0 + exp_to_float(-(double)a)) : a / (1.0 + exp(-a)))             \
    UNARY_ACTIVATION(LOG_SIGMOID, fmin((double)a, 0.0) - log1p(exp(-fabs((double)a))))                                      \
    UNARY_ACTIVATION(MISH, (double)a *tanh(log1p(exp((double)a))))                                                          \
    UNARY_ACTIVATION(SOFTPLUS, softplus(a, k->real[0], k->real[1]))                                                         \
    UNARY_ACTIVATION(ELU, (double)a > 0 ? (double)a * k->real[1] : expm1((double)a * k->real[2]) * k->real[0] * k->real[1]) \
    UNARY_ACTIVATION(SELU, (double)a > 0                                                                                    \
                               ? 1.0507009873554804934193349852946 * a                                                      \
                               : 1.0507009873554804934193349852946 * 1.6732632423543772848170429916717 * expm1((double)a))  \
    UNARY_ACTIVATION(CELU, (double)a > 0 ? (double)a : k->real[0] * expm1((double)a / k->real[0]))                          \
    UNARY_ACTIVATION(GELU, 0.5 * (double)a * (1.0 + erf((double)a * 0.70710678118654752440)))                               \
    UNARY_ACTIVATION(GELU_TANH,                                                                                             \
                     0.5 * (double)a *                                                                                      \
                         (1.0 + tanh(0.79788456080286535588 * ((double)a + 0.044715 * (double)a * (double)a * (double)a)))) \
    UNARY_ACTIVATION(HARDSWISH, a *hinge(a) / 6)                                                                            \
    UNARY_ACTIVATION(HARDSIGMOID, hinge(a) / 6)                                                                             \
    UNARY_ACTIVATION(LEAKY_RELU, a > 0 ? a : a * (T)k->real[0])                                                             \
    UNARY_ACTIVATION(HARDSHRINK, a >= -(T)k->real[0] && a <= (T)k->real[0] ? 0 : a)                                         \
    UNARY_ACTIVATION(SOFTSHRINK, a > (T)k->real[0] ? a - (T)k->real[0] : a < -(T)k->real[0] ? a + (T)k->real[0] : a * 0)    \
    UNARY_ACTIVATION(FRAC, a - TRUNC(a))                                                                                    \
    UNARY_ACTIVATION(LOGIT, log((double)a / (1.0 - (double)a)))                                                             \
    UNARY_ACTIVATION(LOGIT_EPS, logit(a, k->real[0]))                                                                       \
    UNARY_ACTIVATION(ROUND_DECIMALS,                                                                                        \
                     k->real[0] < 0 ? ROUND(a / (T)k->real[1]) * (T)k->real[1] : ROUND(a * (T)k->real[1]) / (T)k->real[1])

/* For all dtypes: UNARY_ANY(name, for reals, for integers) */
#define UNARY_ANYS                                                                                                          \
    UNARY_ANY(ABS, ABSOLUTE(a), a < 0 ? wrap_sub(0, a) : a)                                                                 \
    UNARY_ANY(NEG, -a, wrap_sub(0, a))                                                                                      \
    UNARY_ANY(RELU, a < 0 ? 0 : a, a < 0 ? 0 : a)                                                                           \
    UNARY_ANY(RELU6, a<0 ? 0 : a> 6 ? 6 : a, a<0 ? 0 : a> 6 ? 6 : a)                                                        \
    UNARY_ANY(SIGN, a > 0 ? 1 : a < 0 ? -1 : 0, a > 0 ? 1 : a < 0 ? -1 : 0)                                                 \
    UNARY_ANY(SQUARE, a *a, wrap_mul(a, a))                                                                                 \
    UNARY_ANY(FLOOR, FLOOR(a), a)                                                                                           \
    UNARY_ANY(CEIL, CEIL(a), a)                                                                                             \
    UNARY_ANY(TRUNC, TRUNC(a), a)                                                                                           \
    UNARY_ANY(ROUND, ROUND(a), a)                                                                                           \
    UNARY_ANY(HARDTANH, a<(T)k->real[0] ? (T)k->real[0] : a>(T) k->real[1] ? (T)k->real[1] : a,                             \
              a<k->integer[0] ? k->integer[0] : a> k->integer[1] ? k->integer[1] : a)                                       \
    UNARY_ANY(THRESHOLD, a <= (T)k->real[0] ? (T)k->real[1] : a, a <= k->integer[0] ? k->integer[1] : a)

/* With a result of bool. */
#define UNARY_TESTS                                                                                                         \
    UNARY_TEST(LOGICAL_NOT, a == 0, a == 0)                                                                                 \
    UNARY_TEST(ISNAN, a != a, 0)                                                                                            \
    UNARY_TEST(ISINF, isinf(a), 0)                                                                                          \
    UNARY_TEST(ISFINITE, isfinite(a), 1)                                                                                    \
    UNARY_TEST(SIGNBIT, signbit(a), a < 0)

enum {
#define UNARY_REAL(NAME, F32, F64) UNARY_##NAME,
    UNARY_REALS
#undef UNARY_REAL
#define UNARY_ACTIVATION(NAME, EXPR) UNARY_##NAME,
        UNARY_ACTIVATIONS
#undef UNARY_ACTIVATION
#define UNARY_ANY(NAME, REAL, INTEGER) UNARY_##NAME,
            UNARY_ANYS
#undef UNARY_ANY
#define UNARY_TEST(NAME, REAL, INTEGER) UNARY_##NAME,
                UNARY_TESTS
#undef UNARY_TEST
                    UNARY_COUNT
};

#endif
