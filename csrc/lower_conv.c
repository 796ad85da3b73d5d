/* lower_conv.c: convolutions and matrix products on the arrays. */
#include "compile.h"

/* A part of one tile's reduction that is loaded and worked on at once: rows [ky, ky + nky), columns [kx, kx + nkx), bytes
 * [r, r + nr) of a run. One piece is the whole tile unless the tile is too large. */
typedef struct piece {
    int64_t tile, ky, nky, kx, nkx, r, nr;
    int64_t offset; /* in its chunk */
    int32_t chunk;
    bool first, last;
} piece;

typedef struct chunk {
    int64_t dram, bytes;
    int32_t buffer; /* -1: not loaded */
} chunk;

typedef struct conv_state {
    conv_shape shape;
    VEC(piece) pieces;
    VEC(chunk) chunks;
    int64_t widest; /* output channels of the widest tile */
    int64_t bytes;  /* of all weights */
    bool split;     /* some tile has several pieces */
    bool keep;      /* loaded chunks stay until the layer ends */
} conv_state;

/* The part of the output that the instructions of a block cover, flattened to one column if pixels follow each other. */
typedef struct geometry {
    int64_t images, rows, ow;
    int64_t stride_h, stride_w, pad_top, pad_left;
    operand x, r, y;
    int64_t in_row_bytes;
    int64_t row0; /* the output row, of the tensor, that row 0 of a pixel tile is */
} geometry;

/* ---- weights ---- */

static void pack_piece(const compiler *c, const layer *l, const conv_shape *s, const piece *p, int8_t *out)
{
    const graph_node *n = node_at(c, l->node);
    const graph_tensor *w = tensor_at(c, n->inputs[1]);
    const int64_t kh = w->shape[1], kw = w->shape[2], ci = w->shape[3], array = c->platform.array;
    const int64_t groups = n->attrs[ATTR_CONV2D_groups], group_co = w->shape[0] / groups;
    const int64_t stride = n->attrs[ATTR_CONV2D_stride_w], extent = s->pack > 1 ? kw * ci : ci;
    const conv_tile t = conv_tile_at(c, l, s, p->tile);
    for (int64_t ky = p->ky; ky < p->ky + p->nky; ky++)
        for (int64_t kx = p->kx; kx < p->kx + p->nkx; kx++)
            for (int64_t at = 0; at < p->nr; at += array) {
                const int64_t length = min_i64(array, p->nr - at);
                for (int64_t o = 0; o < t.co; o++, out += length) {
                    const int64_t channel = (t.co0 + o) % w->shape[0], pixel = (t.co0 + o) / w->shape[0];
                    const int64_t own = s->pack > 1 ? pixel * stride * ci : channel / group_co * ci - t.ci0;
                    const int8_t *row = (const int8_t *)w->data + ((channel * kh + ky) * kw + (s->merged ? 0 : kx)) * ci;
                    if (s->group_merge == 1 && s->pack == 1) {
                        memcpy(out, row + p->r + at, (size_t)length);
                        continue;
                    }
                    /* Block-diagonal: column o sees only its own group's input channels, or its own pixel's taps. */
                    for (int64_t k = 0; k < length; k++) {
                        const int64_t byte = p->r + at + k - own;
                        out[k] = byte >= 0 && byte < extent ? row[byte] : 0;
                    }
                }
            }
}

static int64_t run_of(const conv_shape *s, const conv_tile *t) { return s->merged ? s->run : t->run_channels; }

static mera_status split_tile(compiler *c, conv_state *state, int64_t tile, const conv_tile *t)
{
    const conv_shape *s = &state->shape;
    const int64_t run = run_of(s, t), limit = const_limit(c), array = c->platform.array, tap = run * t->co,
                  row = tap * s->taps_w;
    const size_t start = state->pieces.count;
    int64_t nky = 1, nkx = s->taps_w, nr = run;
    if (row * s->taps_h <= limit)
        nky = s->taps_h;
    else if (row <= limit)
        nky = limit / row;
    else if (tap <= limit)
        nkx = limit / tap;
    else {
        nkx = 1;
        nr = max_i64(1, limit / t->co / array) * array;
    }
    for (int64_t ky = 0; ky < s->taps_h; ky += nky)
        for (int64_t kx = 0; kx < s->taps_w; kx += nkx)
            for (int64_t r = 0; r < run; r += nr) {
                const piece p = {.tile = tile,
                                 .ky = ky,
                                 .nky = min_i64(nky, s->taps_h - ky),
                                 .kx = kx,
                                 .nkx = min_i64(nkx, s->taps_w - kx),
                                 .r = r,
                                 .nr = min_i64(nr, run - r)};
                if (!vec_push(c->ctx, &state->pieces, p)) return out_of_memory(c->ctx);
            }
    state->pieces.at[start].first = true;
    state->pieces.at[state->pieces.count - 1].last = true;
    state->split = state->split || state->pieces.count - start > 1;
    return MERA_OK;
}

