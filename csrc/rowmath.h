/* rowmath.h: what interpreter and simulator compute of whole runs of bytes, beside the arithmetic of quantmath.h. */
#ifndef MERA_ROWMATH_H
#define MERA_ROWMATH_H

#include "quantmath.h"

/* Bilinear resizing: positions are in 1/1024 of a row or column. */
#define RESIZE_BITS 10
#define RESIZE_ONE (1 << RESIZE_BITS)

/* y[j] from the four elements corner[row][column][j] for j < n; f, g: weights of the second row, the second column. The
 * products of int8 and both weights, of which there are 2^20 in all, stay below 2^27. */
static inline void interpolate_s8(int64_t n, const int8_t *const corner[2][2], int32_t f, int32_t g, int8_t *y)
{
    const int8_t *a = corner[0][0], *b = corner[0][1], *c = corner[1][0], *d = corner[1][1];
    for (int64_t j = 0; j < n; j++) {
        const int32_t left = a[j] * (RESIZE_ONE - f) + c[j] * f, right = b[j] * (RESIZE_ONE - f) + d[j] * f;
        y[j] = (int8_t)rounding_divide(left * (RESIZE_ONE - g) + right * g, RESIZE_ONE * RESIZE_ONE);
    }
}

/* 1 / (1 + a) for 0 <= a < 1, both in 2^-31: Newton-Raphson from 48/17 - 32/17 d, d = (1 + a) / 2, in 2^-29. Source:
 * gemmlowp's one_over_one_plus_x_for_x_in_0_1. */
static inline int32_t reciprocal_of_one_plus(int32_t a)
{
    const int32_t d = (int32_t)(((int64_t)a + INT32_MAX + 1) / 2);
    int64_t x = 1515870810 + (int64_t)saturating_rounding_doubling_high_mul(d, -1010580540);
    for (int step = 0; step < 3; step++) {
        const int32_t error = (1 << 29) - saturating_rounding_doubling_high_mul(d, (int32_t)x);
        x += 4 * (int64_t)saturating_rounding_doubling_high_mul((int32_t)x, error);
    }
    return 2 * x > INT32_MAX ? INT32_MAX : (int32_t)(2 * x);
}

/* The softmax of a row, see dna_ops.def: n >= 1; y may be x. */
static inline void softmax_s8(int64_t n, const int8_t *x, const int32_t table[256], int8_t *y)
{
    int most = x[0];
    uint64_t sum = 0;
    for (int64_t j = 1; j < n; j++) most = x[j] > most ? x[j] : most;
    for (int64_t j = 0; j < n; j++) sum += ((uint64_t)table[most - x[j]] + (1 << 11)) >> 12;
    if (sum > UINT32_MAX) sum = UINT32_MAX;
    int zeros = 0;
    while (zeros < 31 && !(sum << zeros >> 31)) zeros++;
    const int32_t r = reciprocal_of_one_plus((int32_t)((sum << zeros) & INT32_MAX));
    for (int64_t j = 0; j < n; j++) {
        const int32_t share = saturating_rounding_doubling_high_mul(r, table[most - x[j]]);
        /* of 2^32 or more, a share is less than a half */
        y[j] = (int8_t)(35 - zeros > 31 ? -128 : clamp_i32(rounding_divide_by_pot(share, 35 - zeros) - 128, -128, 127));
    }
}

#endif
