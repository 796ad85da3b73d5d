/* lower.c: layers -> jobs. Cuts every layer into its blocks, moves what lives in DRAM, and calls the lowering of its kind.
 */
#include "compile.h"

#define MOVE_BYTES 32768 /* one DMA request of a resident tensor: short enough that work on its first rows starts early */

mera_status add_buffer(compiler *c, buffer_kind kind, const char *name, int64_t bytes, int32_t *index)
{
    const buffer b = {.kind = kind, .name = name, .bytes = bytes, .first = INT64_MAX, .last = -1, .load = -1, .address = -1};
    *index = (int32_t)c->buffers.count;
    return vec_push(c->ctx, &c->buffers, b) ? MERA_OK : out_of_memory(c->ctx);
}

mera_status add_job(compiler *c, const block *b, dna_opcode opcode, int queue, job **out)
{
    job j = {.layer = b->layer_index, .position = (int64_t)c->jobs.count};
    j.i.opcode = (uint8_t)opcode;
    j.i.queue = (uint8_t)queue;
    j.i.node = b->l ? b->l->node : -1;
    if (!vec_push(c->ctx, &c->jobs, j)) return out_of_memory(c->ctx);
    *out = &c->jobs.at[c->jobs.count - 1];
    return MERA_OK;
}

void job_address(job *j, int field, int32_t buffer, int64_t offset)
{
    j->i.f[field] = offset;
    j->fix[j->fix_count].field = field;
    j->fix[j->fix_count++].buffer = buffer;
}

mera_status add_constant(compiler *c, const void *data, int64_t bytes, int64_t *offset)
{
    const size_t start = (c->constants.count + 63) / 64 * 64, end = start + (size_t)bytes;
    if (end > c->constants.space && !vec_grow(c->ctx, (void **)&c->constants.at, &c->constants.space, end, 1))
        return out_of_memory(c->ctx);
    if (end > c->constants.count) memset(c->constants.at + c->constants.count, 0, end - c->constants.count);
    if (data && bytes) memcpy(c->constants.at + start, data, (size_t)bytes);
    c->constants.count = end;
    *offset = (int64_t)start;
    return MERA_OK;
}

mera_status load_constant(compiler *c, const block *b, int64_t offset, int64_t bytes, const char *name, int32_t *index)
{
    job *j;
    TRY(add_buffer(c, BUFFER_CONST, name, bytes, index));
    c->buffers.at[*index].load = (int64_t)c->jobs.count;
    TRY(add_job(c, b, DNA_OP_LOAD, QUEUE_CONST, &j));
    job_address(j, LOAD_dram, 0, offset);
    job_address(j, LOAD_sram, *index, 0);
    j->i.f[LOAD_run] = bytes;
    j->i.f[LOAD_n0] = j->i.f[LOAD_n1] = j->i.f[LOAD_n2] = 1;
    return MERA_OK;
}

/* ---- moves between DRAM and SRAM ---- */

mera_status add_move(compiler *c, const block *b, bool load, int32_t dram, int64_t dram_offset, int32_t sram,
                     int64_t sram_offset, int64_t run, const int64_t count[3], const int64_t d[3], const int64_t s[3])
{
    job *j;
    TRY(add_job(c, b, load ? DNA_OP_LOAD : DNA_OP_STORE, load ? QUEUE_LOAD : QUEUE_STORE, &j));
    job_address(j, LOAD_dram, dram, dram_offset);
    job_address(j, LOAD_sram, sram, sram_offset);
    j->i.f[LOAD_run] = run;
    for (int k = 0; k < 3; k++) {
        j->i.f[LOAD_n0 + k] = count[k];
        j->i.f[LOAD_d0 + k] = count[k] > 1 ? d[k] : 0;
        j->i.f[LOAD_s0 + k] = count[k] > 1 ? s[k] : 0;
    }
    return MERA_OK;
}