static int64_t piece_bytes(const compiler *c, const layer *l, const conv_shape *s, const piece *p)
{
    return p->nky * p->nkx * p->nr * conv_tile_at(c, l, s, p->tile).co;
}

static mera_status pack_weights(compiler *c, const layer *l, conv_state *state)
{
    for (int64_t t = 0; t < state->shape.tile_count; t++) {
        const conv_tile tile = conv_tile_at(c, l, &state->shape, t);
        state->widest = max_i64(state->widest, tile.co);
        TRY(split_tile(c, state, t, &tile));
    }
    for (size_t first = 0; first < state->pieces.count;) {
        int64_t bytes = 0;
        size_t end = first;
        while (end < state->pieces.count) {
            piece *p = &state->pieces.at[end];
            const int64_t more = piece_bytes(c, l, &state->shape, p);
            if (end > first && (state->split || bytes + more > c->chunk_bytes)) break;
            p->chunk = (int32_t)state->chunks.count;
            p->offset = bytes;
            bytes += more;
            end++;
        }
        chunk k = {.bytes = bytes, .buffer = -1};
        TRY(add_constant(c, NULL, bytes, &k.dram));
        for (size_t i = first; i < end; i++)
            pack_piece(c, l, &state->shape, &state->pieces.at[i],
                       (int8_t *)c->constants.at + k.dram + state->pieces.at[i].offset);
        if (!vec_push(c->ctx, &state->chunks, k)) return out_of_memory(c->ctx);
        state->bytes += bytes;
        first = end;
    }
    state->keep = l->block_rows ? l->keep_weights : !state->split || state->bytes <= c->platform.sram_bytes / 4;
    return MERA_OK;
}

/* Bias without the input's zero point, multiplier and shift (or factor) of each channel, a tile after the other; then the
 * table. */
static mera_status pack_params(compiler *c, block *b, const conv_shape *s)
{
    const layer *l = b->l;
    const graph_node *n = node_at(c, l->node);
    const graph_tensor *x = tensor_at(c, n->inputs[0]), *w = tensor_at(c, n->inputs[1]), *y = tensor_at(c, n->output);
    const int32_t *bias = tensor_at(c, n->inputs[2])->data;
    const int64_t co = s->pack * w->shape[0], taps = w->shape[1] * w->shape[2] * w->shape[3];
    int64_t offset;
    b->lut_offset = conv_param_bytes(n) * co;
    const int64_t bytes = b->lut_offset + (l->lut >= 0 ? 256 : 0);
    TRY(add_constant(c, NULL, bytes, &offset));
    uint8_t *out = c->constants.at + offset;
    for (int64_t t = 0; t < s->tile_count; t++) {
        const conv_tile tile = conv_tile_at(c, l, s, t);
        uint8_t *at = out + conv_param_bytes(n) * tile.co0;
        for (int64_t o = 0; o < tile.co; o++) {
            const int64_t channel = (tile.co0 + o) % w->shape[0];
            const int8_t *row = (const int8_t *)w->data + channel * taps;
            uint32_t sum = 0;
            for (int64_t k = 0; k < taps; k++) sum += (uint32_t)(int32_t)row[k];
            const int32_t value = (int32_t)((uint32_t)bias[channel] - (uint32_t)x->zero_point[0] * sum);
            const double real = conv_factor(x->scale[0], w->scale[w->scale_count > 1 ? channel : 0], y->scale[0]);
            memcpy(at + 4 * o, &value, 4);
            if (n->attrs[ATTR_CONV2D_float64_rescale]) {
                memcpy(at + 4 * tile.co + 8 * o, &real, 8);
                continue;
            }
            const rescale r = rescale_from_real(real);
            const int8_t shift = (int8_t)r.shift;
            memcpy(at + 4 * tile.co + 4 * o, &r.multiplier, 4);
            memcpy(at + 8 * tile.co + o, &shift, 1);
        }
    }
    if (l->lut >= 0) memcpy(out + b->lut_offset, tensor_at(c, node_at(c, l->lut)->inputs[1])->data, 256);
    return load_constant(c, b, offset, bytes, n->name, &b->param_buffer);
}

