/* fuse.c: graph -> layers. Residual additions and tables join the drain of the layer in front of them; concatenations,
 * slices and reshapes become views wherever strides can say it; elementwise results take over an operand's memory. */
#include "compile.h"

#define COPY_CYCLES 2 /* array cycles that a cycle of copying must save to be worth it */

/* How a tensor lies in another one: at `index` along `axis`, with its strides; or densely from its start. */
typedef struct link {
    int32_t parent; /* -1: a root of its own */
    int axis;
    int64_t index;
    bool dense;
} link;

typedef struct fuser {
    compiler *c;
    link *links;       /* a tensor each */
    int32_t *made_by;  /* layer that produces the tensor, or -1 */
    int32_t *last_use; /* layer that reads the tensor last, or -1 */
    bool *copied;      /* CONCAT members: (node, input) pairs are kept in the layer instead */
} fuser;

static layer new_layer(layer_kind kind, int32_t node)
{
    return (layer){
        .kind = kind, .node = node, .add = -1, .lut = -1, .in = {-1, -1}, .residual = -1, .out = -1, .conv_out = -1};
}

static bool same_shape(const compiler *c, int32_t a, int32_t b)
{
    return !memcmp(tensor_at(c, a)->shape, tensor_at(c, b)->shape, sizeof tensor_at(c, a)->shape);
}

static bool used_once(const compiler *c, int32_t t) { return tensor_at(c, t)->uses == 1 && !tensor_at(c, t)->is_output; }

/* The layer that can take node n (add, sub or lut) into its drain through operand t; -1 if none. */
static int32_t host_layer(const fuser *f, int32_t t, bool addition)
{
    const compiler *c = f->c;
    const int32_t index = f->made_by[t];
    if (index < 0 || !used_once(c, t)) return -1;
    const layer *l = &c->layers.at[index];
    if (l->lut >= 0) return -1;
    if (node_at(c, l->node)->op == OP_SOFTMAX) return -1; /* its table takes the place */
    if (addition) return l->kind == LAYER_CONV && l->add < 0 ? index : -1;
    return l->kind == LAYER_COPY || l->kind == LAYER_VIEW ? -1 : index;
}

static mera_status push_layer(fuser *f, layer l)
{
    l.index = (int32_t)f->c->layers.count;
    l.units = f->c->platform.units;
    if (!vec_push(f->c->ctx, &f->c->layers, l)) return out_of_memory(f->c->ctx);
    f->made_by[l.out] = (int32_t)f->c->layers.count - 1;
    return MERA_OK;
}

static mera_status add_node(fuser *f, int32_t index)
{
    compiler *c = f->c;
    const graph_node *n = node_at(c, index);
    layer l = new_layer(LAYER_COPY, index);
    l.in[0] = n->inputs[0];
    l.out = n->output;
    switch (n->op) {
    case OP_CONV2D:
        l.kind = layer_is_window(c, n) ? LAYER_WINDOW : LAYER_CONV;
        break;
    case OP_MAX_POOL2D:
    case OP_AVG_POOL2D:
    case OP_MEAN:
        l.kind = LAYER_WINDOW;
        break;
    case OP_SOFTMAX:
        l.kind = LAYER_VECTOR;
        break;
    case OP_RESIZE_NEAREST:
    case OP_RESIZE_BILINEAR:
        l.kind = LAYER_RESIZE;
        break;
    case OP_LUT: {
        const int32_t host = host_layer(f, n->inputs[0], false);
        if (host >= 0) {
            c->layers.at[host].lut = index;
            c->layers.at[host].out = n->output;
            f->made_by[n->output] = host;
            return MERA_OK;
        }
        l.kind = LAYER_VECTOR;
        l.lut = index;
        break;
    }
    case OP_ADD:
    case OP_SUB: {
        const int32_t a = n->inputs[0], b = n->inputs[1];
        if (a != b && same_shape(c, a, b)) {
            const int32_t from_a = host_layer(f, a, true), from_b = host_layer(f, b, true);
            const int32_t host = from_a > from_b ? from_a : from_b;
            if (host >= 0) {
                /* The convolution moves behind everything so far: its residual is there by then. */
                layer moved = c->layers.at[host];
                c->layers.at[host].kind = LAYER_VIEW;
                c->layers.at[host].out = -1;
                moved.add = index;
                moved.conv_out = moved.out;
                moved.residual = host == from_a ? b : a;
                moved.out = n->output;
                return push_layer(f, moved);
            }
        }
        l.kind = LAYER_VECTOR;
        l.in[1] = b;
        break;
    }
    case OP_MUL:
        l.kind = LAYER_VECTOR;
        l.in[1] = n->inputs[1];
        break;
    default:
        break;
    }
    return push_layer(f, l);
}

