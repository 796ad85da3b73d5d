/* floats.h: functions of one real number that loops can be vectorized over, or that PyTorch defines in its own way. */
#ifndef MERA_RUNTIME_FLOATS_H
#define MERA_RUNTIME_FLOATS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* To nearest, ties to even, without a call: adding 2^23 leaves no bits for a fraction. */
static inline float round_f32(float x)
{
    const float magnitude = fabsf(x), big = 8388608.0f;
    const float rounded = (magnitude + big) - big;
    return copysignf(magnitude < big ? rounded : magnitude, x);
}

static inline double round_f64(double x)
{
    const double magnitude = fabs(x), big = 4503599627370496.0;
    const double rounded = (magnitude + big) - big;
    return copysign(magnitude < big ? rounded : magnitude, x);
}

/* e^x with a relative error below 2e-9: rounded to float it is off by at most one unit in the last place.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its series. Without a call, so that a loop over it is vectorized; no fused
 * operations, so that every machine gives the same bits. */
static inline double exp_to_float(double value)
{
    const double x = value < -110.0 ? -110.0 : value > 89.0 ? 89.0 : value; /* beyond: 0 or infinity */
    const double shifter = 6755399441055744.0;                              /* 1.5 * 2^52 */
    const double shifted = x * 1.4426950408889634 + shifter, n = shifted - shifter;
    const double r = (x - n * 0.693147180369123816) - n * 1.90821492927058770e-10;
    const double r2 = r * r;
    const double low = 1.0 + r + r2 * (0.5 + r * (1.0 / 6.0));
    const double high = 1.0 / 24.0 + r * (1.0 / 120.0) + r2 * (1.0 / 720.0 + r * (1.0 / 5040.0) + r2 * (1.0 / 40320.0));
    const double series = low + r2 * r2 * high;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52; /* 2^n: n is in the low bits of shifted */
    double power;
    memcpy(&power, &bits, sizeof power);
    return value != value ? value : value > 89.0 ? HUGE_VAL : series * power;
}

static inline float exp_f32(double x) { return (float)exp_to_float(x); }
static inline double exp_f64(double x) { return exp(x); }

static inline float sigmoid_f32(float x) { return (float)(1.0 / (1.0 + exp_to_float(-(double)x))); }
static inline double sigmoid_f64(double x) { return 1.0 / (1.0 + exp(-x)); }

static inline double softplus(double x, double beta, double threshold)
{
    return x * beta > threshold ? x : log1p(exp(x * beta)) / beta;
}

#endif