/* ---- split over units ---- */

typedef struct split {
    int64_t channel_groups, row_parts;
} split;

/* Rows of a pixel tile. Tiles that still hide the loading of their weights, but no larger: the next layer can begin with
 * them, and a unit is soon free for what others wait for. Weights that come from DRAM for every tile want few tiles. */
static int64_t tile_rows(const compiler *c, const conv_state *state, int64_t ow)
{
    const bool reloads = state->split && !state->keep;
    const int64_t pixels = reloads ? DNA_ACCUMULATORS : min_i64(DNA_ACCUMULATORS, 2 * c->platform.array);
    int64_t rows = max_i64(1, pixels / ow);
    if (c->options.max_acc_tile_height > 0 && ow > 1) rows = min_i64(rows, c->options.max_acc_tile_height);
    return rows;
}

static int64_t tile_columns(const compiler *c, int64_t ow)
{
    int64_t most = DNA_ACCUMULATORS;
    if (c->options.max_acc_tile_width > 0) most = min_i64(most, c->options.max_acc_tile_width);
    if (c->options.max_tile_width > 0) most = min_i64(most, c->options.max_tile_width);
    return ceil_div(ow, ceil_div(ow, most));
}

/* Array cycles of the busiest unit, from the datapath alone. */
static int64_t split_cycles(const compiler *c, const conv_state *state, const geometry *g, split s)
{
    const int64_t rows = ceil_div(g->images * g->rows, s.row_parts), columns = tile_columns(c, g->ow);
    const int64_t tall = tile_rows(c, state, columns), count = ceil_div(rows, tall) * ceil_div(g->ow, columns);
    const int64_t pixels = ceil_div(rows * g->ow, count), array = c->platform.array;
    const int64_t steps = state->shape.taps_h * state->shape.taps_w * ceil_div(state->shape.run, array);
    const int64_t load = ceil_div(state->widest, DNA_WEIGHT_ROWS_PER_CYCLE);
    return ceil_div(state->shape.tile_count, s.channel_groups) * count * steps * max_i64(pixels, load);
}

/* Array cycles of all units together. */
static int64_t split_work(const compiler *c, const conv_state *state, const geometry *g, split s)
{
    const int64_t columns = tile_columns(c, g->ow), tall = tile_rows(c, state, columns), total = g->images * g->rows;
    const int64_t load = ceil_div(state->widest, DNA_WEIGHT_ROWS_PER_CYCLE);
    int64_t cycles = 0;
    for (int64_t p = 0; p < s.row_parts; p++) {
        const int64_t rows = total * (p + 1) / s.row_parts - total * p / s.row_parts;
        const int64_t count = ceil_div(rows, tall) * ceil_div(g->ow, columns);
        cycles += max_i64(rows * g->ow, count * load);
    }
    return cycles * state->shape.tile_count;
}

/* The split with which the layer is done soonest; or, if other networks can use the units that it leaves, the one with the
 * least work among those, and of these the one with which it is done soonest. */
static split choose_split(const compiler *c, const conv_state *state, const geometry *g, int64_t units)
{
    split best = {1, 1};
    int64_t least = INT64_MAX, least_work = INT64_MAX;
    for (int64_t groups = 1; groups <= min_i64(units, state->shape.tile_count); groups++)
        for (int64_t most = units / groups, parts = c->economical ? 1 : most; parts <= most; parts++) {
            const split s = {groups, min_i64(parts, g->images * g->rows)};
            const int64_t cycles = split_cycles(c, state, g, s), work = c->economical ? split_work(c, state, g, s) : 0;
            if (work > least_work || (work == least_work && cycles >= least)) continue;
            least_work = work;
            least = cycles;
            best = s;
        }
    return best;
}

