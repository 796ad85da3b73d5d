/* lower_window.c: depthwise convolution, pooling and mean on the window units. */
#include "compile.h"

typedef struct window_shape {
    int mode; /* of the instruction */
    int64_t kh, kw, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w;
    int64_t low, high, value; /* clamp, padding */
    bool count_padding;
} window_shape;

/* Channels [c0, c0 + channels) with their weights and parameters in a chunk of their own. */
typedef struct window_part {
    int64_t c0, channels, weights, params; /* offsets in the layer's constants */
} window_part;

static window_shape shape_of(const compiler *c, const layer *l)
{
    const graph_node *n = node_at(c, l->node);
    const int64_t *a = n->attrs, *x = tensor_at(c, n->inputs[0])->shape;
    const int64_t zero = tensor_at(c, n->inputs[0])->zero_point[0];
    switch (n->op) {
    case OP_CONV2D: {
        const int64_t *w = tensor_at(c, n->inputs[1])->shape;
        return (window_shape){0,
                              w[1],
                              w[2],
                              a[ATTR_CONV2D_stride_h],
                              a[ATTR_CONV2D_stride_w],
                              a[ATTR_CONV2D_pad_top],
                              a[ATTR_CONV2D_pad_left],
                              a[ATTR_CONV2D_pad_bottom],
                              a[ATTR_CONV2D_pad_right],
                              a[ATTR_CONV2D_dilation_h],
                              a[ATTR_CONV2D_dilation_w],
                              a[ATTR_CONV2D_clamp_min],
                              a[ATTR_CONV2D_clamp_max],
                              zero,
                              false};
    }
    case OP_MAX_POOL2D:
        return (window_shape){1,
                              a[ATTR_MAX_POOL2D_kernel_h],
                              a[ATTR_MAX_POOL2D_kernel_w],
                              a[ATTR_MAX_POOL2D_stride_h],
                              a[ATTR_MAX_POOL2D_stride_w],
                              a[ATTR_MAX_POOL2D_pad_top],
                              a[ATTR_MAX_POOL2D_pad_left],
                              a[ATTR_MAX_POOL2D_pad_bottom],
                              a[ATTR_MAX_POOL2D_pad_right],
                              a[ATTR_MAX_POOL2D_dilation_h],
                              a[ATTR_MAX_POOL2D_dilation_w],
                              a[ATTR_MAX_POOL2D_clamp_min],
                              a[ATTR_MAX_POOL2D_clamp_max],
                              -128,
                              false};
    case OP_AVG_POOL2D:
        return (window_shape){2,
                              a[ATTR_AVG_POOL2D_kernel_h],
                              a[ATTR_AVG_POOL2D_kernel_w],
                              a[ATTR_AVG_POOL2D_stride_h],
                              a[ATTR_AVG_POOL2D_stride_w],
                              a[ATTR_AVG_POOL2D_pad_top],
                              a[ATTR_AVG_POOL2D_pad_left],
                              a[ATTR_AVG_POOL2D_pad_bottom],
                              a[ATTR_AVG_POOL2D_pad_right],
                              1,
                              1,
                              a[ATTR_AVG_POOL2D_clamp_min],
                              a[ATTR_AVG_POOL2D_clamp_max],
                              zero,
                              a[ATTR_AVG_POOL2D_count_include_pad] != 0};
    default: /* OP_MEAN */
        return (window_shape){3,    x[1], x[2], 1, 1, 0, 0, 0, 0, 1, 1, a[ATTR_MEAN_clamp_min], a[ATTR_MEAN_clamp_max],
                              zero, false};
    }
}

