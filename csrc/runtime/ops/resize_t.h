/* resize_t.h: resize.c for one type. T: float or double; NAME(x): x with the type's suffix. */

/* Result rows are weighted sums of `taps` rows of each `taps` columns. */
static void NAME(weighted)(const resize *r, const T *x, T *y)
{
    const int64_t plane = r->in[0] * r->in[1];
    for (int64_t p = 0; p < r->planes; p++, x += plane)
        for (int64_t i = 0; i < r->out[0]; i++)
            for (int64_t j = 0; j < r->out[1]; j++) {
                double sum = 0;
                for (int a = 0; a < r->taps; a++) {
                    const T *line = x + r->index[0][i * r->taps + a] * r->in[1];
                    double part = 0;
                    for (int b = 0; b < r->taps; b++)
                        part += (double)line[r->index[1][j * r->taps + b]] * (double)r->weight[1][j * r->taps + b];
                    sum += part * (double)r->weight[0][i * r->taps + a];
                }
                *y++ = (T)sum;
            }
}

/* mera_torch.resize_bilinear: as library.py computes it: between rows, then between columns, each step rounded to T. */
static void NAME(by_tables)(const resize *r, const int32_t *rows, const int32_t *columns, const T *x, T *y, T *between)
{
    const int64_t h = r->in[0], w = r->in[1];
    for (int64_t p = 0; p < r->planes; p++, x += h * w)
        for (int64_t i = 0; i < r->out[0]; i++, y += r->out[1]) {
            const int64_t a = rows[i] / POSITION_UNIT, b = min_i64(a + 1, h - 1);
            const T t = (T)(rows[i] % POSITION_UNIT) / (T)POSITION_UNIT;
            for (int64_t j = 0; j < w; j++) between[j] = x[a * w + j] * (1 - t) + x[b * w + j] * t;
            for (int64_t j = 0; j < r->out[1]; j++) {
                const int64_t c = columns[j] / POSITION_UNIT, d = min_i64(c + 1, w - 1);
                const T s = (T)(columns[j] % POSITION_UNIT) / (T)POSITION_UNIT;
                y[j] = between[c] * (1 - s) + between[d] * s;
            }
        }
}
