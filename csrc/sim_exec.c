/* sim_exec.c: what each instruction does to SRAM, DRAM and accumulators. Addresses were checked when the program was
 * loaded; here they are trusted. */
#include "sim.h"

#define LANES 2048 /* lanes of a window instruction that are worked on together: bounds the scratch memory */

static int8_t shift_of(int8_t shift) { return (int8_t)clamp_i32(shift, -31, 30); }
static rescale rescale_of(int64_t multiplier, int64_t shift)
{
    return (rescale){(int32_t)(multiplier & INT32_MAX), shift_of((int8_t)shift)};
}

static void look_up(const uint8_t *table, int64_t n, int8_t *v)
{
    for (int64_t k = 0; k < n; k++) v[k] = (int8_t)table[(uint8_t)(v[k] + 128)];
}

/* ---- DMA ---- */

static void exec_move(mera_simulator *s, const int64_t *f, bool load)
{
    for (int64_t a = 0; a < f[LOAD_n0]; a++)
        for (int64_t b = 0; b < f[LOAD_n1]; b++)
            for (int64_t c = 0; c < f[LOAD_n2]; c++) {
                uint8_t *d = s->dram + f[LOAD_dram] + a * f[LOAD_d0] + b * f[LOAD_d1] + c * f[LOAD_d2];
                uint8_t *m = s->sram + f[LOAD_sram] + a * f[LOAD_s0] + b * f[LOAD_s1] + c * f[LOAD_s2];
                memcpy(load ? m : d, load ? d : m, (size_t)f[LOAD_run]);
            }
}

/* ---- array ---- */

/* The bytes [p, p + n) of an input row, with padding where the row or the byte does not exist. */
static void fetch(const mera_simulator *s, const int64_t *f, int64_t row, int64_t p, int64_t n, int8_t *out)
{
    const int pad = (int)f[CONV_pad];
    const int64_t low = min_i64(max_i64(-p, 0), n), high = min_i64(max_i64(f[CONV_in_row_bytes] - p, low), n);
    if (row < 0 || row >= f[CONV_in_rows] || high <= low) {
        memset(out, pad, (size_t)n);
        return;
    }
    if (low > 0) memset(out, pad, (size_t)low);
    memcpy(out + low, s->sram + f[CONV_in] + row * f[CONV_in_pitch] + p + low, (size_t)(high - low));
    if (high < n) memset(out + high, pad, (size_t)(n - high));
}

typedef struct conv_run {
    mera_simulator *s;
    const int64_t *f;
    const int8_t *weights; /* [co][depth] */
    int64_t depth, direct; /* direct: stride of pixels whose patch is contiguous in SRAM, else -1 */
    int32_t *acc;
    int64_t array;
    int8_t *patches;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    const double *factor;
} conv_run;

static void drain(const conv_run *r, int64_t pixel)
{
    const int64_t *f = r->f, co = f[CONV_co], oy = pixel / f[CONV_ow], ox = pixel % f[CONV_ow];
    const mera_kernels *k = ctx_kernels(r->s->object.ctx);
    int8_t v[256];
    const int32_t *acc = r->acc + pixel * r->array;
    const int32_t zero = (int32_t)f[CONV_zero], least = (int32_t)f[CONV_low], most = (int32_t)f[CONV_high];
    if (f[CONV_float64])
        requantize_float64(co, acc, r->bias, r->factor, zero, least, most, v);
    else
        k->requantize(co, acc, r->bias, r->multiplier, r->shift, zero, least, most, v);
    if (f[CONV_add]) {
        const int8_t *res = (const int8_t *)r->s->sram + f[CONV_res] + oy * f[CONV_res_pitch] + ox * f[CONV_res_step];
        const add_rescale a = {rescale_of(f[CONV_m_conv], f[CONV_s_conv]), rescale_of(f[CONV_m_res], f[CONV_s_res]),
                               rescale_of(f[CONV_m_add], f[CONV_s_add])};
        const int32_t za = (int32_t)f[CONV_zero], zr = (int32_t)f[CONV_res_zero], zo = (int32_t)f[CONV_add_zero];
        const int32_t low = (int32_t)f[CONV_add_low], high = (int32_t)f[CONV_add_high];
        if (f[CONV_neg_conv]) {
            const add_rescale swapped = {a.b, a.a, a.y};
            k->add_s8(co, res, v, zr, za, zo, -1, &swapped, low, high, v);
        } else {
            k->add_s8(co, v, res, za, zr, zo, f[CONV_neg_res] ? -1 : 1, &a, low, high, v);
        }
    }
    if (f[CONV_lut]) look_up(r->s->sram + f[CONV_table], co, v);
    memcpy(r->s->sram + f[CONV_out] + oy * f[CONV_out_pitch] + ox * f[CONV_out_step], v, (size_t)co);
}

