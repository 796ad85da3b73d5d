/* lower_vector.c: elementwise operators and copies, on the vector units and the DMA. */
#include "compile.h"

/* ---- elementwise ---- */

static int64_t stride_or_0(int64_t extent, int64_t stride) { return extent == 1 ? 0 : stride; }

static void set_operand(job *j, int field, const operand *o, const int64_t s[4], int64_t image, int64_t y)
{
    const int64_t row = s[1] == 1 ? 0 : y - o->y0, n = s[0] == 1 ? 0 : image;
    job_address(j, field, o->buffer, o->offset + n * o->sn + row * o->sh);
    j->i.f[field + 1] = 0;
    j->i.f[field + 2] = stride_or_0(s[1], o->sh);
    j->i.f[field + 3] = stride_or_0(s[2], o->sw);
    j->i.f[field + 4] = 0;
}

static void set_arithmetic(const compiler *c, const layer *l, int64_t *f)
{
    const graph_node *n = node_at(c, l->node);
    const graph_tensor *x = tensor_at(c, n->inputs[0]), *y = tensor_at(c, n->output);
    f[VECTOR_a_zero] = x->zero_point ? x->zero_point[0] : 0;
    f[VECTOR_low] = -128;
    f[VECTOR_high] = 127;
    if (n->op == OP_LUT) return;
    const graph_tensor *z = tensor_at(c, n->inputs[1]);
    f[VECTOR_b_zero] = z->zero_point[0];
    f[VECTOR_zero] = y->zero_point[0];
    const int low = n->op == OP_ADD ? ATTR_ADD_clamp_min : n->op == OP_SUB ? ATTR_SUB_clamp_min : ATTR_MUL_clamp_min;
    f[VECTOR_low] = n->attrs[low];
    f[VECTOR_high] = n->attrs[low + 1];
    if (n->op == OP_MUL) {
        const rescale r = mul_rescale(x->scale[0], z->scale[0], y->scale[0]);
        f[VECTOR_mode] = 3;
        f[VECTOR_m_out] = r.multiplier;
        f[VECTOR_s_out] = r.shift;
        return;
    }
    const add_rescale r = add_rescale_from_scales(x->scale[0], z->scale[0], y->scale[0]);
    f[VECTOR_mode] = 2;
    f[VECTOR_m_a] = r.a.multiplier;
    f[VECTOR_s_a] = r.a.shift;
    f[VECTOR_m_b] = r.b.multiplier;
    f[VECTOR_s_b] = r.b.shift;
    f[VECTOR_m_out] = r.y.multiplier;
    f[VECTOR_s_out] = r.y.shift;
    f[VECTOR_neg_b] = n->op == OP_SUB;
}

static void swap_fields(int64_t *f, int a, int b)
{
    const int64_t t = f[a];
    f[a] = f[b];
    f[b] = t;
}

/* Runs that follow each other become one: pixels of a row, then rows. */
static void merge_runs(int64_t *f, bool binary)
{
    while (f[VECTOR_n2] > 1 || f[VECTOR_n1] > 1) {
        const int64_t run = f[VECTOR_run], n2 = f[VECTOR_n2];
        const int level = n2 > 1 ? 3 : 2; /* stride field behind the address */
        const bool follow = f[VECTOR_a + level] == run && f[VECTOR_out + level] == run &&
                            (!binary || (f[VECTOR_b_scalar] ? f[VECTOR_b + level] == 0 : f[VECTOR_b + level] == run));
        if (!follow) return;
        f[VECTOR_run] *= level == 3 ? n2 : f[VECTOR_n1];
        f[level == 3 ? VECTOR_n2 : VECTOR_n1] = 1;
    }
}

