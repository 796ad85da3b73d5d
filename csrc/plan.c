/* plan.c: where every root lives and in what blocks every layer works. All roots start in SRAM; while some layer needs
 * more than there is, the root whose traffic buys the most room goes to DRAM. */
#include "compile.h"

#define PACK_TRAFFIC 2.0 /* array cycles that a cycle of DRAM must save to be worth it, when pixels are packed */

bool layer_is_window(const compiler *c, const graph_node *n)
{
    const int64_t *w = tensor_at(c, n->inputs[1])->shape;
    const int64_t groups = n->attrs[ATTR_CONV2D_groups], ci = tensor_at(c, n->inputs[0])->shape[3];
    return groups == ci && w[0] == ci && ci > 1 && w[1] * w[2] <= DNA_WINDOW_TAPS &&
           !n->attrs[ATTR_CONV2D_float64_rescale]; /* the arrays' drain alone knows it */
}

int64_t conv_param_bytes(const graph_node *n)
{
    return n->attrs[ATTR_CONV2D_float64_rescale] ? DNA_PARAM64_BYTES : DNA_PARAM_BYTES;
}

int64_t const_limit(const compiler *c) { return max_i64(c->platform.sram_bytes / 8, 2048); }

/* Bytes of one kernel row's run that `pack` neighbouring pixels of a convolution read. */
static int64_t packed_run(const graph_node *n, const int64_t w[4], int64_t pack)
{
    return (w[2] + (pack - 1) * n->attrs[ATTR_CONV2D_stride_w]) * w[3];
}

/* Array cycles of a convolution of few output channels that computes `pack` pixels at once, on all units. */
static int64_t packed_cycles(const compiler *c, const layer *l, int64_t pack)
{
    const graph_node *n = node_at(c, l->node);
    const int64_t *w = tensor_at(c, n->inputs[1])->shape, *y = tensor_at(c, n->output)->shape;
    const int64_t pixels = ceil_div(y[0] * y[1] * y[2] / pack, c->platform.units);
    const int64_t tiles = ceil_div(pixels, DNA_ACCUMULATORS), load = ceil_div(pack * w[0], DNA_WEIGHT_ROWS_PER_CYCLE);
    return w[1] * ceil_div(packed_run(n, w, pack), c->platform.array) * tiles * max_i64(ceil_div(pixels, tiles), load);
}

int64_t conv_pack_gain(const compiler *c, const layer *l, int64_t *pack)
{
    const graph_node *n = node_at(c, l->node);
    const int64_t *w = tensor_at(c, n->inputs[1])->shape;
    const int64_t width = tensor_at(c, n->output)->shape[2], plain = w[0] * w[1] * w[2] * w[3];
    const double bytes_a_cycle = c->platform.dram_gbps * 1e3 / c->platform.clock_mhz;
    int64_t most = 0;
    if (pack) *pack = 1;
    if (n->attrs[ATTR_CONV2D_groups] > 1 || n->attrs[ATTR_CONV2D_dilation_w] > 1) return 0;
    for (int64_t p = 2; p * w[0] <= c->platform.array; p++) {
        const int64_t bytes = p * w[0] * w[1] * packed_run(n, w, p);
        if (width % p || bytes > const_limit(c)) continue;
        const int64_t more = bytes - plain + (p - 1) * w[0] * conv_param_bytes(n);
        const int64_t traffic = (int64_t)(PACK_TRAFFIC * (double)more / bytes_a_cycle);
        const int64_t gain = packed_cycles(c, l, 1) - packed_cycles(c, l, p) - traffic;
        if (gain <= most) continue;
        most = gain;
        if (pack) *pack = p;
    }
    return most;
}

conv_shape conv_shape_of(const compiler *c, const layer *l)
{
    const graph_node *n = node_at(c, l->node);
    const int64_t *w = tensor_at(c, n->inputs[1])->shape, groups = n->attrs[ATTR_CONV2D_groups], array = c->platform.array;
    const int64_t ci = w[3], co = w[0] / groups;
    const place *x = &c->places[l->in[0]];
    conv_shape s = {.taps_h = w[1], .group_merge = 1, .pack = 1};
    if (groups > 1) {
        const int64_t widest = max_i64(ci, co);
        if (widest <= array / 2) s.group_merge = min_i64(array / widest, groups);
        s.tile_count = co > array ? groups * ceil_div(co, array) : ceil_div(groups, s.group_merge);
    } else {
        s.tile_count = ceil_div(co, array);
    }
    s.merged = groups == 1 && n->attrs[ATTR_CONV2D_dilation_w] == 1 && (x->sw == ci || w[2] == 1);
    s.taps_w = s.merged ? 1 : w[2];
    s.run = s.merged ? w[2] * ci : ci * s.group_merge;
    /* Pixels can be packed where they follow each other on all sides. */
    if (x->sw == ci && c->places[l->out].sw == w[0] && (l->residual < 0 || c->places[l->residual].sw == w[0]))
        conv_pack_gain(c, l, &s.pack);
    if (s.pack > 1) s.run = packed_run(n, w, s.pack);
    return s;
}

