/* gemm_t.h: gemm.c for one type. T: float or double; NAME(x): x with the type's suffix; LANES: of half a tile's row. */

typedef T NAME(vector) __attribute__((vector_size(sizeof(T) * COLUMNS / 2)));

#define TARGET
#define TILE_NAME NAME(tile_generic)
#include "gemm_tile_t.h"
#undef TARGET
#undef TILE_NAME
#ifdef GEMM_X86
#define TARGET __attribute__((target("avx2")))
#define TILE_NAME NAME(tile_avx2)
#include "gemm_tile_t.h"
#undef TARGET
#undef TILE_NAME
#define TARGET __attribute__((target("avx512f")))
#define TILE_NAME NAME(tile_avx512)
#include "gemm_tile_t.h"
#undef TARGET
#undef TILE_NAME
#endif

typedef void (*NAME(tile))(int64_t depth, const T *a, const T *b, T *c);

static NAME(tile) NAME(best_tile)(void)
{
#ifdef GEMM_X86
    if (__builtin_cpu_supports("avx512f")) return NAME(tile_avx512);
    if (__builtin_cpu_supports("avx2")) return NAME(tile_avx2);
#endif
    return NAME(tile_generic);
}

/* Panels of `width` rows (of A) or columns (of B), `depth` deep, side by side; what is missing is 0. */
static void NAME(pack)(int64_t count, int64_t depth, int64_t width, const T *from, int64_t step, int64_t depth_step, T *to)
{
    for (int64_t i = 0; i < count; i += width) {
        const int64_t n = min_i64(width, count - i);
        for (int64_t k = 0; k < depth; k++, to += width) {
            const T *line = from + i * step + k * depth_step;
            if (step == 1)
                memcpy(to, line, (size_t)n * sizeof(T));
            else
                for (int64_t j = 0; j < n; j++) to[j] = line[j * step];
            for (int64_t j = n; j < width; j++) to[j] = 0;
        }
    }
}

static void NAME(add_tile)(int64_t rows, int64_t columns, const T *sums, T *c, int64_t c_row)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) c[i * c_row + j] += sums[i * COLUMNS + j];
}

/* Few rows: packing B would cost more than it gives. Eight sums side by side, always in the same order. */
static void NAME(dots)(const gemm *g, const T *a, const T *b, T *c)
{
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            const T *x = a + i * g->a_row, *y = b + j * g->b_column;
            T sums[8] = {0};
            int64_t k = 0;
            for (; k + 8 <= g->k; k += 8)
                for (int l = 0; l < 8; l++) sums[l] += x[k + l] * y[k + l];
            for (; k < g->k; k++) sums[0] += x[k] * y[k];
            c[i * g->c_row + j] += ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
        }
}

void NAME(gemm_add)(const gemm *g, const T *a, const T *b, T *c, void *scratch)
{
    if (g->m < ROWS && g->a_column == 1 && g->b_row == 1) {
        NAME(dots)(g, a, b, c);
        return;
    }
    const NAME(tile) tile = NAME(best_tile)();
    T *packed_b = scratch, *packed_a = packed_b + BLOCK_K * BLOCK_N, sums[ROWS * COLUMNS];
    for (int64_t n0 = 0; n0 < g->n; n0 += BLOCK_N)
        for (int64_t k0 = 0; k0 < g->k; k0 += BLOCK_K) {
            const int64_t columns = min_i64(BLOCK_N, g->n - n0), depth = min_i64(BLOCK_K, g->k - k0);
            NAME(pack)(columns, depth, COLUMNS, b + k0 * g->b_row + n0 * g->b_column, g->b_column, g->b_row, packed_b);
            for (int64_t m0 = 0; m0 < g->m; m0 += BLOCK_M) {
                const int64_t rows = min_i64(BLOCK_M, g->m - m0);
                NAME(pack)(rows, depth, ROWS, a + m0 * g->a_row + k0 * g->a_column, g->a_row, g->a_column, packed_a);
                for (int64_t j = 0; j < columns; j += COLUMNS)
                    for (int64_t i = 0; i < rows; i += ROWS) {
                        tile(depth, packed_a + i * depth, packed_b + j * depth, sums);
                        NAME(add_tile)
                        (min_i64(ROWS, rows - i), min_i64(COLUMNS, columns - j), sums, c + (m0 + i) * g->c_row + n0 + j,
                         g->c_row);
                    }
            }
        }
}