/* ---- instructions ---- */

typedef struct pixel_tile {
    int64_t image, y, rows, x, columns;
} pixel_tile;

static void fill_drain(const compiler *c, const block *b, const geometry *g, const conv_tile *t, const pixel_tile *p, job *j)
{
    const layer *l = b->l;
    const graph_node *n = node_at(c, l->node);
    const graph_tensor *y = tensor_at(c, n->output);
    int64_t *f = j->i.f;
    f[CONV_float64] = n->attrs[ATTR_CONV2D_float64_rescale];
    job_address(j, CONV_param, b->param_buffer, conv_param_bytes(n) * t->co0);
    f[CONV_zero] = y->zero_point[0];
    f[CONV_low] = n->attrs[ATTR_CONV2D_clamp_min];
    f[CONV_high] = n->attrs[ATTR_CONV2D_clamp_max];
    job_address(j, CONV_out, g->y.buffer,
                g->y.offset + p->image * g->y.sn + (g->row0 + p->y - g->y.y0) * g->y.sh + p->x * g->y.sw + t->co0);
    f[CONV_out_pitch] = g->y.sh;
    f[CONV_out_step] = g->y.sw;
    if (l->lut >= 0) {
        f[CONV_lut] = 1;
        job_address(j, CONV_table, b->param_buffer, b->lut_offset);
    }
    if (l->add < 0) return;
    const graph_node *a = node_at(c, l->add);
    const graph_tensor *res = tensor_at(c, l->residual), *sum = tensor_at(c, a->output);
    const add_rescale r = add_rescale_from_scales(y->scale[0], res->scale[0], sum->scale[0]);
    const int low = a->op == OP_ADD ? ATTR_ADD_clamp_min : ATTR_SUB_clamp_min;
    f[CONV_add] = 1;
    job_address(j, CONV_res, g->r.buffer,
                g->r.offset + p->image * g->r.sn + (g->row0 + p->y - g->r.y0) * g->r.sh + p->x * g->r.sw + t->co0);
    f[CONV_res_pitch] = g->r.sh;
    f[CONV_res_step] = g->r.sw;
    f[CONV_res_zero] = res->zero_point[0];
    f[CONV_m_conv] = r.a.multiplier;
    f[CONV_s_conv] = r.a.shift;
    f[CONV_m_res] = r.b.multiplier;
    f[CONV_s_res] = r.b.shift;
    f[CONV_m_add] = r.y.multiplier;
    f[CONV_s_add] = r.y.shift;
    f[CONV_neg_conv] = a->op == OP_SUB && a->inputs[1] == l->conv_out;
    f[CONV_neg_res] = a->op == OP_SUB && a->inputs[0] == l->conv_out;
    f[CONV_add_zero] = sum->zero_point[0];
    f[CONV_add_low] = a->attrs[low];
    f[CONV_add_high] = a->attrs[low + 1];
}

static mera_status emit(compiler *c, block *b, conv_state *state, const geometry *g, const piece *k, const pixel_tile *p,
                        int unit)
{
    const layer *l = b->l;
    const graph_node *n = node_at(c, l->node);
    const conv_tile t = conv_tile_at(c, l, &state->shape, k->tile);
    chunk *weights = &state->chunks.at[k->chunk];
    if (weights->buffer < 0) TRY(load_constant(c, b, weights->dram, weights->bytes, n->name, &weights->buffer));
    job *j;
    TRY(add_job(c, b, DNA_OP_CONV, layer_queue(c, b, unit, UNIT_ARRAY), &j));
    int64_t *f = j->i.f;
    const int64_t dilation_h = n->attrs[ATTR_CONV2D_dilation_h], dilation_w = n->attrs[ATTR_CONV2D_dilation_w],
                  array = c->platform.array;
    f[CONV_first] = k->first;
    f[CONV_last] = k->last;
    job_address(j, CONV_in, g->x.buffer, g->x.offset + p->image * g->x.sn);
    f[CONV_in_rows] = g->x.rows;
    f[CONV_in_row_bytes] = g->in_row_bytes;
    f[CONV_in_pitch] = g->x.sh;
    f[CONV_iy0] = (g->row0 + p->y) * g->stride_h - g->pad_top + k->ky * dilation_h - g->x.y0;
    f[CONV_ix0] =
        (p->x * g->stride_w - g->pad_left + (state->shape.merged ? 0 : k->kx * dilation_w)) * g->x.sw + t.ci0 + k->r;
    f[CONV_oh] = p->rows;
    f[CONV_ow] = p->columns;
    f[CONV_sy] = g->stride_h;
    f[CONV_sx] = g->stride_w * g->x.sw;
    f[CONV_kh] = k->nky;
    f[CONV_kw] = k->nkx;
    f[CONV_dy] = dilation_h;
    f[CONV_dx] = state->shape.merged ? 0 : dilation_w * g->x.sw;
    f[CONV_run] = k->nr;
    f[CONV_pad] = tensor_at(c, n->inputs[0])->zero_point[0];
    job_address(j, CONV_w, weights->buffer, k->offset);
    f[CONV_w_chunk] = t.co * array;
    f[CONV_w_tap] = t.co * k->nr;
    f[CONV_co] = t.co;
    if (k->last) fill_drain(c, b, g, &t, p, j);
    return MERA_OK;
}

