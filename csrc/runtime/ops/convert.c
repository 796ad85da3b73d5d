/* convert.c: from any dtype to any other, as .to(dtype) does it; casts and what does nothing. */
#include "ops.h"

/* ---- 16-bit floats ---- */

float half_to_float(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    uint32_t out;
    float value;
    if (magnitude >= 0x7c00) {
        out = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
    } else if (magnitude >= 0x400) {
        out = sign | ((magnitude << 13) + (112u << 23));
    } else { /* a subnormal is an integer times 2^-24 */
        value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &out, sizeof value);
    return value;
}

/* Drops the low `shift` bits of a magnitude, to nearest, ties to even. */
static uint32_t round_bits(uint32_t magnitude, int shift)
{
    const uint32_t half = (UINT32_C(1) << (shift - 1)) - 1;
    return (magnitude + half + ((magnitude >> shift) & 1)) >> shift;
}

uint16_t float_to_half(float value)
{
    uint32_t in;
    memcpy(&in, &value, sizeof in);
    const uint32_t sign = (in >> 16) & 0x8000, magnitude = in & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above */
    if (magnitude >= 0x38800000) return (uint16_t)(sign | round_bits(magnitude - (112u << 23), 13));
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 102) return (uint16_t)sign; /* below 2^-25 */
    return (uint16_t)(sign | round_bits((magnitude & 0x7fffff) | 0x800000, (int)(126 - exponent)));
}

float bfloat16_to_float(uint16_t bits)
{
    const uint32_t out = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &out, sizeof value);
    return value;
}

uint16_t float_to_bfloat16(float value)
{
    uint32_t in;
    memcpy(&in, &value, sizeof in);
    if (value != value) return 0x7fc0;
    return (uint16_t)((in + 0x7fff + ((in >> 16) & 1)) >> 16);
}

/* ---- floats to integers: what x86 gives for values that the integer does not have ---- */

static inline int32_t to_int32(double x) { return x >= -2147483648.0 && x < 2147483648.0 ? (int32_t)x : INT32_MIN; }

static inline int64_t to_int64(double x)
{
    return x >= -9223372036854775808.0 && x < 9223372036854775808.0 ? (int64_t)x : INT64_MIN;
}

#define FROM_NUMBER(x) (x)
#define INTEGER_FROM_INTEGER(T, x) ((T)(x))
#define BOOL_FROM(T, x) ((x) != 0)

/* One loop for each pair: to T by TO(load(from[i])). */
#define LOOP(T, FROM, LOAD, STORE)                                                                                          \
    {                                                                                                                       \
        const FROM *x = from;                                                                                               \
        T *y = to;                                                                                                          \
        if (step == 1)                                                                                                      \
            for (int64_t i = 0; i < n; i++) y[i] = STORE(LOAD(x[i]));                                                       \
        else                                                                                                                \
            for (int64_t i = 0; i < n; i++) y[i] = STORE(LOAD(x[i * step]));                                                \
        return;                                                                                                             \
    }

#define AS_IS(x) (x)
#define TO_BOOL(x) ((x) != 0)
#define I8_FROM_REAL(x) ((int8_t)to_int32(x))
#define U8_FROM_REAL(x) ((uint8_t)to_int32(x))
#define I16_FROM_REAL(x) ((int16_t)to_int32(x))
#define TO_FLOAT(x) ((float)(x))
#define TO_HALF(x) float_to_half((float)(x))
#define TO_BFLOAT16(x) float_to_bfloat16((float)(x))

#define FROM_INTEGER(NAME, FROM)                                                                                            \
    static void from_##NAME(int64_t n, host_dtype to_type, void *to, const void *from, int64_t step)                        \
    {                                                                                                                       \
        switch (to_type) {                                                                                                  \
        case MERA_HOST_BOOL:                                                                                                \
            LOOP(uint8_t, FROM, AS_IS, TO_BOOL)                                                                             \
        case MERA_HOST_UINT8:                                                                                               \
            LOOP(uint8_t, FROM, AS_IS, (uint8_t))                                                                           \
        case MERA_HOST_INT8:                                                                                                \
            LOOP(int8_t, FROM, AS_IS, (int8_t))                                                                             \
        case MERA_HOST_INT16:                                                                                               \
            LOOP(int16_t, FROM, AS_IS, (int16_t))                                                                           \
        case MERA_HOST_INT32:                                                                                               \
            LOOP(int32_t, FROM, AS_IS, (int32_t))                                                                           \
        case MERA_HOST_INT64:                                                                                               \
            LOOP(int64_t, FROM, AS_IS, (int64_t))                                                                           \
        case MERA_HOST_FLOAT16:                                                                                             \
            LOOP(uint16_t, FROM, AS_IS, TO_HALF)                                                                            \
        case MERA_HOST_BFLOAT16:                                                                                            \
            LOOP(uint16_t, FROM, AS_IS, TO_BFLOAT16)                                                                        \
        case MERA_HOST_FLOAT32:                                                                                             \
            LOOP(float, FROM, AS_IS, TO_FLOAT)                                                                              \
        case MERA_HOST_FLOAT64:                                                                                             \
            LOOP(double, FROM, AS_IS, (double))                                                                             \
        }                                                                                                                   \
    }

