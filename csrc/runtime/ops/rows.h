/* rows.h: elementwise operators. Operands are broadcast, converted to the dtype that PyTorch promotes them to, and given to
 * a kernel row by row in one of three forms: float (for float32, float16, bfloat16), double, int64_t (for all integers and
 * bool). What the kernel gives is converted to the result's dtype: integers wrap. */
#ifndef MERA_RUNTIME_ROWS_H
#define MERA_RUNTIME_ROWS_H

#include "ops.h"

enum { ROW_OPERANDS = 4, ROW_CHUNK = 512 };

typedef struct row_constants {
    double real[4];
    int64_t integer[4];
} row_constants;

/* out[0..n), in[k][0..n): arrays of the kernel's form; uint8_t for a result of bool and for a condition. */
typedef void (*row_function)(int64_t n, void *out, const void *const *in, const row_constants *k);

typedef struct row_kernels {
    row_function f32, f64, i64; /* NULL: there is none for that form */
} row_kernels;

typedef struct row_operand {
    int32_t number;   /* of the tensor, or -1: value */
    host_dtype dtype; /* as it is */
    host_dtype as;    /* as it is promoted */
    host_dtype form;  /* as the kernel wants it */
    _Alignas(8) uint8_t value[8];
    int32_t behind; /* dimensions of 1 that it has at its end beside its own */
    int64_t stride[HOST_MAX_RANK];
} row_operand;

typedef struct rows {
    int32_t count;
    row_operand operands[ROW_OPERANDS];
    int32_t rank;
    int64_t shape[HOST_MAX_RANK];
    host_dtype form; /* of what the kernel writes */
    bool divides;    /* operand 1 must not be 0 */
    row_function kernel;
    row_constants constants;
} rows;

/* What PyTorch promotes parameters (tensors, or numbers in their place) to. */
mera_status rows_promote(host_planner *p, int32_t count, const int32_t *parameters, host_dtype *dtype);
/* float32 for integers and bool: what functions of real numbers do. */
host_dtype real_dtype(host_dtype dtype);
host_dtype form_of_dtype(host_dtype dtype);

/* A plan with no operands yet, which computes in the form of `dtype`. */
mera_status rows_begin(host_planner *p, rows **out, host_dtype dtype, const row_kernels *kernels);
/* The parameter as the next operand, promoted to `as`, in the form of `as`. */
mera_status rows_operand(host_planner *p, rows *r, int32_t parameter, host_dtype as);
/* The same, for a condition: the kernel gets uint8_t 0 or 1. */
mera_status rows_condition(host_planner *p, rows *r, int32_t parameter);
/* As rows_finish, where operand `index`, of at most one dimension, stands for a tensor with `behind` dimensions of 1 more.
 */
mera_status rows_finish_over(host_planner *p, rows *r, host_dtype out, int32_t index, int32_t behind);
/* Broadcasts and adds the result. A result of bool from float or double operands is written by the kernel as uint8_t. */
mera_status rows_finish(host_planner *p, rows *r, host_dtype out, bool writes_bool);

/* ---- writing kernels ---- */

#define ROW_HEAD(NAME, FORM) static void NAME##_##FORM(int64_t n, void *out, const void *const *in, const row_constants *k)

/* y = EXPR of a (and b, c), all of type T. */
#define ROW1(NAME, FORM, T, OUT, EXPR)                                                                                      \
    ROW_HEAD(NAME, FORM)                                                                                                    \
    {                                                                                                                       \
        const T *restrict x0 = in[0];                                                                                       \
        OUT *restrict y = out;                                                                                              \
        (void)k;                                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                                   \
            const T a = x0[i];                                                                                              \
            y[i] = (OUT)(EXPR);                                                                                             \
        }                                                                                                                   \
    }
#define ROW2(NAME, FORM, T, OUT, EXPR)                                                                                      \
    ROW_HEAD(NAME, FORM)                                                                                                    \
    {                                                                                                                       \
        const T *restrict x0 = in[0], *restrict x1 = in[1];                                                                 \
        OUT *restrict y = out;                                                                                              \
        (void)k;                                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                                   \
            const T a = x0[i], b = x1[i];                                                                                   \
            y[i] = (OUT)(EXPR);                                                                                             \
        }                                                                                                                   \
    }
#define ROW3(NAME, FORM, T, OUT, EXPR)                                                                                      \
    ROW_HEAD(NAME, FORM)                                                                                                    \
    {                                                                                                                       \
        const T *restrict x0 = in[0], *restrict x1 = in[1], *restrict x2 = in[2];                                           \
        OUT *restrict y = out;                                                                                              \
        (void)k;                                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                                   \
            const T a = x0[i], b = x1[i], c = x2[i];                                                                        \
            y[i] = (OUT)(EXPR);                                                                                             \
        }                                                                                                                   \
    }

/* ---- arithmetic that kernels share ---- */

static inline int64_t wrap_add(int64_t a, int64_t b) { return (int64_t)((uint64_t)a + (uint64_t)b); }
static inline int64_t wrap_sub(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); }
static inline int64_t wrap_mul(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }

#endif
