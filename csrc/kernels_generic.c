/* kernels_generic.c: the kernels in plain C: the definition of what the others compute, and the baseline. */
#include "kernels.h"

enum { DEPTH = 512 }; /* worked on at a time; sums of so many products fit int32 */

static void widen(int64_t count, const int8_t *from, int16_t *to)
{
    for (int64_t k = 0; k < count; k++) to[k] = from[k];
}

/* Compilers know this loop, and the instruction for it. */
static int32_t dot(int64_t depth, const int16_t *x, const int16_t *w)
{
    int32_t sum = 0;
    for (int64_t k = 0; k < depth; k++) sum += x[k] * w[k];
    return sum;
}

/* depth <= DEPTH; b is wide. */
static void multiply_block(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const int16_t *b, int64_t ldb,
                           int32_t *c, int64_t ldc, bool accumulate)
{
    int16_t x[DEPTH];
    for (int64_t i = 0; i < m; i++) {
        widen(depth, a + i * lda, x);
        for (int64_t j = 0; j < n; j++) {
            const uint32_t before = accumulate ? (uint32_t)c[i * ldc + j] : 0;
            c[i * ldc + j] = (int32_t)(before + (uint32_t)dot(depth, x, b + j * ldb));
        }
    }
}

static void gemm_s8(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const int8_t *b, int64_t ldb,
                    int32_t *c, int64_t ldc, bool accumulate)
{
    int16_t wide[GEMM_PANEL * DEPTH];
    for (int64_t j = 0; j < n; j += GEMM_PANEL)
        for (int64_t k = 0; k < max_i64(depth, 1); k += DEPTH) {
            const int64_t columns = min_i64(GEMM_PANEL, n - j), part = min_i64(DEPTH, depth - k);
            for (int64_t i = 0; i < columns; i++) widen(part, b + (j + i) * ldb + k, wide + i * DEPTH);
            multiply_block(m, columns, part, a + k, lda, wide, DEPTH, c + j, ldc, accumulate || k > 0);
        }
}

/* Packed: int16, otherwise as it is. */
static int64_t packed_bytes(int64_t n, int64_t depth) { return n * depth * 2; }

static void pack(int64_t n, int64_t depth, const int8_t *b, int64_t ldb, void *packed)
{
    for (int64_t j = 0; j < n; j++) widen(depth, b + j * ldb, (int16_t *)packed + j * depth);
}

static void gemm_packed(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const void *packed, int32_t *c,
                        int64_t ldc)
{
    for (int64_t k = 0; k < max_i64(depth, 1); k += DEPTH)
        multiply_block(m, n, min_i64(DEPTH, depth - k), a + k, lda, (const int16_t *)packed + k, depth, c, ldc, k > 0);
}

static void requantize(int64_t n, const int32_t *acc, const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                       int32_t zero_point, int32_t low, int32_t high, int8_t *q)
{
    for (int64_t j = 0; j < n; j++) {
        const rescale r = {multiplier[j], shift[j]};
        const int32_t sum = (int32_t)((uint32_t)acc[j] + (uint32_t)bias[j]);
        q[j] = (int8_t)clamp_i32((int32_t)((uint32_t)apply_rescale(sum, r) + (uint32_t)zero_point), low, high);
    }
}

static void multiply_add_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t *acc)
{
    for (int64_t j = 0; j < n; j++) acc[j] = (int32_t)((uint32_t)acc[j] + (uint32_t)(a[j] * b[j]));
}

static void depthwise_s8(int64_t n, int64_t taps, const int8_t *const *a, const int8_t *b, int64_t ldb, int32_t *acc)
{
    memset(acc, 0, (size_t)n * sizeof *acc);
    for (int64_t t = 0; t < taps; t++) multiply_add_s8(n, a[t], b + t * ldb, acc);
}

static void add_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, int sign,
                   const add_rescale *r, int32_t low, int32_t high, int8_t *y)
{
    for (int64_t j = 0; j < n; j++) y[j] = (int8_t)clamp_i32(add_rescaled(a[j] - za, b[j] - zb, sign, r) + zy, low, high);
}

static void mul_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, rescale r, int32_t low,
                   int32_t high, int8_t *y)
{
    for (int64_t j = 0; j < n; j++) {
        const int32_t product = (a[j] - za) * (b[j] - zb);
        y[j] = (int8_t)clamp_i32((int32_t)((uint32_t)apply_rescale(product, r) + (uint32_t)zy), low, high);
    }
}

const mera_kernels mera_kernels_generic = {"generic",  gemm_s8,         packed_bytes, pack,   gemm_packed,
                                           requantize, multiply_add_s8, depthwise_s8, add_s8, mul_s8};
