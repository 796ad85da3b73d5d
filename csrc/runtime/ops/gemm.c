/* gemm.c: blocked products of matrices: panels of A and B are packed so that the inner loop reads them in order. */
#include "gemm.h"

enum { ROWS = 4, COLUMNS = 16, BLOCK_M = 64, BLOCK_N = 512, BLOCK_K = 256 };

#if defined(__x86_64__) || defined(__i386__)
#define GEMM_X86
#endif

#define T float
#define NAME(x) x##_f32
#include "gemm_t.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_f64
#include "gemm_t.h"
#undef T
#undef NAME

size_t gemm_scratch(host_dtype dtype) { return (size_t)(BLOCK_K * (BLOCK_N + BLOCK_M)) * host_dtype_size(dtype); }