/* ---- places ---- */

/* Whether concat `n` begins with exactly the inputs of concat `earlier`, along the same axis. */
static bool is_prefix(const graph_node *earlier, const graph_node *n)
{
    if (earlier->attrs[ATTR_CONCAT_axis] != n->attrs[ATTR_CONCAT_axis] || earlier->input_count >= n->input_count)
        return false;
    return !memcmp(earlier->inputs, n->inputs, sizeof *n->inputs * (size_t)earlier->input_count);
}

/* Whether producers can write tensor t straight into a concatenation. */
static bool can_link(const fuser *f, int32_t t)
{
    const graph_tensor *x = tensor_at(f->c, t);
    if (f->links[t].parent >= 0 || x->is_input || x->is_output || x->data || f->made_by[t] < 0) return false;
    const layer *l = &f->c->layers.at[f->made_by[t]];
    if (l->kind != LAYER_COPY) return true;
    const dna_op op = node_at(f->c, l->node)->op;
    return op != OP_RESHAPE && op != OP_SLICE;
}

static void link_concats(fuser *f)
{
    compiler *c = f->c;
    for (size_t i = 0; i < c->graph->nodes.count; i++) {
        const graph_node *n = node_at(c, (int32_t)i);
        if (n->op == OP_RESHAPE && tensor_at(c, n->output)->is_output && used_once(c, n->inputs[0]) &&
            can_link(f, n->inputs[0]))
            f->links[n->inputs[0]] = (link){n->output, 0, 0, true};
        if (n->op != OP_CONCAT) continue;
        const int axis = (int)n->attrs[ATTR_CONCAT_axis];
        int32_t from = 0;
        int64_t index = 0;
        for (size_t k = i; k-- > 0;) {
            const graph_node *e = node_at(c, (int32_t)k);
            if (e->op != OP_CONCAT || !is_prefix(e, n) || f->links[e->output].parent >= 0 ||
                tensor_at(c, e->output)->is_output)
                continue;
            f->links[e->output] = (link){n->output, axis, 0, false};
            from = e->input_count;
            index = tensor_at(c, e->output)->shape[axis];
            break;
        }
        for (int32_t k = from; k < n->input_count; k++) {
            if (can_link(f, n->inputs[k])) f->links[n->inputs[k]] = (link){n->output, axis, index, false};
            index += tensor_at(c, n->inputs[k])->shape[axis];
        }
    }
}

/* A convolution that computes several pixels at once (see conv_shape) must write them side by side, which a concatenation
 * over channels forbids. Where that saves the arrays more than a copy costs, the tensor gets memory of its own. */