conv_tile conv_tile_at(const compiler *c, const layer *l, const conv_shape *s, int64_t index)
{
    const graph_node *n = node_at(c, l->node);
    const int64_t *w = tensor_at(c, n->inputs[1])->shape, groups = n->attrs[ATTR_CONV2D_groups], array = c->platform.array;
    const int64_t ci = w[3], co = w[0] / groups;
    if (groups == 1) return (conv_tile){index * array, min_i64(array, s->pack * co - index * array), 0, ci};
    if (co > array) {
        const int64_t per = ceil_div(co, array), g = index / per, t = index % per;
        return (conv_tile){g * co + t * array, min_i64(array, co - t * array), g * ci, ci};
    }
    const int64_t g = index * s->group_merge, count = min_i64(s->group_merge, groups - g);
    return (conv_tile){g * co, count * co, g * ci, count * ci};
}

void layer_weight_bytes(const compiler *c, const layer *l, int64_t *least, int64_t *all)
{
    const graph_node *n = node_at(c, l->node);
    int64_t fixed = l->lut >= 0 ? 256 : 0;
    *least = *all = fixed;
    if (l->kind == LAYER_CONV) {
        const conv_shape s = conv_shape_of(c, l);
        const int64_t tile = s.taps_h * s.taps_w * s.run * c->platform.array;
        fixed += conv_param_bytes(n) * tensor_at(c, n->output)->shape[3] * s.pack;
        *least = fixed + min_i64(tile, const_limit(c));
        *all = fixed + tile * s.tile_count;
    } else if (l->kind == LAYER_WINDOW && n->op == OP_CONV2D) {
        *least = *all = fixed + tensor_at(c, n->inputs[1])->bytes + DNA_PARAM_BYTES * tensor_at(c, n->output)->shape[3];
    } else if (n->op == OP_SOFTMAX) {
        *least = *all = SOFTMAX_TABLE_BYTES;
    }
}

void layer_input_rows(const compiler *c, const layer *l, int k, int64_t o0, int64_t o1, int64_t *y0, int64_t *y1)
{
    const graph_node *n = node_at(c, l->node);
    const int32_t tensor = k == 2 ? l->residual : l->in[k];
    const int64_t h = tensor_at(c, tensor)->shape[1];
    *y0 = h == 1 ? 0 : o0;
    *y1 = h == 1 ? 1 : o1;
    if (k != 0) return;
    int64_t stride, pad, reach;
    switch (n->op) {
    case OP_CONV2D:
        stride = n->attrs[ATTR_CONV2D_stride_h];
        pad = n->attrs[ATTR_CONV2D_pad_top];
        reach = (tensor_at(c, n->inputs[1])->shape[1] - 1) * n->attrs[ATTR_CONV2D_dilation_h];
        break;
    case OP_MAX_POOL2D:
        stride = n->attrs[ATTR_MAX_POOL2D_stride_h];
        pad = n->attrs[ATTR_MAX_POOL2D_pad_top];
        reach = (n->attrs[ATTR_MAX_POOL2D_kernel_h] - 1) * n->attrs[ATTR_MAX_POOL2D_dilation_h];
        break;
    case OP_AVG_POOL2D:
        stride = n->attrs[ATTR_AVG_POOL2D_stride_h];
        pad = n->attrs[ATTR_AVG_POOL2D_pad_top];
        reach = n->attrs[ATTR_AVG_POOL2D_kernel_h] - 1;
        break;
    case OP_MEAN:
        *y0 = 0;
        *y1 = h;
        return;
    case OP_RESIZE_NEAREST:
    case OP_RESIZE_BILINEAR:
        resize_input_rows(c, l, o0, o1, y0, y1);
        return;
    default:
        return;
    }
    *y0 = min_i64(max_i64(0, o0 * stride - pad), h - 1);
    *y1 = max_i64(min_i64(h, (o1 - 1) * stride - pad + reach + 1), *y0 + 1);
}

