/* kernels.h: the few inner loops that decide the speed of interpreter and simulator. Each set gives the same bytes;
 * the best one that the CPU has is chosen at run time, when a context is made. */
#ifndef MERA_KERNELS_H
#define MERA_KERNELS_H

#include "core.h"
#include "quantmath.h"

/* Packed matrices are made in panels of so many rows of B; see gemm_packed. */
#define GEMM_PANEL 64

typedef struct mera_kernels {
    const char *name;
    /* c[i * ldc + j] = or += sum over k < depth of a[i * lda + k] * b[j * ldb + k], for i < m, j < n.
     * int32 sums wrap. a and b may have any alignment; nothing outside the rows is read. accumulate: += instead of =. */
    void (*gemm_s8)(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const int8_t *b, int64_t ldb,
                    int32_t *c, int64_t ldc, bool accumulate);
    /* The same (without accumulate) for a B that is packed once and used often. packed has packed_bytes(n, depth) bytes,
     * aligned to 64; rows GEMM_PANEL * i and on begin at packed + i * packed_bytes(GEMM_PANEL, depth). */
    int64_t (*packed_bytes)(int64_t n, int64_t depth);
    void (*pack)(int64_t n, int64_t depth, const int8_t *b, int64_t ldb, void *packed);
    void (*gemm_packed)(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const void *packed, int32_t *c,
                        int64_t ldc);
    /* q[j] = clamp(M(acc[j] + bias[j], multiplier[j], shift[j]) + zero_point, low, high) for j < n.
     * Multipliers are 0 or at least 2^30, shifts -31 to 30, as rescale_from_real gives them. */
    void (*requantize)(int64_t n, const int32_t *acc, const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                       int32_t zero_point, int32_t low, int32_t high, int8_t *q);
    /* acc[j] += a[j] * b[j] for j < n: one tap of a depthwise convolution. */
    void (*multiply_add_s8)(int64_t n, const int8_t *a, const int8_t *b, int32_t *acc);
    /* acc[j] = sum over t < taps of a[t][j] * b[t * ldb + j] for j < n: all taps of one pixel. */
    void (*depthwise_s8)(int64_t n, int64_t taps, const int8_t *const *a, const int8_t *b, int64_t ldb, int32_t *acc);
    /* y = clamp(add_rescaled(a - za, b - zb) + zy, low, high) elementwise, see quantmath.h. */
    void (*add_s8)(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, int sign,
                   const add_rescale *r, int32_t low, int32_t high, int8_t *y);
    /* y = clamp(apply_rescale((a - za) * (b - zb), r) + zy, low, high) elementwise. */
    void (*mul_s8)(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, rescale r, int32_t low,
                   int32_t high, int8_t *y);
} mera_kernels;

extern const mera_kernels mera_kernels_generic;
/* The sets compiled in for this architecture, best first, ended by NULL; supported() asks the CPU. */
const mera_kernels *const *kernels_all(void);
bool kernels_supported(const mera_kernels *kernels);
const char *kernels_features(const mera_kernels *best);

#endif