static void conv_pixels(const conv_run *r)
{
    const int64_t *f = r->f, pixels = f[CONV_oh] * f[CONV_ow];
    const mera_kernels *k = ctx_kernels(r->s->object.ctx);
    const int8_t *a = r->patches;
    int64_t lda = r->depth;
    if (r->direct >= 0) {
        a = (const int8_t *)r->s->sram + f[CONV_in] + f[CONV_iy0] * f[CONV_in_pitch] + f[CONV_ix0];
        lda = r->direct;
    } else {
        int8_t *out = r->patches;
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t ky = 0; ky < f[CONV_kh]; ky++)
                for (int64_t kx = 0; kx < f[CONV_kw]; kx++, out += f[CONV_run])
                    fetch(r->s, f, f[CONV_iy0] + p / f[CONV_ow] * f[CONV_sy] + ky * f[CONV_dy],
                          f[CONV_ix0] + p % f[CONV_ow] * f[CONV_sx] + kx * f[CONV_dx], f[CONV_run], out);
    }
    k->gemm_s8(pixels, f[CONV_co], r->depth, a, lda, r->weights, r->depth, r->acc, r->array, !f[CONV_first]);
    if (f[CONV_last])
        for (int64_t p = 0; p < pixels; p++) drain(r, p);
}

/* Tile-major weights -> rows of the whole reduction, in place if that is how they lie already. */
static const int8_t *gather_weights(const mera_simulator *s, const int64_t *f, int64_t array, int8_t *out)
{
    const int8_t *w = (const int8_t *)s->sram + f[CONV_w];
    const int64_t run = f[CONV_run], co = f[CONV_co], taps = f[CONV_kh] * f[CONV_kw], depth = taps * run;
    if (taps == 1 && run <= array && (f[CONV_w_row] == 0 || f[CONV_w_row] == run)) return w;
    for (int64_t t = 0; t < taps; t++)
        for (int64_t at = 0, chunk = 0; at < run; at += array, chunk++) {
            const int64_t length = min_i64(array, run - at), row = f[CONV_w_row] ? f[CONV_w_row] : length;
            const int8_t *from = w + t * f[CONV_w_tap] + chunk * f[CONV_w_chunk];
            for (int64_t o = 0; o < co; o++) memcpy(out + o * depth + t * run + at, from + o * row, (size_t)length);
        }
    return out;
}

/* Whether the patch of each pixel is one contiguous run inside of the input, at equal distances. */
static int64_t direct_stride(const int64_t *f)
{
    if (f[CONV_kh] != 1 || f[CONV_kw] != 1) return -1;
    const int64_t y1 = f[CONV_iy0] + (f[CONV_oh] - 1) * f[CONV_sy],
                  x1 = f[CONV_ix0] + (f[CONV_ow] - 1) * f[CONV_sx] + f[CONV_run];
    if (f[CONV_iy0] < 0 || y1 >= f[CONV_in_rows] || f[CONV_ix0] < 0 || x1 > f[CONV_in_row_bytes]) return -1;
    const int64_t down = f[CONV_sy] * f[CONV_in_pitch];
    if (f[CONV_ow] == 1) return down;
    return f[CONV_oh] == 1 || down == f[CONV_ow] * f[CONV_sx] ? f[CONV_sx] : -1;
}

