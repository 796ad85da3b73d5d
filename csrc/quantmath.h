/* quantmath.h: the integer arithmetic of requantization, the one place in C where it stands.
 *
 * Source: gemmlowp's fixedpoint and TFLite's reference kernels (common.h), which TOSA's apply_scale_32 with double
 * rounding equals. real = multiplier * 2^(shift - 31), multiplier in [2^30, 2^31). */
#ifndef MERA_QUANTMATH_H
#define MERA_QUANTMATH_H

#include <math.h>
#include <stdint.h>

typedef struct rescale {
    int32_t multiplier;
    int32_t shift; /* > 0: left */
} rescale;

/* TFLite's QuantizeMultiplier for real >= 0. */
static inline rescale rescale_from_real(double real)
{
    rescale r = {0, 0};
    if (!(real > 0.0)) return r;
    int exponent;
    const double fraction = frexp(real, &exponent);
    int64_t fixed = (int64_t)round(fraction * 2147483648.0);
    if (fixed == (int64_t)1 << 31) {
        fixed /= 2;
        exponent++;
    }
    if (exponent < -31) return r; /* rounds every int32 to zero */
    if (exponent > 30) {          /* saturates, as TFLite does */
        exponent = 30;
        fixed = 2147483647;
    }
    r.multiplier = (int32_t)fixed;
    r.shift = exponent;
    return r;
}

/* 2ab / 2^32 rounded to the nearest, ties upwards, saturating only for a = b = -2^31. */
static inline int32_t saturating_rounding_doubling_high_mul(int32_t a, int32_t b)
{
    if (a == b && a == INT32_MIN) return INT32_MAX;
    const int64_t ab = (int64_t)a * b;
    const int64_t nudge = ab >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30);
    return (int32_t)((ab + nudge) / ((int64_t)1 << 31));
}

/* x / 2^exponent, ties away from zero; 0 <= exponent <= 31. */
static inline int32_t rounding_divide_by_pot(int32_t x, int exponent)
{
    const int64_t mask = ((int64_t)1 << exponent) - 1;
    const int64_t remainder = x & mask;
    const int64_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
    return (x >> exponent) + (remainder > threshold ? 1 : 0);
}

/* MultiplyByQuantizedMultiplier; a left shift wraps in 32 bits. */
static inline int32_t apply_rescale(int32_t x, rescale r)
{
    const int left = r.shift > 0 ? r.shift : 0;
    const int right = r.shift > 0 ? 0 : -r.shift;
    return rounding_divide_by_pot(saturating_rounding_doubling_high_mul((int32_t)((uint32_t)x << left), r.multiplier),
                                  right);
}

/* x * factor in float64, to the nearest integer, ties away from zero; -2^31 if that is outside of int32. */
static inline int32_t round_product(int32_t x, double factor)
{
    const double product = (double)x * factor;
    if (!(product > -2147483649.0 && product < 2147483647.5)) return INT32_MIN;
    const int32_t whole = (int32_t)product;
    const double rest = product - (double)whole;
    return whole + (rest >= 0.5) - (rest <= -0.5 && whole > INT32_MIN);
}

/* ---- the real factors of dna_ops.def ---- */

static inline double conv_factor(float x, float w, float y) { return (double)x * (double)w / (double)y; }

/* MUL: product and quotient in float32. */
static inline rescale mul_rescale(float a, float b, float y)
{
    const float product = a * b, quotient = product / y;
    return rescale_from_real((double)quotient);
}

/* MEAN: for sums of `count` >= 1 values. The multiplier is divided, rounded towards zero, after as many bits of the shift
 * as count has, but for the first, have gone into it; the multiplier may then be less than 2^30. */
static inline rescale mean_rescale(float x, float y, int64_t count)
{
    rescale r = rescale_from_real((double)x / (double)y);
    int bits = 0;
    while (bits < 32 && bits < 31 + r.shift && count >> (bits + 1) > 0) bits++;
    r.multiplier = (int32_t)(((int64_t)r.multiplier << bits) / count);
    r.shift -= bits;
    return r;
}

static inline int32_t clamp_i32(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

/* q[j] = clamp(round_product(acc[j] + bias[j], factor[j]) + zero_point, low, high) for j < n. */
static inline void requantize_float64(int64_t n, const int32_t *acc, const int32_t *bias, const double *factor,
                                      int32_t zero_point, int32_t low, int32_t high, int8_t *q)
{
    for (int64_t j = 0; j < n; j++) {
        const int32_t level = round_product((int32_t)((uint32_t)acc[j] + (uint32_t)bias[j]), factor[j]);
        q[j] = (int8_t)clamp_i32((int32_t)((uint32_t)level + (uint32_t)zero_point), low, high);
    }
}

/* How ADD and SUB rescale: see dna_ops.def. All three reals are at most 1. */
typedef struct add_rescale {
    rescale a, b, y;
} add_rescale;
#define ADD_LEFT_SHIFT 20

static inline add_rescale add_rescale_from_scales(float a, float b, float y)
{
    const double twice = 2.0 * ((double)a > (double)b ? (double)a : (double)b);
    const add_rescale r = {rescale_from_real((double)a / twice), rescale_from_real((double)b / twice),
                           rescale_from_real(twice / ((double)(1 << ADD_LEFT_SHIFT) * (double)y))};
    return r;
}

/* a and b without their zero points; sign is +1 (ADD) or -1 (SUB); without y's zero point and clamp. */
static inline int32_t add_rescaled(int32_t a, int32_t b, int sign, const add_rescale *r)
{
    const int32_t sa = apply_rescale((int32_t)((uint32_t)a << ADD_LEFT_SHIFT), r->a);
    const int32_t sb = apply_rescale((int32_t)((uint32_t)b << ADD_LEFT_SHIFT), r->b);
    return apply_rescale((int32_t)((uint32_t)sa + (uint32_t)(sign * sb)), r->y);
}

/* S / n with ties away from zero; n > 0. */
static inline int32_t rounding_divide(int32_t sum, int32_t n) { return (sum > 0 ? sum + n / 2 : sum - n / 2) / n; }

#endif
