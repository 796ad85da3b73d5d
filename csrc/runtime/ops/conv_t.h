/* conv_t.h: conv.c for one type. T: float or double; NAME(x): x with the type's suffix. */

/* n pixels of one row of the result, from column ox on, for a tap that reads column ox * stride + shift of `line`. */
static void NAME(unfold_row)(const conv *g, const T *line, int64_t ox, int64_t n, int64_t shift, T *to)
{
    const int64_t s = g->stride[1];
    for (int64_t i = 0; i < n; i++) {
        const int64_t ix = (ox + i) * s + shift;
        if (s == 1 && ix >= 0 && ix < g->in[1]) { /* all that lie inside at once */
            const int64_t run = min_i64(n - i, g->in[1] - ix);
            memcpy(to + i, line + ix, (size_t)run * sizeof(T));
            i += run - 1;
        } else {
            to[i] = ix >= 0 && ix < g->in[1] ? line[ix] : 0;
        }
    }
}

/* The columns first..first+count of the image as a matrix: row (c, ky, kx), column (oy, ox). */
static void NAME(unfold)(const conv *g, const T *x, int64_t first, int64_t count, T *to)
{
    for (int64_t c = 0; c < g->in_group; c++, x += g->in[0] * g->in[1])
        for (int64_t ky = 0; ky < g->kernel[0]; ky++)
            for (int64_t kx = 0; kx < g->kernel[1]; kx++) {
                int64_t oy = first / g->out[1], ox = first % g->out[1], n;
                for (int64_t i = 0; i < count; i += n, to += n, ox = 0, oy++) {
                    n = min_i64(count - i, g->out[1] - ox);
                    const int64_t iy = oy * g->stride[0] - g->pad[0] + ky * g->dilation[0];
                    if (iy < 0 || iy >= g->in[0])
                        memset(to, 0, (size_t)n * sizeof(T));
                    else
                        NAME(unfold_row)(g, x + iy * g->in[1], ox, n, kx * g->dilation[1] - g->pad[1], to);
                }
            }
}

static void NAME(by_gemm)(const conv *g, const T *x, const T *w, T *y, T *scratch)
{
    const int64_t depth = g->in_group * g->kernel[0] * g->kernel[1], pixels = g->out[0] * g->out[1];
    T *columns = scratch + gemm_scratch(sizeof(T) == 4 ? MERA_HOST_FLOAT32 : MERA_HOST_FLOAT64) / sizeof(T);
    gemm shape = {.m = g->out_group, .k = depth, .a_row = depth, .a_column = 1, .b_column = 1, .c_row = pixels};
    if (g->plain) {
        shape.n = shape.b_row = pixels;
        NAME(gemm_add)(&shape, w, x, y, scratch);
        return;
    }
    for (int64_t first = 0; first < pixels; first += UNFOLDED) {
        shape.n = shape.b_row = min_i64(UNFOLDED, pixels - first);
        NAME(unfold)(g, x, first, shape.n, columns);
        NAME(gemm_add)(&shape, w, columns, y + first, scratch);
    }
}

/* y[0..n) += w * x[0], x[step], ... */
static void NAME(add_row)(int64_t n, T w, const T *restrict x, int64_t step, T *restrict y)
{
    if (step == 1)
        for (int64_t i = 0; i < n; i++) y[i] += w * x[i];
    else
        for (int64_t i = 0; i < n; i++) y[i] += w * x[i * step];
}

/* One input plane into one output plane, tap by tap: for few channels in a group. */
static void NAME(plane)(const conv *g, const T *x, const T *w, T *y)
{
    for (int64_t ky = 0; ky < g->kernel[0]; ky++)
        for (int64_t kx = 0; kx < g->kernel[1]; kx++) {
            const int64_t shift = kx * g->dilation[1] - g->pad[1], s = g->stride[1];
            const int64_t begin = shift < 0 ? min_i64(ceil_div(-shift, s), g->out[1]) : 0;
            const int64_t room = g->in[1] - 1 - shift; /* the last column that can be read */
            const int64_t end = room < 0 ? 0 : min_i64(room / s + 1, g->out[1]);
            for (int64_t oy = 0; oy < g->out[0] && begin < end; oy++) {
                const int64_t iy = oy * g->stride[0] - g->pad[0] + ky * g->dilation[0];
                if (iy < 0 || iy >= g->in[0]) continue;
                NAME(add_row)
                (end - begin, w[ky * g->kernel[1] + kx], x + iy * g->in[1] + begin * s + shift, s,
                 y + oy * g->out[1] + begin);
            }
        }
}