static void exec_conv(mera_simulator *s, const instr *i)
{
    const int64_t *f = i->f, array = s->program->platform.array, co = f[CONV_co];
    const int unit = (i->queue - QUEUE_UNITS) / UNIT_QUEUES;
    int32_t bias[256], multiplier[256];
    int8_t shift[256];
    double factor[256];
    conv_run r = {.s = s,
                  .f = f,
                  .depth = f[CONV_kh] * f[CONV_kw] * f[CONV_run],
                  .direct = direct_stride(f),
                  .acc = s->accumulators + (size_t)unit * DNA_ACCUMULATORS * (size_t)array,
                  .array = array,
                  .bias = bias,
                  .multiplier = multiplier,
                  .shift = shift,
                  .factor = factor};
    int8_t *weights = (int8_t *)s->scratch;
    r.weights = gather_weights(s, f, array, weights);
    r.patches = weights + co * r.depth;
    if (f[CONV_last]) {
        const uint8_t *param = s->sram + f[CONV_param];
        memcpy(bias, param, 4 * (size_t)co);
        if (f[CONV_float64]) memcpy(factor, param + 4 * co, 8 * (size_t)co);
        if (!f[CONV_float64]) memcpy(multiplier, param + 4 * co, 4 * (size_t)co);
        if (!f[CONV_float64]) memcpy(shift, param + 8 * co, (size_t)co);
        for (int64_t c = 0; c < co && !f[CONV_float64]; c++) {
            multiplier[c] &= INT32_MAX;
            shift[c] = shift_of(shift[c]);
        }
    }
    conv_pixels(&r);
}

/* ---- window ---- */

typedef struct lanes {
    int64_t from, to;
} lanes;

/* The lanes j of [0, n) for which low <= p + j < high. */
static lanes inside(int64_t p, int64_t n, int64_t low, int64_t high)
{
    const int64_t from = min_i64(max_i64(low - p, 0), n);
    return (lanes){from, max_i64(from, min_i64(high - p, n))};
}

/* One output run of n lanes at row byte offset x (lane 0, kernel column 0) and first input row y. */
static void window_run(const mera_simulator *s, const int64_t *f, int64_t y, int64_t x, int64_t n, const int8_t *weights,
                       int32_t *acc, int32_t *count, int8_t *most)
{
    const mera_kernels *k = ctx_kernels(s->object.ctx);
    const int64_t mode = f[WINDOW_mode], pad = f[WINDOW_pad];
    if (mode == 1)
        memset(most, -128, (size_t)n);
    else
        memset(acc, 0, 4 * (size_t)n);
    if (mode >= 2) memset(count, 0, 4 * (size_t)n);
    for (int64_t ky = 0; ky < f[WINDOW_kh]; ky++) {
        const int64_t row = y + ky * f[WINDOW_dy];
        const bool real = row >= 0 && row < f[WINDOW_in_rows], counted = row >= f[WINDOW_cy0] && row < f[WINDOW_cy1];
        for (int64_t kx = 0; kx < f[WINDOW_kw]; kx++) {
            const int64_t p = x + kx * f[WINDOW_dx];
            const lanes in = real ? inside(p, n, 0, f[WINDOW_in_row_bytes]) : (lanes){0, 0};
            /* lane in.from; a row that does not exist has no address */
            const int8_t *from =
                (const int8_t *)s->sram + (in.to > in.from ? f[WINDOW_in] + row * f[WINDOW_in_pitch] + p + in.from : 0);
            if (mode == 0) {
                const int8_t *w = weights + (ky * f[WINDOW_kw] + kx) * LANES;
                if (in.to > in.from) k->multiply_add_s8(in.to - in.from, from, w + in.from, acc + in.from);
                if (pad)
                    for (int64_t j = 0; j < n; j++) {
                        if (j == in.from && in.to > in.from) j = in.to;
                        if (j < n) acc[j] += (int32_t)pad * w[j];
                    }
            } else if (mode == 1) {
                for (int64_t j = in.from; j < in.to; j++)
                    most[j] = from[j - in.from] > most[j] ? from[j - in.from] : most[j];
            } else if (counted) {
                const lanes c = inside(p, n, f[WINDOW_cx0], f[WINDOW_cx1]);
                for (int64_t j = c.from; j < c.to; j++) count[j]++;
                for (int64_t j = c.from; j < c.to; j++)
                    acc[j] += j >= in.from && j < in.to ? from[j - in.from] : (int32_t)pad;
            }
        }
    }
}

