/* quantize.c: quantized_decomposed: to integers and back, with one scale or one a channel, in float32 as PyTorch does it. */
#include <math.h>

#include "floats.h"
#include "ops.h"

enum { CHUNK = 512 };

typedef struct quantization {
    int32_t x, scales, zeros; /* tensors, or -1: scale and zero */
    host_dtype dtype, scale_dtype, zero_dtype;
    double scale;
    int64_t zero;
    double low, high;               /* exact in float64, rounded where PyTorch computes in float32 */
    int64_t outer, channels, inner; /* x as [outer, channels, inner] */
    host_dtype result;              /* of dequantize, before it is converted to out_dtype */
} quantization;

static double real_at(const void *data, host_dtype dtype, int64_t i)
{
    double value;
    convert_row(1, MERA_HOST_FLOAT64, &value, dtype, (const char *)data + (size_t)i * host_dtype_size(dtype), 1);
    return value;
}

static void quantize_row(int64_t n, const float *x, float inverse, float zero, float low, float high, float *y)
{
    for (int64_t i = 0; i < n; i++) {
        const float q = round_f32(x[i] * inverse) + zero;
        y[i] = q < low ? low : q > high ? high : q;
    }
}

/* With scales of float64, one a channel, PyTorch computes in float64. */
static void quantize_row_double(int64_t n, const float *x, double inverse, double zero, double low, double high, double *y)
{
    for (int64_t i = 0; i < n; i++) {
        const double q = round_f64((double)x[i] * inverse) + zero;
        y[i] = q < low ? low : q > high ? high : q;
    }
}

static void quantize_run(const quantization *q, host_dtype out, const char *x, double scale, double zero, char *y,
                         bool in_double)
{
    union {
        float f[CHUNK];
        double d[CHUNK];
    } real, rounded;
    const size_t from = host_dtype_size(q->dtype), to = host_dtype_size(out);
    const float inverse = in_double || q->scales < 0 || q->channels == 0 ? (float)(1.0 / scale) : 1.0f / (float)scale;
    for (int64_t i = 0; i < q->inner; i += CHUNK) {
        const int64_t n = min_i64(CHUNK, q->inner - i);
        convert_row(n, MERA_HOST_FLOAT32, real.f, q->dtype, x + (size_t)i * from, 1);
        if (in_double)
            quantize_row_double(n, real.f, 1.0 / scale, zero, q->low, q->high, rounded.d);
        else
            quantize_row(n, real.f, inverse, (float)zero, (float)q->low, (float)q->high, rounded.f);
        convert_row(n, out, y + (size_t)i * to, in_double ? MERA_HOST_FLOAT64 : MERA_HOST_FLOAT32, &rounded, 1);
    }
}

static mera_status run_quantize(const host_frame *f)
{
    const quantization *q = f->step->plan;
    const host_dtype out = f->step->results[0].dtype;
    const bool each = q->channels > 0;
    const int64_t lines = each ? q->outer * q->channels : 1;
    const bool in_double = each && q->scale_dtype == MERA_HOST_FLOAT64;
    for (int64_t line = 0; line < lines; line++) {
        const int64_t c = each ? line % q->channels : 0;
        const double scale = q->scales < 0 ? q->scale : real_at(f->tensors[q->scales], q->scale_dtype, c);
        const double zero = q->zeros < 0 ? (double)q->zero : real_at(f->tensors[q->zeros], q->zero_dtype, c);
        const size_t at = (size_t)(line * q->inner);
        quantize_run(q, out, (const char *)f->tensors[q->x] + at * host_dtype_size(q->dtype), scale, zero,
                     (char *)f->results[0] + at * host_dtype_size(out), in_double);
    }
    return MERA_OK;
}