static void unlink_packed(fuser *f)
{
    compiler *c = f->c;
    for (size_t i = 0; i < c->layers.count; i++) {
        const layer *l = &c->layers.at[i];
        if (l->kind != LAYER_CONV || l->out < 0) continue;
        const int64_t *s = tensor_at(c, l->out)->shape;
        link *k = &f->links[l->out];
        if (k->parent < 0 || k->dense || tensor_at(c, k->parent)->shape[3] == s[3] || f->links[l->in[0]].parent >= 0 ||
            (l->residual >= 0 && f->links[l->residual].parent >= 0) ||
            tensor_at(c, l->out)->bytes > c->platform.sram_bytes / 8)
            continue;
        const int64_t copy = ceil_div(s[0] * s[1] * s[2], c->platform.units) * ceil_div(s[3], c->platform.array);
        if (conv_pack_gain(c, l, NULL) > COPY_CYCLES * copy) k->parent = -1;
    }
}

static mera_status own_root(fuser *f, int32_t t)
{
    compiler *c = f->c;
    const graph_tensor *x = tensor_at(c, t);
    root r = {.tensor = t,
              .bytes = x->bytes,
              .constant = x->data != NULL,
              .is_input = x->is_input,
              .is_output = x->is_output,
              .first_layer = INT32_MAX,
              .last_layer = -1,
              .buffer = -1,
              .dram_buffer = -1};
    memcpy(r.shape, x->shape, sizeof r.shape);
    if (!vec_push(c->ctx, &c->roots, r)) return out_of_memory(c->ctx);
    c->places[t] = (place){(int32_t)c->roots.count - 1, 0, x->shape[1] * x->shape[2] * x->shape[3],
                           x->shape[2] * x->shape[3], x->shape[3]};
    return MERA_OK;
}

static void place_in(compiler *c, int32_t t, const place *parent, const link *k)
{
    const int64_t *s = tensor_at(c, t)->shape;
    const int64_t stride[4] = {parent->sn, parent->sh, parent->sw, 1};
    c->places[t] =
        k->dense ? (place){parent->root, parent->offset, s[1] * s[2] * s[3], s[2] * s[3], s[3]}
                 : (place){parent->root, parent->offset + k->index * stride[k->axis], parent->sn, parent->sh, parent->sw};
}

/* Whether layer i may write its result over operand t: nobody needs t's root afterwards, and no other operand of the
 * layer lies in it. */
static bool can_overwrite(const fuser *f, const layer *l, int32_t i, int32_t t, const int32_t *root_last)
{
    const compiler *c = f->c;
    const place *p = &c->places[t];
    if (f->links[l->out].parent >= 0 || tensor_at(c, l->out)->is_output || !same_shape(c, t, l->out)) return false;
    const root *r = &c->roots.at[p->root];
    if (r->constant || r->is_input || r->is_output || root_last[p->root] != i) return false;
    if (l->kind == LAYER_CONV && c->places[l->in[0]].root == p->root) return false; /* read again for every output */
    const int32_t others[3] = {l->in[0], l->in[1], l->residual};
    for (int k = 0; k < 3; k++)
        if (others[k] >= 0 && others[k] != t && c->places[others[k]].root == p->root) return false;
    return true;
}