/* Adds what the instructions before have kept; false if this one keeps its sums, too, and writes nothing. */
static bool carry(mera_simulator *s, const instr *i, int64_t n, int32_t *acc, int32_t *count)
{
    if (instr_first(i) && instr_last(i)) return true;
    const int64_t array = s->program->platform.array;
    int32_t *sums = s->window_sums + 2 * array * ((i->queue - QUEUE_UNITS) / UNIT_QUEUES), *counts = sums + array;
    for (int64_t j = 0; j < n && !instr_first(i); j++) {
        acc[j] = (int32_t)((uint32_t)acc[j] + (uint32_t)sums[j]);
        count[j] = (int32_t)((uint32_t)count[j] + (uint32_t)counts[j]);
    }
    memcpy(sums, acc, 4 * (size_t)n);
    memcpy(counts, count, 4 * (size_t)n);
    return instr_last(i);
}

static void exec_window(mera_simulator *s, const instr *i)
{
    const int64_t *f = i->f, mode = f[WINDOW_mode], channels = f[WINDOW_channels], taps = f[WINDOW_kh] * f[WINDOW_kw];
    const mera_kernels *k = ctx_kernels(s->object.ctx);
    int32_t *acc = (int32_t *)s->scratch, *count = acc + LANES, *bias = count + LANES, *multiplier = bias + LANES;
    int8_t *shift = (int8_t *)(multiplier + LANES), *most = shift + LANES, *weights = most + LANES;
    const uint8_t *param = s->sram + f[WINDOW_param];
    const int32_t zero = (int32_t)f[WINDOW_zero], low = (int32_t)f[WINDOW_low], high = (int32_t)f[WINDOW_high];
    const rescale mean = rescale_of(f[WINDOW_m_mean], f[WINDOW_s_mean]);
    for (int64_t lane = 0; lane < f[WINDOW_run]; lane += LANES) {
        const int64_t n = min_i64(LANES, f[WINDOW_run] - lane);
        for (int64_t j = 0; j < n && mode == 0; j++) {
            const int64_t c = (lane + j) % channels;
            memcpy(&bias[j], param + 4 * c, 4);
            memcpy(&multiplier[j], param + 4 * (channels + c), 4);
            multiplier[j] &= INT32_MAX;
            shift[j] = shift_of((int8_t)param[8 * channels + c]);
            for (int64_t t = 0; t < taps; t++) weights[t * LANES + j] = (int8_t)s->sram[f[WINDOW_w] + t * channels + c];
        }
        for (int64_t oy = 0; oy < f[WINDOW_oh]; oy++)
            for (int64_t ox = 0; ox < f[WINDOW_ow]; ox++) {
                int8_t *out = (int8_t *)s->sram + f[WINDOW_out] + oy * f[WINDOW_out_pitch] + ox * f[WINDOW_out_step] + lane;
                window_run(s, f, f[WINDOW_iy0] + oy * f[WINDOW_sy], f[WINDOW_ix0] + ox * f[WINDOW_sx] + lane, n, weights,
                           acc, count, most);
                if (!carry(s, i, n, acc, count)) continue;
                if (mode == 0) k->requantize(n, acc, bias, multiplier, shift, zero, low, high, out);
                for (int64_t j = 0; j < n && mode == 1; j++) out[j] = (int8_t)clamp_i32(most[j], low, high);
                for (int64_t j = 0; j < n && mode == 2; j++)
                    out[j] =
                        (int8_t)clamp_i32(count[j] ? rounding_divide(acc[j], count[j]) : (int32_t)f[WINDOW_pad], low, high);
                for (int64_t j = 0; j < n && mode == 3; j++)
                    out[j] = (int8_t)clamp_i32(
                        (int32_t)((uint32_t)apply_rescale(
                                      (int32_t)((uint32_t)acc[j] - (uint32_t)count[j] * (uint32_t)f[WINDOW_pad]), mean) +
                                  (uint32_t)zero),
                        low, high);
                if (f[WINDOW_lut]) look_up(s->sram + f[WINDOW_table], n, out);
            }
    }
}