/* `bytes` contiguous bytes, in requests of whole rows of about MOVE_BYTES. */
static mera_status move_dense(compiler *c, const block *b, bool load, int32_t dram, int32_t sram, int64_t bytes, int64_t row)
{
    const int64_t step = max_i64(1, MOVE_BYTES / row) * row, one[3] = {1, 1, 1}, none[3] = {0, 0, 0};
    for (int64_t at = 0; at < bytes; at += step)
        TRY(add_move(c, b, load, dram, at, sram, at, min_i64(step, bytes - at), one, none, none));
    return MERA_OK;
}

/* Rows y0, y0 + every, ... of image n of a tensor in DRAM <-> `rows` dense rows at the start of an SRAM buffer. */
static mera_status move_rows(compiler *c, const block *b, bool load, int32_t tensor, int64_t n, int64_t y0, int64_t every,
                             int64_t rows, int32_t sram)
{
    const place *p = &c->places[tensor];
    const int64_t *s = tensor_at(c, tensor)->shape, row = s[2] * s[3], dram_offset = p->offset + n * p->sn + y0 * p->sh;
    const int64_t pitch = every * p->sh;
    const int32_t dram = c->roots.at[p->root].dram_buffer;
    if (p->sw == s[3] || s[2] == 1) {
        const bool dense = pitch == row || rows == 1;
        const int64_t count[3] = {1, 1, dense ? 1 : rows}, d[3] = {0, 0, pitch}, t[3] = {0, 0, row};
        return add_move(c, b, load, dram, dram_offset, sram, 0, dense ? rows * row : row, count, d, t);
    }
    const int64_t count[3] = {1, rows, s[2]}, d[3] = {0, pitch, p->sw}, t[3] = {0, row, s[3]};
    return add_move(c, b, load, dram, dram_offset, sram, 0, s[3], count, d, t);
}

/* ---- operands of a block ---- */

static mera_status resident_operand(compiler *c, int32_t tensor, const block *b, operand *o)
{
    const place *p = &c->places[tensor];
    const int64_t *s = tensor_at(c, tensor)->shape, n0 = s[0] == 1 ? 0 : b->n0;
    *o = (operand){tensor, c->roots.at[p->root].buffer, p->offset + n0 * p->sn, p->sn, p->sh, p->sw, n0, 0, s[1]};
    return MERA_OK;
}

static mera_status staged_operand(compiler *c, int32_t tensor, const block *b, int64_t y0, int64_t y1, bool load, operand *o)
{
    const graph_tensor *x = tensor_at(c, tensor);
    const int64_t *s = x->shape, row = s[2] * s[3], n = s[0] == 1 ? 0 : b->n0;
    int32_t index;
    TRY(add_buffer(c, BUFFER_STAGE, x->name, (y1 - y0) * row, &index));
    *o = (operand){tensor, index, 0, (y1 - y0) * row, row, s[3], n, y0, y1 - y0};
    if (!load) return MERA_OK;
    c->buffers.at[index].load = (int64_t)c->jobs.count;
    return move_rows(c, b, true, tensor, n, y0, 1, y1 - y0, index);
}

static mera_status input_operand(compiler *c, block *b, int k, operand *o)
{
    const int32_t tensor = k == 2 ? b->l->residual : b->l->in[k];
    if (!c->roots.at[c->places[tensor].root].dram) return resident_operand(c, tensor, b, o);
    if (node_at(c, b->l->node)->op == OP_MEAN) return MERA_OK; /* lower_window takes it in slices of channels */
    if (k == 1 && tensor == b->l->in[0]) {
        *o = b->in[0];
        return MERA_OK;
    }
    int64_t y0, y1;
    layer_input_rows(c, b->l, k, b->y0, b->y0 + b->rows, &y0, &y1);
    return staged_operand(c, tensor, b, y0, y1, true, o);
}