static mera_status emit_rows(compiler *c, const block *b, int unit, int64_t image, int64_t y, int64_t rows)
{
    const layer *l = b->l;
    const graph_node *n = node_at(c, l->node);
    const int64_t *out = tensor_at(c, l->out)->shape;
    const bool binary = n->op != OP_LUT;
    job *j;
    TRY(add_job(c, b, DNA_OP_VECTOR, layer_queue(c, b, unit, UNIT_VECTOR), &j));
    int64_t *f = j->i.f;
    set_arithmetic(c, l, f);
    f[VECTOR_n0] = f[VECTOR_n3] = 1;
    f[VECTOR_n1] = rows;
    f[VECTOR_n2] = out[2];
    f[VECTOR_run] = out[3];
    /* The full-shaped operand is a. */
    const int64_t *s0 = tensor_at(c, l->in[0])->shape, *s1 = binary ? tensor_at(c, l->in[1])->shape : NULL;
    const bool swap = binary && memcmp(s0, out, sizeof(int64_t[4])) != 0;
    set_operand(j, VECTOR_a, &b->in[swap ? 1 : 0], swap ? s1 : s0, image, y);
    if (binary) {
        const int64_t *s = swap ? s0 : s1;
        set_operand(j, VECTOR_b, &b->in[swap ? 0 : 1], s, image, y);
        f[VECTOR_b_scalar] = s[3] == 1 && out[3] > 1;
        if (swap) {
            swap_fields(f, VECTOR_a_zero, VECTOR_b_zero);
            swap_fields(f, VECTOR_m_a, VECTOR_m_b);
            swap_fields(f, VECTOR_s_a, VECTOR_s_b);
            swap_fields(f, VECTOR_neg_a, VECTOR_neg_b);
        }
    }
    set_operand(j, VECTOR_out, &b->out, out, image, y);
    if (l->lut >= 0) {
        f[VECTOR_lut] = 1;
        job_address(j, VECTOR_table, b->param_buffer, 0);
    }
    merge_runs(f, binary);
    return MERA_OK;
}

static mera_status emit_softmax(compiler *c, const block *b, int unit, int64_t image, int64_t y, int64_t rows)
{
    const int64_t *s = tensor_at(c, b->l->out)->shape;
    const operand *in = &b->in[0], *out = &b->out;
    job *j;
    TRY(add_job(c, b, DNA_OP_SOFTMAX, layer_queue(c, b, unit, UNIT_VECTOR), &j));
    int64_t *f = j->i.f;
    job_address(j, SOFTMAX_in, in->buffer, in->offset + image * in->sn + (y - in->y0) * in->sh);
    job_address(j, SOFTMAX_out, out->buffer, out->offset + image * out->sn + (y - out->y0) * out->sh);
    job_address(j, SOFTMAX_table, b->param_buffer, 0);
    f[SOFTMAX_n0] = rows;
    f[SOFTMAX_n1] = s[2];
    f[SOFTMAX_run] = s[3];
    f[SOFTMAX_a0] = rows > 1 ? in->sh : 0;
    f[SOFTMAX_o0] = rows > 1 ? out->sh : 0;
    f[SOFTMAX_a1] = s[2] > 1 ? in->sw : 0;
    f[SOFTMAX_o1] = s[2] > 1 ? out->sw : 0;
    return MERA_OK;
}

mera_status need_table(compiler *c, block *b)
{
    const bool softmax = node_at(c, b->l->node)->op == OP_SOFTMAX;
    if (b->param_buffer >= 0 || (b->l->lut < 0 && !softmax)) return MERA_OK;
    const graph_node *n = node_at(c, softmax ? b->l->node : b->l->lut);
    const graph_tensor *table = tensor_at(c, n->inputs[1]);
    int64_t offset;
    TRY(add_constant(c, table->data, table->bytes, &offset));
    return load_constant(c, b, offset, table->bytes, n->name, &b->param_buffer);
}

/* The least rows of an instruction but the last: enough to outweigh its table, few enough for others to start early. */
static int64_t rows_at_once(const compiler *c, const layer *l)
{
    if (node_at(c, l->node)->op != OP_SOFTMAX) return 8;
    return max_i64(8, ceil_div(2 * c->platform.array, tensor_at(c, l->out)->shape[2]));
}