/* ---- vector ---- */

static void vector_run(const mera_simulator *s, const int64_t *f, const int8_t *a, const int8_t *b, int64_t n, int8_t *out)
{
    const mera_kernels *k = ctx_kernels(s->object.ctx);
    const int32_t za = (int32_t)f[VECTOR_a_zero], zb = (int32_t)f[VECTOR_b_zero], zero = (int32_t)f[VECTOR_zero];
    const int32_t low = (int32_t)f[VECTOR_low], high = (int32_t)f[VECTOR_high];
    if (f[VECTOR_mode] == 0)
        memmove(out, a, (size_t)n);
    else if (f[VECTOR_mode] == 1)
        memset(out, (int)zero, (size_t)n);
    else if (f[VECTOR_mode] == 3)
        k->mul_s8(n, a, b, za, zb, zero, rescale_of(f[VECTOR_m_out], f[VECTOR_s_out]), low, high, out);
    else {
        const add_rescale r = {rescale_of(f[VECTOR_m_a], f[VECTOR_s_a]), rescale_of(f[VECTOR_m_b], f[VECTOR_s_b]),
                               rescale_of(f[VECTOR_m_out], f[VECTOR_s_out])};
        const add_rescale swapped = {r.b, r.a, r.y};
        if (f[VECTOR_neg_a])
            k->add_s8(n, b, a, zb, za, zero, -1, &swapped, low, high, out);
        else
            k->add_s8(n, a, b, za, zb, zero, f[VECTOR_neg_b] ? -1 : 1, &r, low, high, out);
    }
    if (f[VECTOR_lut]) look_up(s->sram + f[VECTOR_table], n, out);
}

static void exec_vector(mera_simulator *s, const instr *i)
{
    const int64_t *f = i->f;
    for (int64_t w = 0; w < f[VECTOR_n0]; w++)
        for (int64_t x = 0; x < f[VECTOR_n1]; x++)
            for (int64_t y = 0; y < f[VECTOR_n2]; y++)
                for (int64_t z = 0; z < f[VECTOR_n3]; z++) {
                    const int8_t *a = (const int8_t *)s->sram, *b = a;
                    if (f[VECTOR_mode] != 1)
                        a += f[VECTOR_a] + w * f[VECTOR_a0] + x * f[VECTOR_a1] + y * f[VECTOR_a2] + z * f[VECTOR_a3];
                    if (f[VECTOR_mode] >= 2)
                        b += f[VECTOR_b] + w * f[VECTOR_b0] + x * f[VECTOR_b1] + y * f[VECTOR_b2] + z * f[VECTOR_b3];
                    int8_t *out = (int8_t *)s->sram + f[VECTOR_out] + w * f[VECTOR_o0] + x * f[VECTOR_o1] +
                                  y * f[VECTOR_o2] + z * f[VECTOR_o3];
                    if (!f[VECTOR_b_scalar]) {
                        vector_run(s, f, a, b, f[VECTOR_run], out);
                        continue;
                    }
                    memset(s->scratch, *b, (size_t)min_i64(LANES, f[VECTOR_run]));
                    for (int64_t at = 0; at < f[VECTOR_run]; at += LANES)
                        vector_run(s, f, a + at, (const int8_t *)s->scratch, min_i64(LANES, f[VECTOR_run] - at), out + at);
                }
}