/* The pieces of one tile on one pixel tile; split tiles load their weights again for every pixel tile. */
static mera_status emit_tile(compiler *c, block *b, conv_state *state, const geometry *g, size_t first, size_t end,
                             const pixel_tile *p, int unit)
{
    for (size_t k = first; k < end; k++) TRY(emit(c, b, state, g, &state->pieces.at[k], p, unit));
    if (end - first > 1 && !state->keep)
        for (size_t k = first; k < end; k++) state->chunks.at[state->pieces.at[k].chunk].buffer = -1;
    return MERA_OK;
}

typedef VEC(pixel_tile) tile_vec;

static mera_status cut_part(compiler *c, const conv_state *state, const geometry *g, int64_t row0, int64_t row1,
                            tile_vec *tiles)
{
    const int64_t columns = tile_columns(c, g->ow), tall = tile_rows(c, state, columns);
    for (int64_t row = row0; row < row1;) {
        const int64_t image = row / g->rows, y0 = row % g->rows, y1 = min_i64(g->rows, y0 + row1 - row);
        const int64_t step = ceil_div(y1 - y0, ceil_div(y1 - y0, tall));
        for (int64_t y = y0; y < y1; y += step)
            for (int64_t x = 0; x < g->ow; x += columns) {
                const pixel_tile p = {image, y, min_i64(step, y1 - y), x, min_i64(columns, g->ow - x)};
                if (!vec_push(c->ctx, tiles, p)) return out_of_memory(c->ctx);
            }
        row += y1 - y0;
    }
    return MERA_OK;
}

static mera_status emit_all(compiler *c, block *b, conv_state *state, const geometry *g, split s, tile_vec *parts)
{
    const size_t count = state->pieces.count;
    const bool rows_outer = !state->split && state->keep && state->bytes <= c->platform.sram_bytes / 8;
    size_t longest = 0;
    for (int64_t part = 0; part < s.row_parts; part++) longest = parts[part].count > longest ? parts[part].count : longest;
    if (rows_outer) { /* rows finish one after the other, so that the next layer can begin */
        for (size_t k = 0; k < longest; k++)
            for (int64_t part = 0; part < s.row_parts; part++)
                for (size_t i = 0; i < count && k < parts[part].count; i++)
                    TRY(emit_tile(c, b, state, g, i, i + 1, &parts[part].at[k],
                                  (int)(state->pieces.at[i].tile % s.channel_groups * s.row_parts + part)));
        return MERA_OK;
    }
    for (size_t first = 0; first < count;) { /* a chunk of weights is used up as soon as it is there */
        size_t end = first + 1;
        while (!state->pieces.at[end - 1].last) end++;
        const int group = (int)(state->pieces.at[first].tile % s.channel_groups);
        for (int64_t part = 0; part < s.row_parts; part++)
            for (size_t k = 0; k < parts[part].count; k++)
                TRY(emit_tile(c, b, state, g, first, end, &parts[part].at[k], (int)(group * s.row_parts + part)));
        first = end;
    }
    return MERA_OK;
}