/* Weights as [tap][channel], parameters as [bias][multiplier][shift], for each part; then the table. */
static mera_status pack(compiler *c, block *b, window_part *parts, int64_t count)
{
    const layer *l = b->l;
    const graph_node *n = node_at(c, l->node);
    int64_t bytes = 0;
    if (n->op == OP_CONV2D) {
        const int64_t *w = tensor_at(c, n->inputs[1])->shape;
        for (int64_t p = 0; p < count; p++) {
            parts[p].params = bytes;
            parts[p].weights = bytes + DNA_PARAM_BYTES * parts[p].channels;
            bytes = parts[p].weights + w[1] * w[2] * parts[p].channels;
        }
    }
    b->lut_offset = bytes;
    if (l->lut >= 0) bytes += 256;
    if (bytes == 0) return MERA_OK;
    int64_t offset;
    TRY(add_constant(c, NULL, bytes, &offset));
    uint8_t *out = c->constants.at + offset;
    if (l->lut >= 0) memcpy(out + b->lut_offset, tensor_at(c, node_at(c, l->lut)->inputs[1])->data, 256);
    if (n->op == OP_CONV2D) {
        const graph_tensor *x = tensor_at(c, n->inputs[0]), *w = tensor_at(c, n->inputs[1]), *y = tensor_at(c, n->output);
        const int32_t *bias = tensor_at(c, n->inputs[2])->data;
        const int64_t taps = w->shape[1] * w->shape[2];
        for (int64_t p = 0; p < count; p++)
            for (int64_t k = 0; k < parts[p].channels; k++) {
                const int64_t channel = parts[p].c0 + k, channels = parts[p].channels;
                const int8_t *row = (const int8_t *)w->data + channel * taps;
                uint32_t sum = 0;
                for (int64_t t = 0; t < taps; t++) {
                    sum += (uint32_t)(int32_t)row[t];
                    out[parts[p].weights + t * channels + k] = (uint8_t)row[t];
                }
                const int32_t value = (int32_t)((uint32_t)bias[channel] - (uint32_t)x->zero_point[0] * sum);
                const float scale = w->scale[w->scale_count > 1 ? channel : 0];
                const rescale r = rescale_from_real(conv_factor(x->scale[0], scale, y->scale[0]));
                const int8_t shift = (int8_t)r.shift;
                memcpy(out + parts[p].params + 4 * k, &value, 4);
                memcpy(out + parts[p].params + 4 * (channels + k), &r.multiplier, 4);
                memcpy(out + parts[p].params + 8 * channels + k, &shift, 1);
            }
    }
    return load_constant(c, b, offset, bytes, n->name, &b->param_buffer);
}

static mera_status emit(compiler *c, const block *b, const window_shape *s, const window_part *part, int unit, int64_t image,
                        int64_t y, int64_t rows)
{
    const layer *l = b->l;
    const graph_node *n = node_at(c, l->node);
    const graph_tensor *x = tensor_at(c, n->inputs[0]), *out = tensor_at(c, n->output);
    const operand *in = &b->in[0], *to = &b->out;
    const int64_t channels = x->shape[3], ow = out->shape[2];
    job *j;
    TRY(add_job(c, b, DNA_OP_WINDOW, layer_queue(c, b, unit, UNIT_WINDOW), &j));
    int64_t *f = j->i.f;
    f[WINDOW_mode] = s->mode;
    f[WINDOW_first] = f[WINDOW_last] = 1;
    job_address(j, WINDOW_in, in->buffer, in->offset + image * in->sn);
    f[WINDOW_in_rows] = in->rows;
    f[WINDOW_in_row_bytes] = (x->shape[2] - 1) * in->sw + channels;
    f[WINDOW_in_pitch] = in->sh;
    f[WINDOW_iy0] = y * s->stride_h - s->pad_top - in->y0;
    f[WINDOW_ix0] = -s->pad_left * in->sw + part->c0;
    f[WINDOW_oh] = rows;
    f[WINDOW_ow] = ow;
    f[WINDOW_run] = part->channels;
    f[WINDOW_sy] = s->stride_h;
    f[WINDOW_sx] = s->stride_w * in->sw;
    f[WINDOW_kh] = s->kh;
    f[WINDOW_kw] = s->kw;
    f[WINDOW_dy] = s->dilation_h;
    f[WINDOW_dx] = s->dilation_w * in->sw;
    f[WINDOW_pad] = s->value;
    const int64_t top = s->count_padding ? s->pad_top : 0, bottom = s->count_padding ? s->pad_bottom : 0;
    const int64_t left = s->count_padding ? s->pad_left : 0, right = s->count_padding ? s->pad_right : 0;
    f[WINDOW_cy0] = -top - in->y0;
    f[WINDOW_cy1] = x->shape[1] + bottom - in->y0;
    f[WINDOW_cx0] = -left * in->sw;
    f[WINDOW_cx1] = (x->shape[2] + right) * in->sw;
    f[WINDOW_channels] = part->channels;
    f[WINDOW_zero] = out->zero_point[0];
    f[WINDOW_low] = s->low;
    f[WINDOW_high] = s->high;
    if (s->mode == 3) {
        const rescale r = mean_rescale(x->scale[0], out->scale[0], n->attrs[ATTR_MEAN_sum] ? 1 : x->shape[1] * x->shape[2]);
        f[WINDOW_m_mean] = r.multiplier;
        f[WINDOW_s_mean] = r.shift;
    }
    if (s->mode == 0) {
        job_address(j, WINDOW_w, b->param_buffer, part->weights);
        job_address(j, WINDOW_param, b->param_buffer, part->params);
    }
    if (l->lut >= 0) {
        f[WINDOW_lut] = 1;
        job_address(j, WINDOW_table, b->param_buffer, b->lut_offset);
    }
    job_address(j, WINDOW_out, to->buffer, to->offset + image * to->sn + (y - to->y0) * to->sh + part->c0);
    f[WINDOW_out_pitch] = to->sh;
    f[WINDOW_out_step] = to->sw;
    /* Dense rows with stride 1 are one run: lanes cross pixel borders, none idles at C < W. Where C fills whole words a
     * pixel at a time is as good, and its weights are loaded once. */
    if (part->channels == channels && in->sw == channels && to->sw == channels && s->stride_w == 1 && ow > 1) {
        instr run = j->i;
        run.f[WINDOW_ow] = 1;
        run.f[WINDOW_run] = ow * channels;
        if (instr_cycles(&run, &c->platform) < instr_cycles(&j->i, &c->platform)) j->i = run;
    }
    return MERA_OK;
}