static void exec_resize(mera_simulator *s, const instr *i)
{
    const int64_t *f = i->f, run = f[RESIZE_run];
    const bool bilinear = f[RESIZE_mode] != 0;
    for (int64_t oy = 0; oy < f[RESIZE_oh]; oy++) {
        const resize_point y = resize_point_at(f[RESIZE_y0], f[RESIZE_dy], oy, f[RESIZE_in_rows], bilinear);
        const int8_t *top = (const int8_t *)s->sram + f[RESIZE_in] + y.first * f[RESIZE_in_pitch];
        const int8_t *bottom = top + (y.second - y.first) * f[RESIZE_in_pitch];
        for (int64_t ox = 0; ox < f[RESIZE_ow]; ox++) {
            const resize_point x = resize_point_at(f[RESIZE_x0], f[RESIZE_dx], ox, f[RESIZE_in_columns], bilinear);
            const int64_t left = x.first * f[RESIZE_in_step], right = x.second * f[RESIZE_in_step];
            const int8_t *const corner[2][2] = {{top + left, top + right}, {bottom + left, bottom + right}};
            int8_t *out = (int8_t *)s->sram + f[RESIZE_out] + oy * f[RESIZE_out_pitch] + ox * f[RESIZE_out_step];
            if (bilinear)
                interpolate_s8(run, corner, y.fraction, x.fraction, out);
            else
                memmove(out, corner[0][0], (size_t)run);
            if (f[RESIZE_lut]) look_up(s->sram + f[RESIZE_table], run, out);
        }
    }
}

static void exec_softmax(mera_simulator *s, const instr *i)
{
    const int64_t *f = i->f;
    int32_t table[256];
    memcpy(table, s->sram + f[SOFTMAX_table], sizeof table);
    for (int k = 0; k < 256; k++) table[k] &= INT32_MAX;
    for (int64_t a = 0; a < f[SOFTMAX_n0]; a++)
        for (int64_t b = 0; b < f[SOFTMAX_n1]; b++)
            softmax_s8(f[SOFTMAX_run], (int8_t *)s->sram + f[SOFTMAX_in] + a * f[SOFTMAX_a0] + b * f[SOFTMAX_a1], table,
                       (int8_t *)s->sram + f[SOFTMAX_out] + a * f[SOFTMAX_o0] + b * f[SOFTMAX_o1]);
}

size_t exec_scratch_bytes(const mera_program *p)
{
    size_t most = (size_t)LANES * (4 * sizeof(int32_t) + 2 + DNA_WINDOW_TAPS);
    for (int64_t n = 0; n < p->code_count; n++) {
        const int64_t *f = p->code[n].f;
        if (p->code[n].opcode != DNA_OP_CONV) continue;
        const int64_t depth = f[CONV_kh] * f[CONV_kw] * f[CONV_run];
        const size_t bytes =
            (size_t)(depth * f[CONV_co]) + (direct_stride(f) < 0 ? (size_t)(depth * f[CONV_oh] * f[CONV_ow]) : 0);
        if (bytes > most) most = bytes;
    }
    return most + 64;
}

void exec_instr(mera_simulator *s, const instr *i)
{
    switch ((dna_opcode)i->opcode) {
    case DNA_OP_LOAD:
        exec_move(s, i->f, true);
        break;
    case DNA_OP_STORE:
        exec_move(s, i->f, false);
        break;
    case DNA_OP_CONV:
        exec_conv(s, i);
        break;
    case DNA_OP_WINDOW:
        exec_window(s, i);
        break;
    case DNA_OP_VECTOR:
        exec_vector(s, i);
        break;
    case DNA_OP_RESIZE:
        exec_resize(s, i);
        break;
    case DNA_OP_SOFTMAX:
        exec_softmax(s, i);
        break;
    case DNA_OP_SYNC:
    case DNA_OPCODE_COUNT:
        break;
    }
}