/* ---- homes ---- */

static bool tensor_in_dram(const compiler *c, int32_t t) { return t >= 0 && c->roots.at[c->places[t].root].dram; }

/* Rows of operand k that a block of `rows` output rows needs at the most. */
static int64_t block_input_rows(const compiler *c, const layer *l, int k, int64_t rows)
{
    const int64_t h = tensor_at(c, l->out)->shape[1], middle = (h - rows) / 2;
    int64_t y0, y1, most = 0;
    if (l->kind != LAYER_RESIZE) { /* a block away from the borders needs the most */
        layer_input_rows(c, l, k, middle, middle + rows, &y0, &y1);
        return y1 - y0 + 1;
    }
    for (int64_t o = 0; o < h; o += rows) {
        layer_input_rows(c, l, k, o, min_i64(h, o + rows), &y0, &y1);
        most = max_i64(most, y1 - y0);
    }
    return most;
}

/* SRAM that the layer needs besides resident roots when it works in blocks of `rows` output rows (0: whole tensor). */
static int64_t stage_bytes(const compiler *c, const layer *l, int64_t rows)
{
    if (l->kind == LAYER_VIEW) return 0;
    if (l->kind == LAYER_COPY) {
        int64_t most = 0;
        for (size_t k = 0; k < l->pieces.count; k++) {
            const copy_piece *p = &l->pieces.at[k];
            const bool in = !p->fill && tensor_in_dram(c, p->in_tensor), out = tensor_in_dram(c, l->out);
            if ((in && out) || (p->fill && out)) most = max_i64(most, p->size[2] * p->size[3]);
        }
        return most;
    }
    int64_t bytes = 0;
    const graph_tensor *y = tensor_at(c, l->out);
    const int64_t o1 = min_i64(rows ? rows : y->shape[1], y->shape[1]);
    for (int k = 0; k < 3; k++) {
        const int32_t t = k == 2 ? l->residual : l->in[k];
        if (!tensor_in_dram(c, t)) continue;
        const int64_t *s = tensor_at(c, t)->shape;
        if (node_at(c, l->node)->op == OP_MEAN)
            bytes += s[2] * min_i64(s[3], c->platform.array); /* comes in slices */
        else
            bytes += min_i64(block_input_rows(c, l, k, o1), s[1]) * s[2] * s[3];
    }
    if (tensor_in_dram(c, l->out)) bytes += ceil_div(o1, layer_repeat(c, l)) * y->shape[2] * y->shape[3];
    return bytes;
}

static int64_t resident_bytes(const compiler *c, int32_t index)
{
    int64_t bytes = 0;
    for (size_t r = 0; r < c->roots.count; r++) {
        const root *x = &c->roots.at[r];
        if (!x->dram && x->first_layer <= index && x->last_layer >= index) bytes += ceil_div(x->bytes, 128) * 128;
    }
    return bytes;
}

static int64_t minimum_bytes(const compiler *c, int32_t index)
{
    const layer *l = &c->layers.at[index];
    int64_t least, all;
    if (l->kind == LAYER_VIEW) return 0;
    layer_weight_bytes(c, l, &least, &all);
    return least + stage_bytes(c, l, 1) + 1024;
}

static bool layer_touches(const compiler *c, const layer *l, int32_t root)
{
    if (l->kind == LAYER_VIEW) return false;
    if (c->places[l->out].root == root) return true;
    for (size_t k = 0; k < l->pieces.count; k++)
        if (!l->pieces.at[k].fill && c->places[l->pieces.at[k].in_tensor].root == root) return true;
    if (l->kind == LAYER_COPY) return false;
    return (l->in[0] >= 0 && c->places[l->in[0]].root == root) || (l->in[1] >= 0 && c->places[l->in[1]].root == root) ||
           (l->residual >= 0 && c->places[l->residual].root == root);
}

/* The DRAM bytes that sending the root to DRAM costs: one write, and one read a layer that uses it. */
static int64_t demotion_cost(const compiler *c, int32_t index)
{
    const root *r = &c->roots.at[index];
    int64_t cost = r->is_input || r->constant || r->is_output ? 0 : r->bytes;
    for (int32_t i = r->first_layer; i <= r->last_layer; i++)
        if (layer_touches(c, &c->layers.at[i], index)) cost += r->bytes;
    return cost - (r->is_input || r->constant || r->is_output ? r->bytes : 0);
}