static mera_status place_tensors(fuser *f)
{
    compiler *c = f->c;
    const size_t count = c->graph->tensors.count;
    /* Children are produced before their parents, so walk nodes backwards; then views and in-place results forwards. */
    for (size_t t = 0; t < count; t++) c->places[t].root = -1;
    for (size_t t = 0; t < count; t++)
        if (tensor_at(c, (int32_t)t)->is_input) TRY(own_root(f, (int32_t)t));
    for (size_t i = c->layers.count; i-- > 0;) {
        const layer *l = &c->layers.at[i];
        if (l->out < 0) continue;
        if (f->links[l->out].parent >= 0)
            place_in(c, l->out, &c->places[f->links[l->out].parent], &f->links[l->out]);
        else if (node_at(c, l->node)->op == OP_CONCAT || tensor_at(c, l->out)->is_output)
            TRY(own_root(f, l->out));
    }
    int32_t *root_last = ctx_alloc(c->ctx, (count + 1) * sizeof *root_last);
    if (!root_last) return out_of_memory(c->ctx);
    for (size_t r = 0; r <= count; r++) root_last[r] = -1;
    for (size_t t = 0; t < count; t++) {
        const int32_t r = c->places[t].root;
        if (r >= 0 && f->last_use[t] > root_last[r]) root_last[r] = f->last_use[t];
    }
    mera_status status = MERA_OK;
    for (size_t i = 0; i < c->layers.count && status == MERA_OK; i++) {
        layer *l = &c->layers.at[i];
        if (l->out < 0) continue;
        for (int k = 0; k < 3 && status == MERA_OK; k++) {
            const int32_t t = k < 2 ? l->in[k] : l->residual;
            if (t >= 0 && c->places[t].root < 0) status = own_root(f, t); /* a constant operand */
            if (t >= 0 && status == MERA_OK && f->last_use[t] > root_last[c->places[t].root])
                root_last[c->places[t].root] = f->last_use[t];
        }
        if (status != MERA_OK) break;
        const graph_node *n = node_at(c, l->node);
        place *p = &c->places[l->out];
        if (p->root < 0 && l->kind == LAYER_COPY) {
            const place *x = &c->places[l->in[0]];
            const graph_tensor *in = tensor_at(c, l->in[0]);
            if (n->op == OP_RESHAPE && place_is_dense(x, in->shape)) {
                place_in(c, l->out, x, &(link){.dense = true});
                l->kind = LAYER_VIEW;
            } else if (n->op == OP_SLICE && n->attrs[ATTR_SLICE_step_c] == 1) {
                const int64_t *a = n->attrs;
                *p = (place){x->root,
                             x->offset + a[ATTR_SLICE_begin_n] * x->sn + a[ATTR_SLICE_begin_h] * x->sh +
                                 a[ATTR_SLICE_begin_w] * x->sw + a[ATTR_SLICE_begin_c],
                             x->sn * a[ATTR_SLICE_step_n], x->sh * a[ATTR_SLICE_step_h], x->sw * a[ATTR_SLICE_step_w]};
                l->kind = LAYER_VIEW;
            }
        } else if (p->root < 0 || l->kind == LAYER_VECTOR || l->residual >= 0) {
            const int32_t t = l->kind == LAYER_VECTOR ? l->in[0] : l->residual;
            const int32_t u = l->kind == LAYER_VECTOR ? l->in[1] : -1;
            const int32_t over = t >= 0 && can_overwrite(f, l, (int32_t)i, t, root_last)   ? t
                                 : u >= 0 && can_overwrite(f, l, (int32_t)i, u, root_last) ? u
                                                                                           : -1;
            if (over >= 0) *p = c->places[over];
        }
        if (n->op == OP_RESHAPE && l->kind == LAYER_COPY && f->links[l->in[0]].parent == l->out) l->kind = LAYER_VIEW;
        if (p->root < 0) status = own_root(f, l->out);
        if (status == MERA_OK && f->last_use[l->out] > root_last[c->places[l->out].root])
            root_last[c->places[l->out].root] = f->last_use[l->out];
    }
    ctx_free(c->ctx, root_last);
    return status;
}

/* ---- copies ---- */

static mera_status push_piece(compiler *c, layer *l, copy_piece p)
{
    for (int d = 0; d < 4; d++)
        if (p.size[d] <= 0) return MERA_OK;
    return vec_push(c->ctx, &l->pieces, p) ? MERA_OK : out_of_memory(c->ctx);
}

static copy_piece piece_of(const compiler *c, const layer *l, int32_t in)
{
    const place *x = &c->places[in], *y = &c->places[l->out];
    copy_piece p = {.in_tensor = in, .in_stride = {x->sn, x->sh, x->sw, 1}, .out_stride = {y->sn, y->sh, y->sw, 1}};
    memcpy(p.size, tensor_at(c, in)->shape, sizeof p.size);
    return p;
}

