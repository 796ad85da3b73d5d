/* compile_text.c: the compiler's own IR as text: layers for people; jobs and buffers to and fro. */
#include <stdio.h>

#include "compile.h"
#include "lexer.h"

void print_layers(compiler *c, text *t)
{
    static const char *const kinds[] = {"conv", "window", "vector", "resize", "copy", "view"};
    for (size_t r = 0; r < c->roots.count; r++) {
        const root *x = &c->roots.at[r];
        text_add(t, "root %d \"%s\" %lld bytes, layers %d..%d, %s\n", (int)r, tensor_at(c, x->tensor)->name,
                 (long long)x->bytes, x->first_layer, x->last_layer, x->dram ? "dram" : "sram");
    }
    for (size_t i = 0; i < c->layers.count; i++) {
        const layer *l = &c->layers.at[i];
        if (l->out < 0) continue;
        text_add(t, "layer %d %s %s \"%s\"", (int)i, kinds[l->kind], op_name(node_at(c, l->node)->op),
                 node_at(c, l->node)->name);
        if (l->add >= 0) text_add(t, " + %s \"%s\"", op_name(node_at(c, l->add)->op), node_at(c, l->add)->name);
        if (l->lut >= 0 && l->lut != l->node) text_add(t, " + lut \"%s\"", node_at(c, l->lut)->name);
        const place *p = &c->places[l->out];
        text_add(t, " -> root %d + %lld (%lld, %lld, %lld)", p->root, (long long)p->offset, (long long)p->sn,
                 (long long)p->sh, (long long)p->sw);
        if (l->block_rows)
            text_add(t, ", blocks of %lld rows%s", (long long)l->block_rows,
                     l->keep_weights ? "" : ", weights loaded for each");
        text_add(t, "\n");
    }
}

/* ---- jobs ---- */

static const char *const buffer_kinds[] = {"resident", "const", "stage", "dram"};

void print_jobs(compiler *c, text *t, bool addresses)
{
    text_add(t, "layers %d\n", (int)c->layers.count);
    for (size_t b = 0; b < c->buffers.count; b++) {
        const buffer *x = &c->buffers.at[b];
        text_add(t, "buffer %d %s ", (int)b, buffer_kinds[x->kind]);
        text_string(t, x->name);
        text_add(t, " %lld bytes", (long long)x->bytes);
        if (x->load >= 0 && !addresses) text_add(t, " load %lld", (long long)x->load);
        if (addresses || (x->kind == BUFFER_DRAM && x->address >= 0)) text_add(t, " at %lld", (long long)x->address);
        if (addresses && x->last >= 0) text_add(t, " jobs %lld..%lld", (long long)x->first, (long long)x->last);
        text_add(t, "\n");
    }
    for (size_t i = 0; i < c->jobs.count; i++) {
        const job *j = &c->jobs.at[i];
        text_add(t, "job %d layer %d", (int)i, j->layer);
        for (int k = 0; k < j->fix_count; k++)
            text_add(t, " %s@%d", isa_table(j->i.opcode)->fields[j->fix[k].field].name, j->fix[k].buffer);
        text_add(t, ": ");
        isa_print(t, &j->i);
    }
}

static mera_status parse_buffer(compiler *c, lexer *l)
{
    char kind[16];
    int64_t index;
    int k = 0;
    buffer b = {.first = INT64_MAX, .last = -1, .load = -1, .address = -1};
    TRY(lexer_int(l, 0, INT32_MAX, &index));
    if (index != (int64_t)c->buffers.count) return lexer_fail(l, "buffers are numbered one after the other");
    TRY(lexer_word(l, kind, sizeof kind));
    while (k < 4 && strcmp(kind, buffer_kinds[k])) k++;
    if (k == 4 || (index == 0 && k != BUFFER_DRAM))
        return lexer_fail(l, "buffer 0 is dram; a buffer is resident, const, stage or dram");
    b.kind = (buffer_kind)k;
    TRY(lexer_string(l, &c->memory, &b.name));
    TRY(lexer_int(l, 0, (int64_t)1 << 38, &b.bytes));
    if (!lexer_accept_word(l, "bytes")) return lexer_fail(l, "expected 'bytes'");
    if (lexer_accept_word(l, "load")) TRY(lexer_int(l, 0, INT32_MAX, &b.load));
    if (lexer_accept_word(l, "at")) TRY(lexer_int(l, 0, (int64_t)1 << 38, &b.address));
    return vec_push(c->ctx, &c->buffers, b) ? MERA_OK : out_of_memory(c->ctx);
}

typedef struct named_fix {
    char field[24];
    int64_t buffer;
} named_fix;

static mera_status parse_job(compiler *c, lexer *l)
{
    int64_t index, layer;
    named_fix fixes[MAX_FIXES];
    int count = 0;
    TRY(lexer_int(l, 0, INT32_MAX, &index));
    if (index != (int64_t)c->jobs.count) return lexer_fail(l, "jobs are numbered one after the other");
    if (!lexer_accept_word(l, "layer")) return lexer_fail(l, "expected 'layer'");
    TRY(lexer_int(l, 0, (int64_t)c->layers.count - 1, &layer));
    while (!lexer_accept(l, ':')) {
        if (count == MAX_FIXES) return lexer_fail(l, "at most %d addresses", MAX_FIXES);
        TRY(lexer_word(l, fixes[count].field, sizeof fixes[count].field));
        TRY(lexer_expect(l, '@'));
        TRY(lexer_int(l, 0, (int64_t)c->buffers.count - 1, &fixes[count++].buffer));
    }
    const char *start = l->at, *stop = start;
    while (stop < l->end && *stop != '\n') stop++;
    char line[4096];
    if ((size_t)(stop - start) >= sizeof line) return lexer_fail(l, "the line is too long");
    memcpy(line, start, (size_t)(stop - start));
    line[stop - start] = 0;
    l->at = stop;
    job j = {.layer = (int32_t)layer, .position = index};
    TRY(isa_parse(c->ctx, line, l->line, &j.i));
    const isa_info *info = isa_table(j.i.opcode);
    for (int k = 0; k < count; k++) {
        int f = 0;
        while (f < info->field_count && strcmp(info->fields[f].name, fixes[k].field)) f++;
        if (f == info->field_count) return lexer_fail(l, "%s has no field '%s'", info->name, fixes[k].field);
        job_address(&j, f, (int32_t)fixes[k].buffer, j.i.f[f]);
    }
    return vec_push(c->ctx, &c->jobs, j) ? MERA_OK : out_of_memory(c->ctx);
}

mera_status parse_jobs(compiler *c, const char *data, size_t bytes)
{
    lexer l;
    int64_t layers;
    lexer_init(&l, c->ctx, "jobs", data, bytes);
    if (!lexer_accept_word(&l, "layers")) return lexer_fail(&l, "expected 'layers'");
    TRY(lexer_int(&l, 1, 1 << 20, &layers));
    for (int64_t k = 0; k < layers; k++)
        if (!vec_push(c->ctx, &c->layers, ((layer){.kind = LAYER_VIEW, .out = -1}))) return out_of_memory(c->ctx);
    while (!lexer_done(&l)) {
        if (lexer_accept_word(&l, "buffer"))
            TRY(parse_buffer(c, &l));
        else if (lexer_accept_word(&l, "job"))
            TRY(parse_job(c, &l));
        else
            return lexer_fail(&l, "expected 'buffer' or 'job'");
    }
    if (c->buffers.count == 0) return lexer_fail(&l, "there is no buffer 0, the constants");
    return check_lower(c, MERA_INVALID_ARGUMENT);
}