static mera_status lower_block(compiler *c, block *b)
{
    layer *l = b->l;
    for (int k = 0; k < 2; k++)
        if (l->in[k] >= 0) TRY(input_operand(c, b, k, &b->in[k]));
    b->has_residual = l->residual >= 0;
    if (b->has_residual) TRY(input_operand(c, b, 2, &b->residual));
    const bool stage_out = c->roots.at[c->places[l->out].root].dram;
    const int64_t repeat = layer_repeat(c, l);
    if (stage_out)
        TRY(staged_operand(c, l->out, b, b->y0 / repeat, (b->y0 + b->rows) / repeat, false, &b->out));
    else
        TRY(resident_operand(c, l->out, b, &b->out));
    if (l->kind == LAYER_CONV)
        TRY(lower_conv(c, b));
    else if (l->kind == LAYER_WINDOW)
        TRY(lower_window(c, b));
    else if (l->kind == LAYER_RESIZE)
        TRY(lower_resize(c, b));
    else
        TRY(lower_vector(c, b));
    for (int64_t k = 0; k < repeat && stage_out; k++)
        TRY(move_rows(c, b, false, l->out, b->n0, b->y0 + k, repeat, b->rows / repeat, b->out.buffer));
    return MERA_OK;
}

static mera_status lower_layer(compiler *c, layer *l, int32_t index)
{
    block b = {.l = l, .layer_index = index, .param_buffer = -1};
    const int64_t *s = tensor_at(c, l->out)->shape;
    const int64_t rows = l->block_rows ? l->block_rows : s[1], images = l->block_rows ? 1 : s[0];
    mera_status status = MERA_OK;
    for (b.n0 = 0; b.n0 < s[0] && status == MERA_OK; b.n0 += images)
        for (b.y0 = 0; b.y0 < s[1] && status == MERA_OK; b.y0 += rows) {
            b.images = images;
            b.rows = min_i64(rows, s[1] - b.y0);
            status = lower_block(c, &b);
        }
    if (l->kind == LAYER_CONV) free_conv_state(c, &b);
    return status;
}

/* ---- roots, inputs and outputs ---- */

/* The SRAM buffer of a resident root, made at its first use; inputs and constants are loaded then. */
static mera_status need_root(compiler *c, const block *b, int32_t tensor)
{
    if (tensor < 0) return MERA_OK;
    root *r = &c->roots.at[c->places[tensor].root];
    if (r->dram || r->buffer >= 0) return MERA_OK;
    TRY(add_buffer(c, BUFFER_RESIDENT, tensor_at(c, r->tensor)->name, r->bytes, &r->buffer));
    if (!r->is_input && !r->constant) return MERA_OK;
    return move_dense(c, b, true, r->dram_buffer, r->buffer, r->bytes, r->shape[2] * r->shape[3]);
}

static mera_status dram_regions(compiler *c)
{
    const mera_graph *g = c->graph;
    int32_t zero;
    TRY(add_buffer(c, BUFFER_DRAM, "constants", 0, &zero));
    for (size_t k = 0; k < g->inputs.count; k++)
        TRY(add_buffer(c, BUFFER_DRAM, tensor_at(c, g->inputs.at[k])->name, tensor_at(c, g->inputs.at[k])->bytes,
                       &c->input_buffer[k]));
    for (size_t k = 0; k < g->outputs.count; k++)
        TRY(add_buffer(c, BUFFER_DRAM, tensor_at(c, g->outputs.at[k])->name, tensor_at(c, g->outputs.at[k])->bytes,
                       &c->output_buffer[k]));
    for (size_t i = 0; i < c->roots.count; i++) {
        root *r = &c->roots.at[i];
        r->buffer = r->dram_buffer = -1;
        for (size_t k = g->outputs.count; k-- > 0;)
            if (g->outputs.at[k] == r->tensor) r->dram_buffer = c->output_buffer[k];
        for (size_t k = 0; k < g->inputs.count; k++)
            if (g->inputs.at[k] == r->tensor) r->dram_buffer = c->input_buffer[k];
        if (r->last_layer < 0) continue; /* no layer reads or writes it */
        if (r->dram_buffer < 0 && (r->dram || r->constant))
            TRY(add_buffer(c, BUFFER_DRAM, tensor_at(c, r->tensor)->name, r->bytes, &r->dram_buffer));
        if (r->constant) { /* lies among the constants */
            int64_t offset = 0;
            TRY(add_constant(c, tensor_at(c, r->tensor)->data, r->bytes, &offset));
            c->buffers.at[r->dram_buffer].address = offset;
        }
    }
    return MERA_OK;
}

