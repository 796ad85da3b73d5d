/* gemm.h: products of matrices of float or double. */
#ifndef MERA_RUNTIME_GEMM_H
#define MERA_RUNTIME_GEMM_H

#include "ops.h"

/* A is m x k, B k x n, C m x n; strides in elements, C's columns stand side by side. */
typedef struct gemm {
    int64_t m, n, k;
    int64_t a_row, a_column, b_row, b_column, c_row;
} gemm;

/* c += a * b. Sums are made in blocks of 256 of k, in an order that depends on the sizes alone. */
void gemm_add_f32(const gemm *g, const float *a, const float *b, float *c, void *scratch);
void gemm_add_f64(const gemm *g, const double *a, const double *b, double *c, void *scratch);
/* What they need. */
size_t gemm_scratch(host_dtype dtype);

#endif