/* (x - zero) * scale: with one scale all in `result`; with one a channel x - zero in integers first. */
static void dequantize_run(const quantization *q, host_dtype out, const char *x, double scale, double zero, char *y)
{
    union {
        float f[CHUNK];
        double d[CHUNK];
        int64_t i[CHUNK];
    } a, b;
    const size_t from = host_dtype_size(q->dtype), to = host_dtype_size(out);
    const bool half = is_half(q->result), each = q->channels > 0;
    for (int64_t i = 0; i < q->inner; i += CHUNK) {
        const int64_t n = min_i64(CHUNK, q->inner - i);
        if (each && !is_float(q->zero_dtype)) {
            convert_row(n, MERA_HOST_INT64, a.i, q->dtype, x + (size_t)i * from, 1);
            for (int64_t j = 0; j < n; j++) a.i[j] -= (int64_t)zero;
            convert_row(n, q->result, b.f, MERA_HOST_INT64, a.i, 1);
        } else {
            convert_row(n, q->result, b.f, q->dtype, x + (size_t)i * from, 1);
        }
        const bool subtract = !each || is_float(q->zero_dtype);
        if (q->result == MERA_HOST_FLOAT64) {
            for (int64_t j = 0; j < n; j++) b.d[j] = (b.d[j] - (subtract ? zero : 0)) * scale;
        } else if (!half) {
            const float z = subtract ? (float)zero : 0, s = (float)scale;
            for (int64_t j = 0; j < n; j++) b.f[j] = (b.f[j] - z) * s;
        } else { /* each operation is rounded to 16 bits */
            convert_row(n, MERA_HOST_FLOAT32, a.f, q->result, b.f, 1);
            for (int64_t j = 0; j < n; j++) a.f[j] -= (float)zero;
            convert_row(n, q->result, b.f, MERA_HOST_FLOAT32, a.f, 1);
            convert_row(n, MERA_HOST_FLOAT32, a.f, q->result, b.f, 1);
            for (int64_t j = 0; j < n; j++) a.f[j] *= (float)scale;
            convert_row(n, q->result, b.f, MERA_HOST_FLOAT32, a.f, 1);
        }
        convert_row(n, out, y + (size_t)i * to, q->result, &b, 1);
    }
}

static mera_status run_dequantize(const host_frame *f)
{
    const quantization *q = f->step->plan;
    const host_dtype out = f->step->results[0].dtype;
    const int64_t lines = q->channels > 0 ? q->outer * q->channels : 1;
    for (int64_t line = 0; line < lines; line++) {
        const int64_t c = q->channels > 0 ? line % q->channels : 0;
        const double scale = q->scales < 0 ? q->scale : real_at(f->tensors[q->scales], q->scale_dtype, c);
        const double zero = q->zeros < 0 ? (double)q->zero : real_at(f->tensors[q->zeros], q->zero_dtype, c);
        const size_t at = (size_t)(line * q->inner);
        dequantize_run(q, out, (const char *)f->tensors[q->x] + at * host_dtype_size(q->dtype), scale, zero,
                       (char *)f->results[0] + at * host_dtype_size(out));
    }
    return MERA_OK;
}

/* ---- planning ---- */

static mera_status check_bounds(host_planner *p, host_dtype dtype, int64_t low, int64_t high)
{
    static const int64_t least[] = {
        [MERA_HOST_UINT8] = 0, [MERA_HOST_INT8] = -128, [MERA_HOST_INT16] = -32768, [MERA_HOST_INT32] = INT32_MIN};
    static const int64_t most[] = {
        [MERA_HOST_UINT8] = 255, [MERA_HOST_INT8] = 127, [MERA_HOST_INT16] = 32767, [MERA_HOST_INT32] = INT32_MAX};
    if (dtype < MERA_HOST_UINT8 || dtype > MERA_HOST_INT32)
        return host_refuse(p, MERA_UNSUPPORTED, "quantized values are uint8, int8, int16 or int32, not %s",
                           host_dtype_name(dtype));
    if (low < least[dtype] || high > most[dtype] || low > high)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "quant_min %lld and quant_max %lld are no range of %s", (long long)low,
                           (long long)high, host_dtype_name(dtype));
    return MERA_OK;
}

/* What both directions and both forms have in common. first: the parameter quant_min; quant_max and dtype follow. */
static mera_status begin(host_planner *p, int32_t first, const host_tensor **x, quantization **out)
{
    TRY(arg_tensor(p, 0, x));
    TRY(check_bounds(p, arg_dtype(p, first + 2, MERA_HOST_INT8), arg_int(p, first), arg_int(p, first + 1)));
    quantization *q = NEW_PLAN(p, quantization);
    if (q == NULL) return out_of_memory(p->ctx);
    *q = (quantization){.x = arg_number(p, 0),
                        .scales = -1,
                        .zeros = -1,
                        .dtype = (*x)->dtype,
                        .low = (double)arg_int(p, first),
                        .high = (double)arg_int(p, first + 1),
                        .inner = host_elements(*x),
                        .result = MERA_HOST_FLOAT32};
    *out = q;
    return MERA_OK;
}