/* Graph outputs that lie elsewhere than in their region are copied there. */
static mera_status store_outputs(compiler *c, const block *b, int32_t tensor)
{
    const root *r = &c->roots.at[c->places[tensor].root];
    const int64_t row = r->shape[2] * r->shape[3];
    for (size_t k = 0; k < c->graph->outputs.count; k++) {
        const int32_t region = c->output_buffer[k];
        if (c->graph->outputs.at[k] != tensor || (r->dram && r->dram_buffer == region)) continue;
        if (!r->dram) {
            TRY(move_dense(c, b, false, region, r->buffer, r->bytes, row));
            continue;
        }
        const int64_t step = max_i64(1, MOVE_BYTES / 4 / row) * row, one[3] = {1, 1, 1}, none[3] = {0, 0, 0};
        for (int64_t at = 0; at < r->bytes; at += step) {
            const int64_t bytes = min_i64(step, r->bytes - at);
            int32_t stage;
            TRY(add_buffer(c, BUFFER_STAGE, tensor_at(c, tensor)->name, bytes, &stage));
            c->buffers.at[stage].load = (int64_t)c->jobs.count;
            TRY(add_move(c, b, true, r->dram_buffer, at, stage, 0, bytes, one, none, none));
            TRY(add_move(c, b, false, region, at, stage, 0, bytes, one, none, none));
        }
    }
    return MERA_OK;
}

static mera_status lower_all(compiler *c)
{
    c->jobs.count = c->buffers.count = c->constants.count = 0;
    c->next_unit = 0;
    c->input_buffer = arena_array(&c->memory, c->graph->inputs.count + 1, sizeof *c->input_buffer);
    c->output_buffer = arena_array(&c->memory, c->graph->outputs.count + 1, sizeof *c->output_buffer);
    if (!c->input_buffer || !c->output_buffer) return out_of_memory(c->ctx);
    TRY(dram_regions(c));
    for (size_t i = 0; i < c->layers.count; i++) {
        layer *l = &c->layers.at[i];
        if (l->kind == LAYER_VIEW) continue;
        const block b = {.l = l, .layer_index = (int32_t)i};
        if (l->kind == LAYER_COPY) {
            for (size_t k = 0; k < l->pieces.count; k++)
                if (!l->pieces.at[k].fill) TRY(need_root(c, &b, l->pieces.at[k].in_tensor));
        } else {
            TRY(need_root(c, &b, l->in[0]));
            TRY(need_root(c, &b, l->in[1]));
            TRY(need_root(c, &b, l->residual));
        }
        TRY(need_root(c, &b, l->out));
        if (l->kind == LAYER_COPY)
            TRY(lower_copy(c, l, (int32_t)i));
        else
            TRY(lower_layer(c, l, (int32_t)i));
        /* Outputs leave as soon as the last layer that writes their root is done. */
        bool written_later = false;
        const int32_t out_root = c->places[l->out].root;
        for (size_t k = i + 1; k < c->layers.count && c->roots.at[out_root].is_output; k++)
            if (c->layers.at[k].kind != LAYER_VIEW && c->places[c->layers.at[k].out].root == out_root) written_later = true;
        if (c->roots.at[out_root].is_output && !written_later) TRY(store_outputs(c, &b, c->roots.at[out_root].tensor));
    }
    const block b = {.layer_index = (int32_t)c->layers.count - 1};
    for (size_t r = 0; r < c->roots.count; r++)
        if (c->roots.at[r].is_output && (c->roots.at[r].is_input || c->roots.at[r].constant)) {
            TRY(need_root(c, &b, c->roots.at[r].tensor));
            TRY(store_outputs(c, &b, c->roots.at[r].tensor));
        }
    return MERA_OK;
}

mera_status stage_lower(compiler *c)
{
    TRY(lower_all(c));
    c->buffers.at[0].bytes = (int64_t)c->constants.count;
    return check_lower(c, MERA_INTERNAL);
}
