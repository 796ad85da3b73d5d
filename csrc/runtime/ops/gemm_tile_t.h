/* gemm_tile_t.h: the inner loop of gemm.c for one type and one instruction set. T, NAME as in gemm_t.h; TILE_NAME: the
 * function; TARGET: its attribute. No operation is fused and the order of sums is fixed: all sets give the same bits. */

/* c[i][j] (+)= sum over k < depth of a[k * ROWS + i] * b[k * COLUMNS + j] */
TARGET static void TILE_NAME(int64_t depth, const T *restrict a, const T *restrict b, T *restrict c)
{
    NAME(vector) sums[ROWS][2];
    for (int i = 0; i < ROWS; i++) sums[i][0] = sums[i][1] = (NAME(vector)){0};
    for (int64_t k = 0; k < depth; k++, a += ROWS, b += COLUMNS) {
        NAME(vector) b0, b1;
        memcpy(&b0, b, sizeof b0);
        memcpy(&b1, b + COLUMNS / 2, sizeof b1);
        for (int i = 0; i < ROWS; i++) {
            sums[i][0] += a[i] * b0;
            sums[i][1] += a[i] * b1;
        }
    }
    memcpy(c, sums, sizeof sums);
}