static mera_status does_not_fit(compiler *c, int32_t index)
{
    const layer *l = &c->layers.at[index];
    const graph_node *n = node_at(c, l->node);
    return fail(c->ctx, MERA_DOES_NOT_FIT,
                "%s '%s' (layer '%s', %s): no tiling fits: one row of its operands at a time, with the weights of one tile, "
                "needs more than the %lld "
                "bytes of SRAM of platform %s; use one with more, a narrower input, or fewer channels",
                op_name(n->op), n->name, n->layer, n->source, (long long)c->platform.sram_bytes, c->platform.name);
}

static mera_status choose_homes(compiler *c)
{
    for (size_t r = 0; r < c->roots.count; r++) /* a root that no layer touches is only copied from DRAM to DRAM */
        if (c->roots.at[r].last_layer < 0 || c->roots.at[r].first_layer > c->roots.at[r].last_layer)
            c->roots.at[r].dram = true;
    for (;;) {
        int64_t worst = 0;
        int32_t at = -1;
        for (size_t i = 0; i < c->layers.count; i++) {
            if (c->layers.at[i].kind == LAYER_VIEW) continue;
            const int64_t over =
                resident_bytes(c, (int32_t)i) + minimum_bytes(c, (int32_t)i) - (c->platform.sram_bytes - c->slack);
            if (over > worst) {
                worst = over;
                at = (int32_t)i;
            }
        }
        if (at < 0) return MERA_OK;
        int32_t best = -1;
        double best_score = 0;
        for (size_t r = 0; r < c->roots.count; r++) {
            root *x = &c->roots.at[r];
            if (x->dram || x->first_layer > at || x->last_layer < at) continue;
            const int64_t before = stage_bytes(c, &c->layers.at[at], 1);
            x->dram = true;
            const int64_t gain = x->bytes - (stage_bytes(c, &c->layers.at[at], 1) - before);
            x->dram = false;
            if (gain <= 0) continue;
            const double score = (double)min_i64(gain, worst) / (double)(demotion_cost(c, (int32_t)r) + 1);
            if (score > best_score) {
                best_score = score;
                best = (int32_t)r;
            }
        }
        if (best < 0) return does_not_fit(c, at);
        c->roots.at[best].dram = true;
    }
}

/* ---- blocks ---- */

static mera_status choose_blocks(compiler *c)
{
    for (size_t i = 0; i < c->layers.count; i++) {
        layer *l = &c->layers.at[i];
        l->block_rows = 0;
        l->keep_weights = true;
        if (l->kind == LAYER_VIEW || l->kind == LAYER_COPY) continue;
        if (!tensor_in_dram(c, l->in[0]) && !tensor_in_dram(c, l->in[1]) && !tensor_in_dram(c, l->residual) &&
            !tensor_in_dram(c, l->out))
            continue;
        int64_t least, all;
        layer_weight_bytes(c, l, &least, &all);
        const int64_t room = c->platform.sram_bytes - c->slack - resident_bytes(c, (int32_t)i) - 1024;
        l->keep_weights = all <= room / 3;
        const int64_t weights = l->keep_weights ? all : min_i64(2 * least, max_i64(least, room / 3));
        const int64_t rows = tensor_at(c, l->out)->shape[1];
        int64_t low = 1, high = rows;
        if (c->options.max_tile_height > 0) high = min_i64(high, c->options.max_tile_height);
        /* Two blocks at a time, so that one moves while the other is worked on. */
        while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            if (2 * stage_bytes(c, l, middle) + weights <= room)
                low = middle;
            else
                high = middle - 1;
        }
        /* Several blocks even when one would do: the first one is soon there. */
        if (low == rows && rows >= 8 && l->keep_weights) low = ceil_div(rows, 4);
        const int64_t repeat = layer_repeat(c, l), all_rows = rows / repeat, some = max_i64(1, low / repeat);
        l->block_rows = ceil_div(all_rows, ceil_div(all_rows, some)) * repeat;
    }
    return MERA_OK;
}

mera_status stage_plan(compiler *c)
{
    for (size_t r = 0; r < c->roots.count; r++) c->roots.at[r].dram = false;
    TRY(choose_homes(c));
    return choose_blocks(c);
}