static mera_status concat_pieces(fuser *f, layer *l, const graph_node *n)
{
    compiler *c = f->c;
    const int axis = (int)n->attrs[ATTR_CONCAT_axis];
    int64_t index = 0;
    int32_t from = 0;
    for (size_t e = 0; e < c->graph->nodes.count; e++) { /* what this one continues has been copied already */
        const graph_node *before = node_at(c, (int32_t)e);
        if (before->op != OP_CONCAT || f->links[before->output].parent != n->output || !is_prefix(before, n)) continue;
        from = before->input_count;
        index = tensor_at(c, before->output)->shape[axis];
    }
    for (int32_t k = from; k < n->input_count; k++) {
        copy_piece p = piece_of(c, l, n->inputs[k]);
        p.out_offset = index * p.out_stride[axis];
        const place *x = &c->places[n->inputs[k]], *y = &c->places[l->out];
        const bool there = x->root == y->root && x->offset == y->offset + p.out_offset && x->sn == y->sn && x->sh == y->sh &&
                           x->sw == y->sw;
        index += tensor_at(c, n->inputs[k])->shape[axis];
        if (!there) TRY(push_piece(c, l, p));
    }
    if (l->pieces.count == 0) l->kind = LAYER_VIEW;
    return MERA_OK;
}

static mera_status pad_pieces(compiler *c, layer *l, const graph_node *n)
{
    const int64_t *a = n->attrs, *s = tensor_at(c, l->in[0])->shape, *o = tensor_at(c, l->out)->shape;
    copy_piece inner = piece_of(c, l, l->in[0]);
    const int64_t *t = inner.out_stride;
    inner.out_offset = a[ATTR_PAD_pad_top] * t[1] + a[ATTR_PAD_pad_left] * t[2] + a[ATTR_PAD_pad_channel_before];
    copy_piece fill = inner;
    fill.fill = true;
    fill.value = (int32_t)a[ATTR_PAD_value];
    const int64_t before[4] = {0, a[ATTR_PAD_pad_top], a[ATTR_PAD_pad_left], a[ATTR_PAD_pad_channel_before]};
    /* Peel off one dimension after the other: two slabs outside, go on with what is between them. */
    int64_t start[4] = {0}, size[4];
    memcpy(size, o, sizeof size);
    for (int d = 1; d < 4; d++)
        for (int side = 0; side < 2; side++) {
            copy_piece slab = fill;
            memcpy(slab.size, size, sizeof size);
            slab.size[d] = side == 0 ? before[d] : o[d] - before[d] - s[d];
            slab.out_offset = 0;
            for (int e = 0; e < 4; e++) slab.out_offset += (e == d ? (side == 0 ? 0 : before[d] + s[d]) : start[e]) * t[e];
            TRY(push_piece(c, l, slab));
            if (side == 1) {
                start[d] = before[d];
                size[d] = s[d];
            }
        }
    return push_piece(c, l, inner);
}

static mera_status copy_pieces(fuser *f, layer *l)
{
    compiler *c = f->c;
    const graph_node *n = node_at(c, l->node);
    copy_piece p = piece_of(c, l, l->in[0]);
    const int64_t *a = n->attrs;
    switch (n->op) {
    case OP_CONCAT:
        return concat_pieces(f, l, n);
    case OP_PAD:
        return pad_pieces(c, l, n);
    case OP_SLICE: {
        const int64_t in[4] = {p.in_stride[0], p.in_stride[1], p.in_stride[2], 1};
        memcpy(p.size, tensor_at(c, l->out)->shape, sizeof p.size);
        for (int d = 0; d < 4; d++) {
            p.in_offset += a[ATTR_SLICE_begin_n + d] * in[d];
            p.in_stride[d] = in[d] * a[ATTR_SLICE_step_n + d];
        }
        break;
    }
    case OP_RESHAPE: /* dense output, the input's order */
        p.out_stride[3] = 1;
        for (int d = 3; d-- > 0;) p.out_stride[d] = p.out_stride[d + 1] * p.size[d + 1];
        break;
    case OP_TRANSPOSE: {
        const int64_t in[4] = {p.in_stride[0], p.in_stride[1], p.in_stride[2], 1};
        for (int d = 0; d < 4; d++) {
            p.size[d] = tensor_at(c, l->out)->shape[d];
            p.in_stride[d] = in[a[ATTR_TRANSPOSE_perm_0 + d]];
        }
        break;
    }
    default:
        return fail(c->ctx, MERA_INTERNAL, "fuse: operator %s has no copy", op_name(n->op));
    }
    return push_piece(c, l, p);
}

