/* host.c: the host's side of the boundary: float32 to int8 and back, and quantmath.h for Python. */
#include <math.h>

#include "core.h"
#include "quantmath.h"

static mera_status check_boundary(mera_context *ctx, const char *what, const int64_t nhwc[4], float scale,
                                  int32_t zero_point)
{
    int64_t elements = 1;
    for (int d = 0; d < 4; d++) {
        if (nhwc[d] < 1 || nhwc[d] > INT32_MAX / elements)
            return fail(ctx, MERA_INVALID_ARGUMENT, "%s: shape must have 1 to 2^31-1 elements, got [%lld, %lld, %lld, %lld]",
                        what, (long long)nhwc[0], (long long)nhwc[1], (long long)nhwc[2], (long long)nhwc[3]);
        elements *= nhwc[d];
    }
    if (!isfinite(scale) || !(scale > 0))
        return fail(ctx, MERA_INVALID_ARGUMENT, "%s: scale must be finite and above 0, got %g", what, (double)scale);
    if (zero_point < -128 || zero_point > 127)
        return fail(ctx, MERA_INVALID_ARGUMENT, "%s: zero point must be -128 to 127, got %d", what, zero_point);
    return MERA_OK;
}

/* Rounds half to even without a call to libm: |x| is bounded, so that the sum has no fraction bits left. */
static inline float round_small(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23 */
    return (x + magic) - magic;
}

mera_status mera_quantize_f32(mera_context *ctx, const float *x, const int64_t nhwc[4], int32_t channels_last, float scale,
                              int32_t zero_point, int8_t *q)
{
    TRY(check_boundary(ctx, "quantize", nhwc, scale, zero_point));
    const int64_t h = nhwc[1], w = nhwc[2], c = nhwc[3];
    const int64_t pixel = channels_last ? c : 1, channel = channels_last ? 1 : h * w;
    const float inverse = 1.0f / scale, zero = (float)zero_point;
    for (int64_t row = 0; row < nhwc[0] * h; row++) {
        const float *from = x + (row / h) * h * w * c + (row % h) * w * pixel;
        int8_t *to = q + row * w * c;
        for (int64_t i = 0; i < w; i++)
            for (int64_t j = 0; j < c; j++) {
                float value = from[i * pixel + j * channel] * inverse;
                value = value != value ? 0.0f : value;
                value = value > 512.0f ? 512.0f : value < -512.0f ? -512.0f : value; /* beyond it q is clamped anyway */
                value = round_small(value) + zero;
                to[i * c + j] = (int8_t)(value > 127.0f ? 127.0f : value < -128.0f ? -128.0f : value);
            }
    }
    return MERA_OK;
}

mera_status mera_dequantize_i8(mera_context *ctx, const int8_t *q, const int64_t nhwc[4], int32_t channels_last, float scale,
                               int32_t zero_point, float *x)
{
    TRY(check_boundary(ctx, "dequantize", nhwc, scale, zero_point));
    const int64_t h = nhwc[1], w = nhwc[2], c = nhwc[3];
    const int64_t pixel = channels_last ? c : 1, channel = channels_last ? 1 : h * w;
    for (int64_t row = 0; row < nhwc[0] * h; row++) {
        const int8_t *from = q + row * w * c;
        float *to = x + (row / h) * h * w * c + (row % h) * w * pixel;
        for (int64_t j = 0; j < c; j++)
            for (int64_t i = 0; i < w; i++) to[i * pixel + j * channel] = (float)(from[i * c + j] - zero_point) * scale;
    }
    return MERA_OK;
}

void mera_quantize_multiplier(double real, int32_t *multiplier, int32_t *shift)
{
    const rescale r = rescale_from_real(real);
    *multiplier = r.multiplier;
    *shift = r.shift;
}

int32_t mera_requantize(int32_t x, int32_t multiplier, int32_t shift)
{
    const int32_t bounded = shift < -31 ? -31 : shift > 31 ? 31 : shift;
    const rescale r = {multiplier, bounded};
    return apply_rescale(x, r);
}
