/* softmax_t.h: softmax.c for one type. T: float or double; NAME(x): x with the type's suffix. */

/* n elements at x, `stride` apart in rows of up to BLOCK columns: row[i][j] = x[i * stride + j]. */
static void NAME(columns)(int64_t n, int64_t stride, int64_t width, const T *x, T *y, bool in_log)
{
    T most[BLOCK];
    double sum[BLOCK];
    for (int64_t j = 0; j < width; j++) most[j] = -(T)INFINITY, sum[j] = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < width; j++) {
            const T v = x[i * stride + j];
            most[j] = v > most[j] || v != v ? v : most[j];
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < width; j++) {
            const T e = (T)NAME(exp)((double)x[i * stride + j] - (double)most[j]);
            if (!in_log) y[i * stride + j] = e;
            sum[j] += (double)e;
        }
    for (int64_t j = 0; j < width; j++) sum[j] = in_log ? log(sum[j]) : 1 / sum[j];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < width; j++) {
            T *to = &y[i * stride + j];
            *to = in_log ? (T)((double)x[i * stride + j] - (double)most[j] - sum[j]) : (T)((double)*to * sum[j]);
        }
}

/* The same for one column whose elements stand side by side. */
static void NAME(line)(int64_t n, const T *x, T *y, bool in_log)
{
    T most = -(T)INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) most = x[i] > most || x[i] != x[i] ? x[i] : most;
    if (in_log) {
        for (int64_t i = 0; i < n; i++) sum += (double)NAME(exp)((double)x[i] - (double)most);
        sum = log(sum);
        for (int64_t i = 0; i < n; i++) y[i] = (T)((double)x[i] - (double)most - sum);
        return;
    }
    for (int64_t i = 0; i < n; i++) y[i] = (T)NAME(exp)((double)x[i] - (double)most);
    for (int64_t i = 0; i < n; i++) sum += (double)y[i];
    const double scale = 1 / sum;
    for (int64_t i = 0; i < n; i++) y[i] = (T)((double)y[i] * scale);
}

static void NAME(softmax)(const softmax *s, const T *x, T *y)
{
    for (int64_t o = 0; o < s->outer; o++, x += s->size * s->inner, y += s->size * s->inner) {
        if (s->inner == 1)
            NAME(line)(s->size, x, y, s->in_log);
        else
            for (int64_t j = 0; j < s->inner; j += BLOCK)
                NAME(columns)(s->size, s->inner, min_i64(BLOCK, s->inner - j), x + j, y + j, s->in_log);
    }
}