/* variant: 0 = numbers, 1 = tensors of one element. */
static mera_status one_scale(host_planner *p, quantization *q)
{
    const host_tensor *scale, *zero;
    if (p->variant == 0) {
        q->scale = arg_real(p, 1);
        q->zero = arg_int(p, 2);
        if (!isfinite(q->scale) || !(q->scale != 0))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "scale must be finite and not 0");
        return MERA_OK;
    }
    TRY(arg_tensor(p, 1, &scale));
    TRY(arg_tensor(p, 2, &zero));
    if (host_elements(scale) != 1 || host_elements(zero) != 1)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "scale and zero_point must have one element");
    q->scales = arg_number(p, 1);
    q->zeros = arg_number(p, 2);
    q->scale_dtype = scale->dtype;
    q->zero_dtype = zero->dtype;
    return MERA_OK;
}

static mera_status channel_scales(host_planner *p, quantization *q, const host_tensor *x)
{
    const host_tensor *scales, *zeros;
    int32_t axis;
    TRY(arg_tensor(p, 1, &scales));
    TRY(arg_tensor_or_none(p, 2, &zeros));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "input"));
    TRY(arg_dim(p, 3, x->rank, &axis));
    TRY(need_rank(p, scales, 1, 1, "scales"));
    TRY(need_float(p, scales, "scales"));
    if (scales->shape[0] != x->shape[axis] || (zeros && (zeros->rank != 1 || zeros->shape[0] != x->shape[axis])))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "there must be a scale and a zero point for each of %lld channels",
                           (long long)x->shape[axis]);
    q->scales = arg_number(p, 1);
    q->zeros = zeros ? arg_number(p, 2) : -1;
    q->scale_dtype = scales->dtype;
    q->zero_dtype = zeros ? zeros->dtype : MERA_HOST_INT64;
    q->outer = product(axis, x->shape);
    q->channels = x->shape[axis];
    q->inner = product(x->rank - axis - 1, x->shape + axis + 1);
    if (q->channels == 0) q->outer = q->inner = 0;
    return MERA_OK;
}

static mera_status need_real_input(host_planner *p, const host_tensor *x)
{
    if (x->dtype == MERA_HOST_FLOAT32 || is_half(x->dtype)) return MERA_OK;
    return host_refuse(p, MERA_UNSUPPORTED, "input must be float32, float16 or bfloat16, not %s", host_dtype_name(x->dtype));
}

mera_status plan_quantize(host_planner *p)
{
    const host_tensor *x;
    quantization *q = NULL;
    TRY(begin(p, 3, &x, &q));
    TRY(need_real_input(p, x));
    TRY(one_scale(p, q));
    p->step->run = run_quantize;
    return add_result(p, arg_dtype(p, 5, MERA_HOST_INT8), x->rank, x->shape);
}

mera_status plan_dequantize(host_planner *p)
{
    const host_tensor *x;
    quantization *q = NULL;
    TRY(begin(p, 3, &x, &q));
    TRY(one_scale(p, q));
    const host_dtype out = arg_dtype(p, 6, MERA_HOST_FLOAT32);
    if (x->dtype != arg_dtype(p, 5, MERA_HOST_INT8) || !is_float(out))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "input must have the given dtype, and out_dtype be real");
    q->result = out;
    p->step->run = run_dequantize;
    return add_result(p, out, x->rank, x->shape);
}

mera_status plan_quantize_channels(host_planner *p)
{
    const host_tensor *x;
    quantization *q = NULL;
    TRY(begin(p, 4, &x, &q));
    TRY(need_real_input(p, x));
    TRY(channel_scales(p, q, x));
    p->step->run = run_quantize;
    return add_result(p, arg_dtype(p, 6, MERA_HOST_INT8), x->rank, x->shape);
}

mera_status plan_dequantize_channels(host_planner *p)
{
    const host_tensor *x;
    quantization *q = NULL;
    TRY(begin(p, 4, &x, &q));
    TRY(channel_scales(p, q, x));
    if (x->dtype != arg_dtype(p, 6, MERA_HOST_INT8))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "input must have the given dtype");
    if (q->zeros >= 0 && is_float(q->zero_dtype)) q->scale_dtype = promote(q->scale_dtype, q->zero_dtype);
    q->scale_dtype = p->tensors[q->scales].dtype;
    q->result = q->scale_dtype;
    p->step->run = run_dequantize;
    return add_result(p, arg_dtype(p, 7, MERA_HOST_FLOAT32), x->rank, x->shape);
}