/* ---- live ranges ---- */

static void touch(compiler *c, int32_t tensor, int32_t index)
{
    if (tensor < 0) return;
    root *r = &c->roots.at[c->places[tensor].root];
    if (index < r->first_layer) r->first_layer = index;
    if (index > r->last_layer) r->last_layer = index;
}

void live_ranges(compiler *c)
{
    for (size_t r = 0; r < c->roots.count; r++) {
        c->roots.at[r].first_layer = INT32_MAX;
        c->roots.at[r].last_layer = -1;
    }
    for (size_t i = 0; i < c->layers.count; i++) {
        const layer *l = &c->layers.at[i];
        if (l->kind == LAYER_VIEW) continue;
        if (l->kind == LAYER_COPY) {
            for (size_t k = 0; k < l->pieces.count; k++)
                if (!l->pieces.at[k].fill) touch(c, l->pieces.at[k].in_tensor, (int32_t)i);
        } else {
            touch(c, l->in[0], (int32_t)i);
            touch(c, l->in[1], (int32_t)i);
            touch(c, l->residual, (int32_t)i);
        }
        touch(c, l->out, (int32_t)i);
    }
    for (size_t r = 0; r < c->roots.count; r++) /* an input that is an output, too: it is copied in the end */
        if (c->roots.at[r].is_output && (c->roots.at[r].is_input || c->roots.at[r].constant))
            touch(c, c->roots.at[r].tensor, (int32_t)c->layers.count - 1);
}

mera_status stage_fuse(compiler *c)
{
    const size_t tensors = c->graph->tensors.count;
    fuser f = {.c = c};
    f.links = arena_array(&c->memory, tensors, sizeof *f.links);
    f.made_by = arena_array(&c->memory, tensors, sizeof *f.made_by);
    f.last_use = arena_array(&c->memory, tensors, sizeof *f.last_use);
    c->places = arena_array(&c->memory, tensors, sizeof *c->places);
    if (!f.links || !f.made_by || !f.last_use || !c->places) return out_of_memory(c->ctx);
    for (size_t t = 0; t < tensors; t++) {
        f.links[t].parent = -1;
        f.made_by[t] = f.last_use[t] = -1;
    }
    for (size_t n = 0; n < c->graph->nodes.count; n++) TRY(add_node(&f, (int32_t)n));
    for (size_t i = 0; i < c->layers.count; i++) {
        const layer *l = &c->layers.at[i];
        if (l->out < 0) continue;
        const graph_node *n = node_at(c, l->node);
        const int32_t inputs = n->op == OP_CONCAT ? n->input_count : 1;
        for (int32_t k = 0; k < inputs; k++) f.last_use[n->inputs[k]] = (int32_t)i;
        if (l->in[0] >= 0) f.last_use[l->in[0]] = (int32_t)i;
        if (l->in[1] >= 0) f.last_use[l->in[1]] = (int32_t)i;
        if (l->residual >= 0) f.last_use[l->residual] = (int32_t)i;
    }
    link_concats(&f);
    unlink_packed(&f);
    TRY(place_tensors(&f));
    for (size_t i = 0; i < c->layers.count; i++)
        if (c->layers.at[i].kind == LAYER_COPY && c->layers.at[i].out >= 0) TRY(copy_pieces(&f, &c->layers.at[i]));
    live_ranges(c);
    return MERA_OK;
}