static void NAME(forward)(const conv *g, const T *x, const T *w, T *y, T *scratch)
{
    const int64_t taps = g->kernel[0] * g->kernel[1], in = g->in[0] * g->in[1], out = g->out[0] * g->out[1];
    if (!g->direct) {
        NAME(by_gemm)(g, x, w, y, scratch);
        return;
    }
    for (int64_t o = 0; o < g->out_group; o++)
        for (int64_t c = 0; c < g->in_group; c++) NAME(plane)(g, x + c * in, w + (o * g->in_group + c) * taps, y + o * out);
}

/* Transposed: what each input pixel gives to each tap, then added where the tap falls. Some output channels at a time. */
static void NAME(backward)(const conv *g, const T *x, const T *w, T *y, T *scratch)
{
    const int64_t taps = g->kernel[0] * g->kernel[1], pixels = g->in[0] * g->in[1], out = g->out[0] * g->out[1];
    T *given = scratch + gemm_scratch(sizeof(T) == 4 ? MERA_HOST_FLOAT32 : MERA_HOST_FLOAT64) / sizeof(T);
    for (int64_t o = 0; o < g->out_group; o += g->at_once) {
        const int64_t count = min_i64(g->at_once, g->out_group - o);
        const gemm shape = {.m = count * taps,
                            .n = pixels,
                            .k = g->in_group,
                            .a_row = 1,
                            .a_column = g->out_group * taps,
                            .b_row = pixels,
                            .b_column = 1,
                            .c_row = pixels};
        memset(given, 0, (size_t)(count * taps * pixels) * sizeof(T));
        NAME(gemm_add)(&shape, w + o * taps, x, given, scratch);
        for (int64_t i = 0; i < count * taps; i++) {
            const int64_t ky = i % taps / g->kernel[1], kx = i % g->kernel[1];
            T *plane = y + (o + i / taps) * out;
            const T *from = given + i * pixels;
            for (int64_t iy = 0; iy < g->in[0]; iy++) {
                const int64_t oy = iy * g->stride[0] - g->pad[0] + ky * g->dilation[0];
                if (oy < 0 || oy >= g->out[0]) continue;
                for (int64_t ix = 0; ix < g->in[1]; ix++) {
                    const int64_t ox = ix * g->stride[1] - g->pad[1] + kx * g->dilation[1];
                    if (ox >= 0 && ox < g->out[1]) plane[oy * g->out[1] + ox] += from[iy * g->in[1] + ix];
                }
            }
        }
    }
}

static void NAME(convolve)(const conv *g, const T *x, const T *w, const T *bias, T *y, T *scratch)
{
    const int64_t in = g->in_group * g->in[0] * g->in[1], pixels = g->out[0] * g->out[1];
    const int64_t weights = g->in_group * g->out_group * g->kernel[0] * g->kernel[1];
    for (int64_t n = 0; n < g->batch; n++)
        for (int64_t k = 0; k < g->groups; k++, x += in, y += g->out_group * pixels) {
            for (int64_t o = 0; o < g->out_group; o++) {
                const T start = bias ? bias[k * g->out_group + o] : 0;
                for (int64_t i = 0; i < pixels; i++) y[o * pixels + i] = start;
            }
            if (g->in_group == 0 || pixels == 0) continue;
            if (g->transposed)
                NAME(backward)(g, x, w + k * weights, y, scratch);
            else
                NAME(forward)(g, x, w + k * weights, y, scratch);
        }
}