#define FROM_REAL(NAME, FROM, LOAD)                                                                                         \
    static void from_##NAME(int64_t n, host_dtype to_type, void *to, const void *from, int64_t step)                        \
    {                                                                                                                       \
        switch (to_type) {                                                                                                  \
        case MERA_HOST_BOOL:                                                                                                \
            LOOP(uint8_t, FROM, LOAD, TO_BOOL)                                                                              \
        case MERA_HOST_UINT8:                                                                                               \
            LOOP(uint8_t, FROM, LOAD, U8_FROM_REAL)                                                                         \
        case MERA_HOST_INT8:                                                                                                \
            LOOP(int8_t, FROM, LOAD, I8_FROM_REAL)                                                                          \
        case MERA_HOST_INT16:                                                                                               \
            LOOP(int16_t, FROM, LOAD, I16_FROM_REAL)                                                                        \
        case MERA_HOST_INT32:                                                                                               \
            LOOP(int32_t, FROM, LOAD, to_int32)                                                                             \
        case MERA_HOST_INT64:                                                                                               \
            LOOP(int64_t, FROM, LOAD, to_int64)                                                                             \
        case MERA_HOST_FLOAT16:                                                                                             \
            LOOP(uint16_t, FROM, LOAD, TO_HALF)                                                                             \
        case MERA_HOST_BFLOAT16:                                                                                            \
            LOOP(uint16_t, FROM, LOAD, TO_BFLOAT16)                                                                         \
        case MERA_HOST_FLOAT32:                                                                                             \
            LOOP(float, FROM, LOAD, TO_FLOAT)                                                                               \
        case MERA_HOST_FLOAT64:                                                                                             \
            LOOP(double, FROM, LOAD, (double))                                                                              \
        }                                                                                                                   \
    }

FROM_INTEGER(uint8, uint8_t)
FROM_INTEGER(int8, int8_t)
FROM_INTEGER(int16, int16_t)
FROM_INTEGER(int32, int32_t)
FROM_INTEGER(int64, int64_t)
FROM_REAL(float16, uint16_t, half_to_float)
FROM_REAL(bfloat16, uint16_t, bfloat16_to_float)
FROM_REAL(float32, float, AS_IS)
FROM_REAL(float64, double, AS_IS)

void convert_row(int64_t n, host_dtype to_type, void *to, host_dtype from_type, const void *from, int64_t step)
{
    if (step == 1 && to_type == from_type) {
        if (n > 0) memcpy(to, from, (size_t)n * host_dtype_size(to_type));
        return;
    }
    switch (from_type) {
    case MERA_HOST_BOOL:
    case MERA_HOST_UINT8:
        from_uint8(n, to_type, to, from, step);
        return;
    case MERA_HOST_INT8:
        from_int8(n, to_type, to, from, step);
        return;
    case MERA_HOST_INT16:
        from_int16(n, to_type, to, from, step);
        return;
    case MERA_HOST_INT32:
        from_int32(n, to_type, to, from, step);
        return;
    case MERA_HOST_INT64:
        from_int64(n, to_type, to, from, step);
        return;
    case MERA_HOST_FLOAT16:
        from_float16(n, to_type, to, from, step);
        return;
    case MERA_HOST_BFLOAT16:
        from_bfloat16(n, to_type, to, from, step);
        return;
    case MERA_HOST_FLOAT32:
        from_float32(n, to_type, to, from, step);
        return;
    case MERA_HOST_FLOAT64:
        from_float64(n, to_type, to, from, step);
        return;
    }
}

void store_number(host_dtype dtype, void *to, const host_arg *number)
{
    if (number->kind == MERA_HOST_REAL)
        convert_row(1, dtype, to, MERA_HOST_FLOAT64, &number->real, 1);
    else
        convert_row(1, dtype, to, MERA_HOST_INT64, &number->integer, 1);
}

/* ---- operators ---- */

static mera_status run_cast(const host_frame *f)
{
    const host_dtype from = *(const host_dtype *)f->step->plan;
    const host_tensor *y = &f->step->results[0];
    convert_row(host_elements(y), y->dtype, f->results[0], from, f->tensors[f->step->reads[0]], 1);
    return MERA_OK;
}

static mera_status plan_cast_to(host_planner *p, const host_tensor *x, host_dtype dtype)
{
    if (dtype == x->dtype) return add_alias(p, arg_number(p, 0), x->rank, x->shape);
    TRY(add_result(p, dtype, x->rank, x->shape));
    host_dtype *from = NEW_PLAN(p, host_dtype);
    if (from == NULL) return out_of_memory(p->ctx);
    *from = x->dtype;
    p->step->run = run_cast;
    return MERA_OK;
}

/* variant: the number of the parameter that is the dtype. */
mera_status plan_cast(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return plan_cast_to(p, x, arg_dtype(p, p->variant, x->dtype));
}

/* x.to(other): only its dtype counts here. */
mera_status plan_cast_as(host_planner *p)
{
    const host_tensor *x, *other;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, p->variant, &other));
    return plan_cast_to(p, x, other->dtype);
}

/* clone, contiguous, detach, dropout in evaluation, ... */
mera_status plan_same(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return add_alias(p, arg_number(p, 0), x->rank, x->shape);
}

/* variant: the number of the parameter that says whether this is training. */
mera_status plan_dropout(host_planner *p)
{
    if (arg_flag(p, p->variant)) return host_refuse(p, MERA_UNSUPPORTED, "it cannot train");
    return plan_same(p);
}

mera_status plan_getitem(host_planner *p)
{
    const host_arg *list = &p->step->args[0];
    const int64_t index = arg_int(p, 1);
    if (list->kind != MERA_HOST_LIST) return host_refuse(p, MERA_UNSUPPORTED, "it takes items of lists only");
    if (index < -list->integer || index >= list->integer)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "there is no item %lld of %lld", (long long)index,
                           (long long)list->integer);
    const host_arg *item = &list->items[index < 0 ? index + list->integer : index];
    if (item->kind != MERA_HOST_TENSOR) return host_refuse(p, MERA_UNSUPPORTED, "the item is no tensor");
    const host_tensor *x = &p->tensors[item->integer];
    return add_alias(p, (int32_t)item->integer, x->rank, x->shape);
}