mera_status lower_vector(compiler *c, block *b)
{
    TRY(need_table(c, b));
    const bool softmax = node_at(c, b->l->node)->op == OP_SOFTMAX;
    const int64_t some = rows_at_once(c, b->l);
    const int64_t units = b->l->units, total = b->images * b->rows, parts = min_i64(units, total);
    for (int64_t p = 0; p < parts; p++)
        for (int64_t row = total * p / parts, end = total * (p + 1) / parts; row < end;) {
            const int64_t image = row / b->rows, y = row % b->rows, left = min_i64(end - row, b->rows - y);
            const int64_t rows = ceil_div(left, max_i64(1, left / some));
            if (softmax)
                TRY(emit_softmax(c, b, (int)p, image, b->y0 + y, rows));
            else
                TRY(emit_rows(c, b, (int)p, image, b->y0 + y, rows));
            row += rows;
        }
    return MERA_OK;
}

/* ---- copies ---- */

static mera_status vector_piece(compiler *c, const block *b, const copy_piece *p)
{
    /* Rows are dealt out to the units; a dimension of size 1 costs nothing. */
    const layer *l = b->l;
    const place *y = &c->places[l->out];
    const int split = p->size[1] >= l->units ? 1 : p->size[2] >= l->units ? 2 : 0;
    const int64_t parts = min_i64(l->units, p->size[split]);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t from = p->size[split] * part / parts, count = p->size[split] * (part + 1) / parts - from;
        job *j;
        TRY(add_job(c, b, DNA_OP_VECTOR, layer_queue(c, b, part, UNIT_VECTOR), &j));
        int64_t *f = j->i.f;
        f[VECTOR_low] = -128;
        f[VECTOR_high] = 127;
        f[VECTOR_mode] = p->fill ? 1 : 0;
        f[VECTOR_zero] = p->fill ? p->value : 0;
        int64_t size[4];
        memcpy(size, p->size, sizeof size);
        size[split] = count;
        const bool runs = p->out_stride[3] == 1 && (p->fill || p->in_stride[3] == 1);
        for (int d = 0; d < 4; d++) {
            const bool alone = size[d] == 1 || (d == 3 && runs);
            f[VECTOR_n0 + d] = alone ? 1 : size[d];
            f[VECTOR_a0 + d] = alone || p->fill ? 0 : p->in_stride[d];
            f[VECTOR_o0 + d] = alone ? 0 : p->out_stride[d];
        }
        f[VECTOR_run] = runs ? size[3] : 1;
        job_address(j, VECTOR_out, c->roots.at[y->root].buffer, y->offset + p->out_offset + from * p->out_stride[split]);
        if (p->fill) continue;
        const place *x = &c->places[p->in_tensor];
        job_address(j, VECTOR_a, c->roots.at[x->root].buffer, x->offset + p->in_offset + from * p->in_stride[split]);
        if (f[VECTOR_n0] == 1 && f[VECTOR_n3] == 1) merge_runs(f, false);
    }
    return MERA_OK;
}

/* One DMA request: rows [y0, y0 + rows) of image n of the piece, between DRAM strides and SRAM strides. */
static mera_status dma_rows(compiler *c, const block *b, bool load, int32_t dram, int64_t dram_offset,
                            const int64_t dram_stride[4], int32_t sram, int64_t sram_offset, const int64_t sram_stride[4],
                            const int64_t size[4])
{
    job *j;
    const bool runs = dram_stride[3] == 1 && sram_stride[3] == 1;
    TRY(add_job(c, b, load ? DNA_OP_LOAD : DNA_OP_STORE, load ? QUEUE_LOAD : QUEUE_STORE, &j));
    job_address(j, LOAD_dram, dram, dram_offset);
    job_address(j, LOAD_sram, sram, sram_offset);
    j->i.f[LOAD_run] = runs ? size[3] : 1;
    for (int d = 1; d < 4; d++) {
        const bool alone = size[d] == 1 || (d == 3 && runs);
        j->i.f[LOAD_n0 + d - 1] = alone ? 1 : size[d];
        j->i.f[LOAD_d0 + d - 1] = alone ? 0 : dram_stride[d];
        j->i.f[LOAD_s0 + d - 1] = alone ? 0 : sram_stride[d];
    }
    if (runs && j->i.f[LOAD_d1] == size[3] && j->i.f[LOAD_s1] == size[3]) { /* pixels of a row follow each other */
        j->i.f[LOAD_run] *= j->i.f[LOAD_n1];
        j->i.f[LOAD_n1] = 1;
        j->i.f[LOAD_d1] = j->i.f[LOAD_s1] = 0;
    }
    return MERA_OK;
}