/* Pixels of a 1x1 convolution need no rows: if they follow each other everywhere, they become one column. */
static bool can_flatten(const compiler *c, const block *b, const geometry *g)
{
    const int64_t *k = tensor_at(c, node_at(c, b->l->node)->inputs[1])->shape;
    if (k[1] != 1 || k[2] != 1 || g->stride_h != 1 || g->stride_w != 1 || g->pad_top || g->pad_left) return false;
    const operand *all[3] = {&g->x, &g->y, b->has_residual ? &g->r : &g->y};
    for (int i = 0; i < 3; i++) {
        const operand *o = all[i];
        if (o->sh != g->ow * o->sw && g->rows > 1) return false;
        if (g->images > 1 && o->sn != g->rows * g->ow * o->sw) return false;
    }
    const int64_t *in = tensor_at(c, b->l->in[0])->shape, *out = tensor_at(c, b->l->out)->shape;
    return in[1] == out[1] && in[2] == out[2];
}

static void flatten(geometry *g, const block *b)
{
    operand *all[3] = {&g->x, &g->y, &g->r};
    for (int i = 0; i < 3; i++) {
        operand *o = all[i];
        o->offset += (b->y0 - o->y0) * o->sh;
        o->sh = o->sw;
        o->y0 = 0;
    }
    g->x.rows = g->images * g->rows * g->ow;
    g->rows = g->x.rows;
    g->images = g->ow = 1;
    g->row0 = 0;
}

/* The same with `pack` pixels as one: a row has fewer of them, which lie further apart. */
static void pack_pixels(geometry *g, int64_t pack, bool flat)
{
    g->ow /= pack;
    g->stride_w *= pack;
    g->y.sw *= pack;
    g->r.sw *= pack;
    if (flat) g->x.sw *= pack;
}

void free_conv_state(compiler *c, block *b)
{
    conv_state *state = b->state;
    if (!state) return;
    vec_free(c->ctx, &state->pieces);
    vec_free(c->ctx, &state->chunks);
}

mera_status lower_conv(compiler *c, block *b)
{
    const graph_node *n = node_at(c, b->l->node);
    const int64_t *in = tensor_at(c, b->l->in[0])->shape, *out = tensor_at(c, b->l->out)->shape;
    conv_state *state = b->state;
    const bool first = !state;
    if (first) {
        b->state = state = ARENA_NEW(&c->memory, conv_state);
        if (!state) return out_of_memory(c->ctx);
        state->shape = conv_shape_of(c, b->l);
        TRY(pack_weights(c, b->l, state));
        TRY(pack_params(c, b, &state->shape));
    } else if (!state->keep) {
        for (size_t k = 0; k < state->chunks.count; k++) state->chunks.at[k].buffer = -1;
    }
    geometry g = {.images = b->images,
                  .rows = b->rows,
                  .ow = out[2],
                  .stride_h = n->attrs[ATTR_CONV2D_stride_h],
                  .stride_w = n->attrs[ATTR_CONV2D_stride_w],
                  .pad_top = n->attrs[ATTR_CONV2D_pad_top],
                  .pad_left = n->attrs[ATTR_CONV2D_pad_left],
                  .x = b->in[0],
                  .r = b->residual,
                  .y = b->out,
                  .row0 = b->y0};
    const bool flat = can_flatten(c, b, &g);
    g.in_row_bytes = flat ? state->shape.pack * in[3] : (in[2] - 1) * g.x.sw + in[3];
    pack_pixels(&g, state->shape.pack, flat);
    if (flat) flatten(&g, b);
    const split s = choose_split(c, state, &g, b->l->units);
    if (first && c->economical) { /* on the units that have waited longest for work */
        b->l->first_unit = c->next_unit;
        c->next_unit = (int32_t)((c->next_unit + s.channel_groups * s.row_parts) % c->platform.units);
    }
    tile_vec parts[MAX_UNITS] = {0};
    mera_status status = MERA_OK;
    const int64_t total = g.images * g.rows;
    for (int64_t p = 0; p < s.row_parts && status == MERA_OK; p++)
        status = cut_part(c, state, &g, total * p / s.row_parts, total * (p + 1) / s.row_parts, &parts[p]);
    if (status == MERA_OK) status = emit_all(c, b, state, &g, s, parts);
    for (int p = 0; p < MAX_UNITS; p++) vec_free(c->ctx, &parts[p]);
    return status;
}