/* The mean of an image that lives in DRAM: a word of channels after the other, a few rows of it at a time; the window unit
 * keeps the sums in between. */
static mera_status lower_mean_slices(compiler *c, block *b, const window_shape *s)
{
    const graph_tensor *x = tensor_at(c, b->l->in[0]);
    const place *p = &c->places[b->l->in[0]];
    const int64_t h = x->shape[1], w = x->shape[2], channels = x->shape[3], units = b->l->units;
    int unit = 0;
    if (!b->state) {
        window_part none = {0};
        b->state = c;
        TRY(pack(c, b, &none, 1));
    }
    for (int64_t c0 = 0; c0 < channels; c0 += c->platform.array) {
        const int64_t lanes = min_i64(c->platform.array, channels - c0), row = w * lanes;
        const int64_t rows = min_i64(h, max_i64(1, c->platform.sram_bytes / 16 / units / row));
        for (int64_t y = 0; y < h; y += rows) {
            const int64_t some = min_i64(rows, h - y), count[3] = {1, some, w}, d[3] = {0, p->sh, p->sw},
                          t[3] = {0, row, lanes};
            const window_part part = {.channels = lanes};
            block slice = *b;
            slice.in[0] = (operand){.tensor = b->l->in[0], .sh = row, .sw = lanes, .rows = some};
            slice.out.offset += c0;
            TRY(add_buffer(c, BUFFER_STAGE, x->name, some * row, &slice.in[0].buffer));
            c->buffers.at[slice.in[0].buffer].load = (int64_t)c->jobs.count;
            TRY(add_move(c, b, true, c->roots.at[p->root].dram_buffer, p->offset + b->n0 * p->sn + y * p->sh + c0,
                         slice.in[0].buffer, 0, lanes, count, d, t));
            TRY(emit(c, &slice, s, &part, unit, 0, b->y0, 1));
            int64_t *f = c->jobs.at[c->jobs.count - 1].i.f;
            f[WINDOW_kh] = some;
            f[WINDOW_first] = y == 0;
            f[WINDOW_last] = y + some == h;
        }
        unit = (unit + 1) % (int)units;
    }
    return MERA_OK;
}

mera_status lower_window(compiler *c, block *b)
{
    const window_shape s = shape_of(c, b->l);
    if (s.mode == 3 && c->roots.at[c->places[b->l->in[0]].root].dram) return lower_mean_slices(c, b, &s);
    const int64_t channels = tensor_at(c, b->l->out)->shape[3], units = b->l->units, array = c->platform.array;
    const int64_t total = b->images * b->rows;
    /* Rows give the better split; with too few of them the lanes are split, too. */
    const int64_t row_parts = min_i64(units, total),
                  lane_parts = max_i64(1, min_i64(units / row_parts, ceil_div(channels, array)));
    window_part *parts = b->state;
    if (!parts) {
        b->state = parts = arena_array(&c->memory, (size_t)units, sizeof *parts);
        if (!parts) return out_of_memory(c->ctx);
        /* The first block decides for all: blocks differ in height only. */
        const int64_t words = ceil_div(channels, array);
        for (int64_t p = 0; p < lane_parts; p++) {
            parts[p].c0 = words * p / lane_parts * array;
            parts[p].channels = min_i64(channels, words * (p + 1) / lane_parts * array) - parts[p].c0;
        }
        TRY(pack(c, b, parts, lane_parts));
    }
    int64_t part_count = 0;
    while (part_count < units && parts[part_count].channels > 0) part_count++;
    /* A few rows an instruction: enough to hide the loading of weights, few enough for the next layer to start early. */
    const int64_t load = s.mode == 0 ? s.kh * s.kw + DNA_PARAM_BYTES : 0;
    const int64_t tall = max_i64(4, ceil_div(load, s.kw * ceil_div(s.kh, DNA_WINDOW_ROWS)) + 1);
    for (int64_t part = 0; part < row_parts; part++)
        for (int64_t row = total * part / row_parts, end = total * (part + 1) / row_parts; row < end;) {
            const int64_t image = row / b->rows, y = row % b->rows, left = min_i64(end - row, b->rows - y);
            const int64_t rows = ceil_div(left, max_i64(1, left / tall));
            for (int64_t p = 0; p < part_count; p++)
                TRY(emit(c, b, &s, &parts[p], (int)((part * lane_parts + p) % units), image, b->y0 + y, rows));
            row += rows;
        }
    return MERA_OK;
}