/* Where an operand lives in DRAM, the DMA does the copying: straight from or to the other one, or through a stage of
 * dense rows if both do. */
static mera_status dma_piece(compiler *c, const block *b, const copy_piece *p)
{
    const place *y = &c->places[b->l->out], *x = p->fill ? NULL : &c->places[p->in_tensor];
    const root *to = &c->roots.at[y->root], *from = x ? &c->roots.at[x->root] : NULL;
    const bool in_dram = from && from->dram, staged = to->dram && (in_dram || p->fill);
    const int64_t row = p->size[2] * p->size[3], room = min_i64(16384, c->platform.sram_bytes / 4);
    const int64_t rows = staged ? max_i64(1, room / row) : p->size[1];
    const int64_t dense[4] = {0, row, p->size[3], 1};
    for (int64_t n = 0; n < p->size[0]; n++)
        for (int64_t h = 0; h < p->size[1]; h += rows) {
            const int64_t size[4] = {1, min_i64(rows, p->size[1] - h), p->size[2], p->size[3]};
            const int64_t out = y->offset + p->out_offset + n * p->out_stride[0] + h * p->out_stride[1];
            const int64_t in = x ? x->offset + p->in_offset + n * p->in_stride[0] + h * p->in_stride[1] : 0;
            if (!staged) {
                if (in_dram)
                    TRY(dma_rows(c, b, true, from->dram_buffer, in, p->in_stride, to->buffer, out, p->out_stride, size));
                else
                    TRY(dma_rows(c, b, false, to->dram_buffer, out, p->out_stride, from->buffer, in, p->in_stride, size));
                continue;
            }
            int32_t stage;
            TRY(add_buffer(c, BUFFER_STAGE, node_at(c, b->l->node)->name, size[1] * row, &stage));
            if (p->fill) {
                job *j;
                TRY(add_job(c, b, DNA_OP_VECTOR, layer_queue(c, b, 0, UNIT_VECTOR), &j));
                int64_t *f = j->i.f;
                f[VECTOR_mode] = 1;
                f[VECTOR_zero] = p->value;
                f[VECTOR_low] = -128;
                f[VECTOR_high] = 127;
                f[VECTOR_n0] = f[VECTOR_n1] = f[VECTOR_n2] = f[VECTOR_n3] = 1;
                f[VECTOR_run] = size[1] * row;
                job_address(j, VECTOR_out, stage, 0);
            } else {
                c->buffers.at[stage].load = (int64_t)c->jobs.count;
                TRY(dma_rows(c, b, true, from->dram_buffer, in, p->in_stride, stage, 0, dense, size));
            }
            TRY(dma_rows(c, b, false, to->dram_buffer, out, p->out_stride, stage, 0, dense, size));
        }
    return MERA_OK;
}

mera_status lower_copy(compiler *c, layer *l, int32_t index)
{
    const block b = {.l = l, .layer_index = index};
    for (size_t k = 0; k < l->pieces.count; k++) {
        const copy_piece *p = &l->pieces.at[k];
        const bool out_dram = c->roots.at[c->places[l->out].root].dram;
        const bool in_dram = !p->fill && c->roots.at[c->places[p->in_tensor].root].dram;
        if (out_dram || in_dram)
            TRY(dma_piece(c, &b, p));
        else
            TRY(vector_piece(c, &b, p));
    }
    return MERA_OK;
}
