/* isa.c: encoding, decoding, checking and timing of single instructions, all driven by dna_isa.def. */
#include "isa.h"

#include <stdio.h>
#include <stdlib.h>

#define DNA_INSTR(NAME, name, unit, doc)                                                                                    \
    }                                                                                                                       \
    ;                                                                                                                       \
    static const isa_field fields_##NAME[] = {{NULL, 0, NULL},
#define DNA_FIELD(NAME, field, bits, doc) {#field, bits, doc},
static const isa_field fields_none[] = {
    {NULL, 0, NULL},
#include "dna_isa.def"
};

static const isa_info table[] = {
#define DNA_INSTR(NAME, name, unit, doc)                                                                                    \
    {#name, unit, doc, (int)(sizeof fields_##NAME / sizeof *fields_##NAME) - 1, fields_##NAME + 1},
#define DNA_FIELD(NAME, field, bits, doc)
#include "dna_isa.def"
};

const isa_info *isa_table(int opcode) { return opcode >= 0 && opcode < DNA_OPCODE_COUNT ? &table[opcode] : NULL; }

int32_t mera_isa_count(void)
{
    (void)fields_none;
    return DNA_OPCODE_COUNT;
}
const char *mera_isa_name(int32_t opcode) { return isa_table(opcode) ? table[opcode].name : NULL; }
const char *mera_isa_unit(int32_t opcode) { return isa_table(opcode) ? table[opcode].unit : NULL; }
const char *mera_isa_doc(int32_t opcode) { return isa_table(opcode) ? table[opcode].doc : NULL; }
int32_t mera_isa_field_count(int32_t opcode) { return isa_table(opcode) ? table[opcode].field_count : 0; }
static const isa_field *field_at(int32_t opcode, int32_t field)
{
    return isa_table(opcode) && field >= 0 && field < table[opcode].field_count ? &table[opcode].fields[field] : NULL;
}
const char *mera_isa_field_name(int32_t o, int32_t f) { return field_at(o, f) ? field_at(o, f)->name : NULL; }
int32_t mera_isa_field_bits(int32_t o, int32_t f) { return field_at(o, f) ? field_at(o, f)->bits : 0; }
const char *mera_isa_field_doc(int32_t o, int32_t f) { return field_at(o, f) ? field_at(o, f)->doc : NULL; }

void queue_print_name(char *out, size_t bytes, int queue)
{
    static const char *const dma[] = {"const", "load", "store"};
    static const char *const kinds[] = {"array", "window", "vector"};
    if (queue < QUEUE_UNITS)
        snprintf(out, bytes, "%s", dma[queue]);
    else
        snprintf(out, bytes, "%s%d", kinds[queue_kind(queue)], (queue - QUEUE_UNITS) / UNIT_QUEUES);
}

static int queue_by_name(const char *name)
{
    char text[24];
    for (int q = 0; q < MAX_QUEUES; q++) {
        queue_print_name(text, sizeof text, q);
        if (!strcmp(text, name)) return q;
    }
    return -1;
}

static bool fits(int64_t value, int bits)
{
    if (bits < 0) {
        const int64_t half = (int64_t)1 << (-bits - 1);
        return value >= -half && value < half;
    }
    return value >= 0 && value < (int64_t)1 << bits;
}

/* ---- encoding ---- */

mera_status isa_encode(mera_context *ctx, const instr *in, word_vec *words)
{
    const isa_info *info = &table[in->opcode];
    const size_t start = words->count;
    bool ok = vec_push(ctx, words, 0);
    for (int w = 0; w < in->wait_count; w++)
        ok = ok && vec_push(ctx, words, (uint32_t)in->waits[w].queue) && vec_push(ctx, words, (uint32_t)in->waits[w].count);
    uint64_t buffer = 0;
    int filled = 0;
    for (int f = 0; f < info->field_count && ok; f++) {
        const int bits = abs(info->fields[f].bits);
        if (!fits(in->f[f], info->fields[f].bits))
            return fail(ctx, MERA_UNSUPPORTED, "%s: field %s = %lld does not fit into %d bits", info->name,
                        info->fields[f].name, (long long)in->f[f], bits);
        uint64_t value = (uint64_t)in->f[f] & (((uint64_t)1 << bits) - 1);
        int left = bits;
        while (left > 0 && ok) {
            const int take = left < 32 - filled ? left : 32 - filled;
            buffer |= (value & (((uint64_t)1 << take) - 1)) << filled;
            value >>= take;
            filled += take;
            left -= take;
            if (filled == 32) {
                ok = vec_push(ctx, words, (uint32_t)buffer);
                buffer = 0;
                filled = 0;
            }
        }
    }
    if (filled && ok) ok = vec_push(ctx, words, (uint32_t)buffer);
    if (!ok) return out_of_memory(ctx);
    const size_t length = words->count - start;
    words->at[start] =
        (uint32_t)in->opcode | (uint32_t)in->queue << 8 | (uint32_t)in->wait_count << 16 | (uint32_t)length << 24;
    return MERA_OK;
}

mera_status isa_decode(mera_context *ctx, const uint32_t *words, int64_t word_count, int64_t *word, instr *out)
{
    memset(out, 0, sizeof *out);
    if (*word >= word_count) return fail(ctx, MERA_CORRUPT, "code ends before its last instruction");
    const uint32_t header = words[*word];
    const int64_t length = header >> 24;
    out->opcode = header & 255;
    out->queue = header >> 8 & 255;
    out->wait_count = header >> 16 & 255;
    out->node = -1;
    if (out->opcode >= DNA_OPCODE_COUNT)
        return fail(ctx, MERA_CORRUPT, "code word %lld: no instruction has opcode %d", (long long)*word, out->opcode);
    if (out->wait_count > DNA_INSTRUCTION_WAITS)
        return fail(ctx, MERA_CORRUPT, "code word %lld: %d waits, at most %d are possible", (long long)*word,
                    out->wait_count, DNA_INSTRUCTION_WAITS);
    const isa_info *info = &table[out->opcode];
    int64_t bits = 0;
    for (int f = 0; f < info->field_count; f++) bits += abs(info->fields[f].bits);
    if (length != 1 + 2 * out->wait_count + ceil_div(bits, 32) || length > word_count - *word)
        return fail(ctx, MERA_CORRUPT, "code word %lld: instruction %s has a wrong length of %lld words", (long long)*word,
                    info->name, (long long)length);
    const uint32_t *at = words + *word + 1;
    for (int w = 0; w < out->wait_count; w++, at += 2) {
        out->waits[w].queue = (int32_t)(at[0] & 0x7fffffff);
        out->waits[w].count = (int32_t)(at[1] & 0x7fffffff);
    }
    int filled = 0;
    for (int f = 0; f < info->field_count; f++) {
        const int width = abs(info->fields[f].bits);
        uint64_t value = 0;
        for (int got = 0; got < width;) {
            const int take = width - got < 32 - filled ? width - got : 32 - filled;
            value |= (uint64_t)(*at >> filled & (take == 32 ? 0xffffffffu : ((uint32_t)1 << take) - 1)) << got;
            got += take;
            filled += take;
            if (filled == 32) {
                filled = 0;
                at++;
            }
        }
        if (info->fields[f].bits < 0 && value >> (width - 1)) value |= ~(((uint64_t)1 << width) - 1);
        out->f[f] = (int64_t)value;
    }
    *word += length;
    return MERA_OK;
}

/* ---- text ---- */

void isa_print(text *t, const instr *in)
{
    const isa_info *info = &table[in->opcode];
    char queue[24];
    queue_print_name(queue, sizeof queue, in->queue);
    text_add(t, "%s.%s", queue, info->name);
    for (int w = 0; w < in->wait_count; w++) {
        queue_print_name(queue, sizeof queue, in->waits[w].queue);
        text_add(t, " wait %s>=%d", queue, in->waits[w].count);
    }
    for (int f = 0; f < info->field_count; f++)
        if (in->f[f]) text_add(t, " %s=%lld", info->fields[f].name, (long long)in->f[f]);
    if (in->node >= 0) text_add(t, " ; node %d", in->node);
    text_add(t, "\n");
}

static bool next_token(const char **at, char *token, size_t space)
{
    while (**at == ' ' || **at == '\t') ++*at;
    size_t n = 0;
    while (**at && **at != ' ' && **at != '\t' && **at != '\r' && n + 1 < space) token[n++] = *(*at)++;
    token[n] = 0;
    return n > 0;
}

static bool parse_integer(const char *s, int64_t *value)
{
    char *end;
    *value = strtoll(s, &end, 10);
    return *s && !*end;
}

mera_status isa_parse(mera_context *ctx, const char *line, int64_t number, instr *out)
{
    char token[96];
    memset(out, 0, sizeof *out);
    out->node = -1;
    const char *at = line;
    char *dot;
    if (!next_token(&at, token, sizeof token) || !(dot = strchr(token, '.')))
        return fail(ctx, MERA_INVALID_ARGUMENT, "line %lld: expected queue.instruction, got '%s'", (long long)number, token);
    *dot = 0;
    const int queue = queue_by_name(token);
    if (queue < 0) return fail(ctx, MERA_INVALID_ARGUMENT, "line %lld: no queue is named '%s'", (long long)number, token);
    out->queue = (uint8_t)queue;
    int opcode = 0;
    while (opcode < DNA_OPCODE_COUNT && strcmp(table[opcode].name, dot + 1)) opcode++;
    if (opcode == DNA_OPCODE_COUNT)
        return fail(ctx, MERA_INVALID_ARGUMENT, "line %lld: no instruction is named '%s'", (long long)number, dot + 1);
    out->opcode = (uint8_t)opcode;
    const isa_info *info = &table[opcode];
    while (next_token(&at, token, sizeof token)) {
        int64_t value;
        if (!strcmp(token, ";")) {
            if (next_token(&at, token, sizeof token) && !strcmp(token, "node") && next_token(&at, token, sizeof token) &&
                parse_integer(token, &value) && value >= 0 && value <= INT32_MAX)
                out->node = (int32_t)value;
            break;
        }
        if (!strcmp(token, "wait")) {
            char *compare;
            int q;
            if (out->wait_count == DNA_INSTRUCTION_WAITS)
                return fail(ctx, MERA_INVALID_ARGUMENT, "line %lld: more than %d waits", (long long)number,
                            DNA_INSTRUCTION_WAITS);
            if (!next_token(&at, token, sizeof token) || !(compare = strstr(token, ">=")) ||
                !parse_integer(compare + 2, &value) || value < 1 || value > INT32_MAX ||
                (*compare = 0, (q = queue_by_name(token)) < 0))
                return fail(ctx, MERA_INVALID_ARGUMENT, "line %lld: expected wait queue>=count", (long long)number);
            out->waits[out->wait_count++] = (instr_wait){q, (int32_t)value};
            continue;
        }
        char *equals = strchr(token, '=');
        if (equals) *equals = 0;
        int f = 0;
        while (f < info->field_count && strcmp(info->fields[f].name, token)) f++;
        if (!equals || f == info->field_count || !parse_integer(equals + 1, &value) || !fits(value, info->fields[f].bits))
            return fail(ctx, MERA_INVALID_ARGUMENT, "line %lld: '%s' is no field of %s with a value that fits",
                        (long long)number, token, info->name);
        out->f[f] = value;
    }
    return MERA_OK;
}

/* ---- what an instruction touches ---- */

static access span(const instr *i, int field, int64_t bytes)
{
    return (access){.field = field, .low = i->f[field], .high = i->f[field] + bytes};
}

/* Counted accesses: the extremes of base + sum(i_k * stride_k) over the counts, `bytes` long each. If the innermost
 * stride with a count > 1 is larger than the run and all others are its multiples, the set is periodic. */
static access strided(const instr *i, int field, bool write, int dims, const int64_t *count, const int64_t *stride,
                      int64_t bytes)
{
    const int64_t base = i->f[field];
    int64_t high = base, step = 0;
    for (int d = 0; d < dims; d++) {
        high += (count[d] - 1) * stride[d];
        if (count[d] > 1 && stride[d] > 0 && (step == 0 || stride[d] < step)) step = stride[d];
    }
    access a = {.write = write, .field = field, .low = base, .high = high + bytes};
    bool periodic = step > bytes;
    for (int d = 0; d < dims; d++) periodic = periodic && (count[d] <= 1 || stride[d] % (step ? step : 1) == 0);
    if (periodic) {
        a.period = step;
        a.phase = base % step;
        a.width = bytes;
    }
    return a;
}

/* The rows that kernel windows reach, cut to those that exist; whole rows unless the columns are periodic runs. */
static int window_read(access *out, int field, int64_t in, int64_t rows, int64_t row_bytes, int64_t pitch, int64_t iy0,
                       int64_t oh, int64_t sy, int64_t kh, int64_t dy, int64_t ix0, int64_t ow, int64_t sx, int64_t kw,
                       int64_t dx, int64_t run)
{
    const int64_t y0 = max_i64(0, iy0), y1 = min_i64(rows, iy0 + (oh - 1) * sy + (kh - 1) * dy + 1);
    const int64_t x0 = max_i64(0, ix0), x1 = min_i64(row_bytes, ix0 + (ow - 1) * sx + (kw - 1) * dx + run);
    if (y1 <= y0 || x1 <= x0) return 0;
    /* A grouped or sliced convolution reads `run` bytes out of every pixel: sx, dx and pitch are multiples of its step. */
    int64_t step = ow > 1 ? sx : 0;
    if (kw > 1) step = dx > 0 && (step == 0 || sx % dx == 0) ? dx : 0;
    access a = {.field = field, .low = in + y0 * pitch + x0, .high = in + (y1 - 1) * pitch + x1};
    if (step > run && pitch % step == 0 && (ow <= 1 || sx % step == 0)) {
        a.period = step;
        a.phase = ((in + ix0) % step + step) % step;
        a.width = run;
    }
    *out = a;
    return 1;
}

int instr_accesses(const instr *i, int array, access out[MAX_ACCESSES])
{
    const int64_t *f = i->f;
    int n = 0;
    switch ((dna_opcode)i->opcode) {
    case DNA_OP_LOAD:
    case DNA_OP_STORE: {
        const bool load = i->opcode == DNA_OP_LOAD;
        const int64_t counts[3] = {f[LOAD_n0], f[LOAD_n1], f[LOAD_n2]};
        const int64_t d[3] = {f[LOAD_d0], f[LOAD_d1], f[LOAD_d2]}, s[3] = {f[LOAD_s0], f[LOAD_s1], f[LOAD_s2]};
        out[n] = strided(i, LOAD_dram, !load, 3, counts, d, f[LOAD_run]);
        out[n++].dram = true;
        out[n++] = strided(i, LOAD_sram, load, 3, counts, s, f[LOAD_run]);
        break;
    }
    case DNA_OP_CONV: {
        const int64_t taps = f[CONV_kh] * f[CONV_kw], co = f[CONV_co], chunks = ceil_div(f[CONV_run], array);
        const int64_t last = f[CONV_run] - (chunks - 1) * array;
        n += window_read(&out[n], CONV_in, f[CONV_in], f[CONV_in_rows], f[CONV_in_row_bytes], f[CONV_in_pitch], f[CONV_iy0],
                         f[CONV_oh], f[CONV_sy], f[CONV_kh], f[CONV_dy], f[CONV_ix0], f[CONV_ow], f[CONV_sx], f[CONV_kw],
                         f[CONV_dx], f[CONV_run]);
        const int64_t tail = f[CONV_w_row] ? (co - 1) * f[CONV_w_row] + last : co * last;
        const int64_t whole = f[CONV_w_row] ? (co - 1) * f[CONV_w_row] + array : co * array;
        int64_t reach = (chunks - 1) * f[CONV_w_chunk] + tail;
        if (chunks > 1) reach = max_i64(reach, (chunks - 2) * f[CONV_w_chunk] + whole);
        out[n++] = span(i, CONV_w, (taps - 1) * f[CONV_w_tap] + reach);
        if (!f[CONV_last]) break;
        const int64_t counts[2] = {f[CONV_oh], f[CONV_ow]}, o[2] = {f[CONV_out_pitch], f[CONV_out_step]};
        const int64_t r[2] = {f[CONV_res_pitch], f[CONV_res_step]};
        out[n++] = span(i, CONV_param, drain_param_bytes(f));
        if (f[CONV_lut]) out[n++] = span(i, CONV_table, 256);
        if (f[CONV_add]) out[n++] = strided(i, CONV_res, false, 2, counts, r, co);
        out[n++] = strided(i, CONV_out, true, 2, counts, o, co);
        break;
    }
    case DNA_OP_WINDOW: {
        const int64_t taps = f[WINDOW_kh] * f[WINDOW_kw];
        n += window_read(&out[n], WINDOW_in, f[WINDOW_in], f[WINDOW_in_rows], f[WINDOW_in_row_bytes], f[WINDOW_in_pitch],
                         f[WINDOW_iy0], f[WINDOW_oh], f[WINDOW_sy], f[WINDOW_kh], f[WINDOW_dy], f[WINDOW_ix0], f[WINDOW_ow],
                         f[WINDOW_sx], f[WINDOW_kw], f[WINDOW_dx], f[WINDOW_run]);
        if (f[WINDOW_mode] == 0) {
            out[n++] = span(i, WINDOW_w, taps * f[WINDOW_channels]);
            out[n++] = span(i, WINDOW_param, DNA_PARAM_BYTES * f[WINDOW_channels]);
        }
        if (!f[WINDOW_last]) break;
        if (f[WINDOW_lut]) out[n++] = span(i, WINDOW_table, 256);
        const int64_t counts[2] = {f[WINDOW_oh], f[WINDOW_ow]}, o[2] = {f[WINDOW_out_pitch], f[WINDOW_out_step]};
        out[n++] = strided(i, WINDOW_out, true, 2, counts, o, f[WINDOW_run]);
        break;
    }
    case DNA_OP_VECTOR: {
        const int64_t counts[4] = {f[VECTOR_n0], f[VECTOR_n1], f[VECTOR_n2], f[VECTOR_n3]};
        if (f[VECTOR_mode] != 1) out[n++] = strided(i, VECTOR_a, false, 4, counts, &f[VECTOR_a0], f[VECTOR_run]);
        if (f[VECTOR_mode] >= 2)
            out[n++] = strided(i, VECTOR_b, false, 4, counts, &f[VECTOR_b0], f[VECTOR_b_scalar] ? 1 : f[VECTOR_run]);
        if (f[VECTOR_lut]) out[n++] = span(i, VECTOR_table, 256);
        out[n++] = strided(i, VECTOR_out, true, 4, counts, &f[VECTOR_o0], f[VECTOR_run]);
        break;
    }
    case DNA_OP_RESIZE: {
        const int64_t from[2] = {f[RESIZE_in_rows], f[RESIZE_in_columns]}, to[2] = {f[RESIZE_oh], f[RESIZE_ow]};
        const int64_t x[2] = {f[RESIZE_in_pitch], f[RESIZE_in_step]}, y[2] = {f[RESIZE_out_pitch], f[RESIZE_out_step]};
        out[n++] = strided(i, RESIZE_in, false, 2, from, x, f[RESIZE_run]);
        if (f[RESIZE_lut]) out[n++] = span(i, RESIZE_table, 256);
        out[n++] = strided(i, RESIZE_out, true, 2, to, y, f[RESIZE_run]);
        break;
    }
    case DNA_OP_SOFTMAX: {
        const int64_t counts[2] = {f[SOFTMAX_n0], f[SOFTMAX_n1]};
        out[n++] = strided(i, SOFTMAX_in, false, 2, counts, &f[SOFTMAX_a0], f[SOFTMAX_run]);
        out[n++] = span(i, SOFTMAX_table, SOFTMAX_TABLE_BYTES);
        out[n++] = strided(i, SOFTMAX_out, true, 2, counts, &f[SOFTMAX_o0], f[SOFTMAX_run]);
        break;
    }
    case DNA_OP_SYNC:
    case DNA_OPCODE_COUNT:
        break;
    }
    return n;
}

bool access_overlap(const access *a, const access *b)
{
    if (a->dram != b->dram || a->low >= b->high || b->low >= a->high) return false;
    if (a->period == 0 || a->period != b->period) return true;
    const int64_t p = a->period, from_a = ((b->phase - a->phase) % p + p) % p, from_b = ((a->phase - b->phase) % p + p) % p;
    return from_a < a->width || from_b < b->width;
}

/* ---- checks ---- */

/* The product of positive counts, or limit + 1 if it is larger than limit. */
static int64_t product(int64_t limit, int n, const int64_t *count)
{
    int64_t total = 1;
    for (int k = 0; k < n; k++) {
        if (count[k] > limit / total) return limit + 1;
        total *= count[k];
    }
    return total;
}

static mera_status bad(mera_context *ctx, const instr *i, int64_t index, const char *what)
{
    return fail(ctx, MERA_CORRUPT, "instruction %lld (%s): %s", (long long)index, table[i->opcode].name, what);
}

bool instr_bounded(const instr *i, const mera_platform *platform)
{
    const int64_t *f = i->f, limit = platform->sram_bytes;
    switch ((dna_opcode)i->opcode) {
    case DNA_OP_LOAD:
    case DNA_OP_STORE:
        return product(limit, 4, (int64_t[]){f[LOAD_run], f[LOAD_n0], f[LOAD_n1], f[LOAD_n2]}) <= limit;
    case DNA_OP_CONV:
        return product(limit, 4, (int64_t[]){f[CONV_run], f[CONV_kh], f[CONV_kw], f[CONV_co]}) <= limit;
    case DNA_OP_WINDOW:
        return product(limit, 3, (int64_t[]){f[WINDOW_run], f[WINDOW_oh], f[WINDOW_ow]}) <= limit &&
               product(limit << 7, 5, (int64_t[]){f[WINDOW_run], f[WINDOW_oh], f[WINDOW_ow], f[WINDOW_kh], f[WINDOW_kw]}) <=
                   limit << 7;
    case DNA_OP_VECTOR:
        return product(limit, 5, (int64_t[]){f[VECTOR_run], f[VECTOR_n0], f[VECTOR_n1], f[VECTOR_n2], f[VECTOR_n3]}) <=
               limit;
    case DNA_OP_RESIZE:
        return product(limit, 3, (int64_t[]){f[RESIZE_run], f[RESIZE_oh], f[RESIZE_ow]}) <= limit;
    case DNA_OP_SOFTMAX:
        return product(limit, 3, (int64_t[]){f[SOFTMAX_run], f[SOFTMAX_n0], f[SOFTMAX_n1]}) <= limit;
    case DNA_OP_SYNC:
    case DNA_OPCODE_COUNT:
        break;
    }
    return true;
}

mera_status instr_check(mera_context *ctx, const instr *i, int64_t index, const mera_platform *platform, int64_t dram_bytes)
{
    const int64_t *f = i->f;
    const isa_info *info = &table[i->opcode];
    const int kind = queue_kind(i->queue), queues = queue_count(platform->units);
    for (int n = 0; n < info->field_count; n++)
        if (!fits(f[n], info->fields[n].bits)) return bad(ctx, i, index, "a field is out of its width");
    if (i->queue >= queues) return bad(ctx, i, index, "the platform has no such queue");
    for (int w = 0; w < i->wait_count; w++)
        if (i->waits[w].queue < 0 || i->waits[w].queue >= queues || i->waits[w].count < 1)
            return bad(ctx, i, index, "it waits for a queue that does not exist");
    switch ((dna_opcode)i->opcode) {
    case DNA_OP_SYNC:
        return MERA_OK;
    case DNA_OP_LOAD:
        if (i->queue != QUEUE_CONST && i->queue != QUEUE_LOAD)
            return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[LOAD_n0] < 1 || f[LOAD_n1] < 1 || f[LOAD_n2] < 1 || f[LOAD_run] < 1)
            return bad(ctx, i, index, "a count is zero");
        break;
    case DNA_OP_STORE:
        if (i->queue != QUEUE_STORE) return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[STORE_n0] < 1 || f[STORE_n1] < 1 || f[STORE_n2] < 1 || f[STORE_run] < 1)
            return bad(ctx, i, index, "a count is zero");
        break;
    case DNA_OP_CONV:
        if (kind != UNIT_ARRAY) return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[CONV_dtype]) return bad(ctx, i, index, "dtype is reserved");
        if (f[CONV_oh] < 1 || f[CONV_ow] < 1 || f[CONV_oh] * f[CONV_ow] > DNA_ACCUMULATORS)
            return bad(ctx, i, index, "oh*ow is not in 1..512");
        if (f[CONV_kh] < 1 || f[CONV_kw] < 1 || f[CONV_run] < 1 || f[CONV_co] < 1 || f[CONV_co] > platform->array)
            return bad(ctx, i, index, "kh, kw, run or co is out of range");
        if (f[CONV_low] > f[CONV_high] || f[CONV_add_low] > f[CONV_add_high])
            return bad(ctx, i, index, "an empty clamp range");
        break;
    case DNA_OP_WINDOW:
        if (kind != UNIT_WINDOW) return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[WINDOW_dtype]) return bad(ctx, i, index, "dtype is reserved");
        if (f[WINDOW_oh] < 1 || f[WINDOW_ow] < 1 || f[WINDOW_kh] < 1 || f[WINDOW_kw] < 1 || f[WINDOW_run] < 1 ||
            f[WINDOW_channels] < 1)
            return bad(ctx, i, index, "a count is zero");
        if (f[WINDOW_mode] == 0 && f[WINDOW_kh] * f[WINDOW_kw] > DNA_WINDOW_TAPS)
            return bad(ctx, i, index, "kh*kw is more than the weight buffer holds");
        if (!(f[WINDOW_first] && f[WINDOW_last]) &&
            (f[WINDOW_mode] != 3 || f[WINDOW_oh] != 1 || f[WINDOW_ow] != 1 || f[WINDOW_run] > platform->array))
            return bad(ctx, i, index, "only the mean of one word of lanes can be taken in several instructions");
        if (f[WINDOW_kh] * f[WINDOW_kw] > (int64_t)1 << 23) return bad(ctx, i, index, "kh*kw is more than 2^23");
        if (f[WINDOW_low] > f[WINDOW_high]) return bad(ctx, i, index, "an empty clamp range");
        break;
    case DNA_OP_VECTOR:
        if (kind != UNIT_VECTOR) return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[VECTOR_dtype]) return bad(ctx, i, index, "dtype is reserved");
        if (f[VECTOR_mode] > 3) return bad(ctx, i, index, "no such mode");
        if (f[VECTOR_n0] < 1 || f[VECTOR_n1] < 1 || f[VECTOR_n2] < 1 || f[VECTOR_n3] < 1 || f[VECTOR_run] < 1)
            return bad(ctx, i, index, "a count is zero");
        if (f[VECTOR_low] > f[VECTOR_high]) return bad(ctx, i, index, "an empty clamp range");
        if (f[VECTOR_neg_a] && f[VECTOR_neg_b]) return bad(ctx, i, index, "both operands are negative");
        break;
    case DNA_OP_RESIZE:
        if (kind != UNIT_VECTOR) return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[RESIZE_dtype]) return bad(ctx, i, index, "dtype is reserved");
        if (f[RESIZE_in_rows] < 1 || f[RESIZE_in_columns] < 1 || f[RESIZE_oh] < 1 || f[RESIZE_ow] < 1 || f[RESIZE_run] < 1)
            return bad(ctx, i, index, "a count is zero");
        break;
    case DNA_OP_SOFTMAX:
        if (kind != UNIT_VECTOR) return bad(ctx, i, index, "it stands in a queue of another unit");
        if (f[SOFTMAX_dtype]) return bad(ctx, i, index, "dtype is reserved");
        if (f[SOFTMAX_n0] < 1 || f[SOFTMAX_n1] < 1 || f[SOFTMAX_run] < 1) return bad(ctx, i, index, "a count is zero");
        break;
    case DNA_OPCODE_COUNT:
        break;
    }
    if (!instr_bounded(i, platform)) return bad(ctx, i, index, "it would work on more bytes than memory holds");
    access a[MAX_ACCESSES];
    const int n = instr_accesses(i, platform->array, a);
    for (int k = 0; k < n; k++)
        if (a[k].low < 0 || a[k].high < a[k].low || a[k].high > (a[k].dram ? dram_bytes : platform->sram_bytes))
            return bad(ctx, i, index, "it reaches outside of memory");
    return MERA_OK;
}

/* ---- time ---- */

static int64_t bursts_of(int64_t address, int64_t run)
{
    return (address + run - 1) / DNA_DRAM_BURST_BYTES - address / DNA_DRAM_BURST_BYTES + 1;
}

int64_t dma_bursts(const instr *i)
{
    const int64_t *f = i->f;
    int64_t n0 = f[LOAD_n0], n1 = f[LOAD_n1], n2 = f[LOAD_n2], run = f[LOAD_run];
    /* Runs that follow each other in DRAM are one run. */
    if (f[LOAD_d2] == run || n2 == 1) {
        run *= n2;
        n2 = 1;
        if (f[LOAD_d1] == run || n1 == 1) {
            run *= n1;
            n1 = 1;
            if (f[LOAD_d0] == run || n0 == 1) {
                run *= n0;
                n0 = 1;
            }
        }
    }
    int64_t bursts = 0;
    for (int64_t a = 0; a < n0; a++)
        for (int64_t b = 0; b < n1; b++)
            for (int64_t c = 0; c < n2; c++)
                bursts += bursts_of(f[LOAD_dram] + a * f[LOAD_d0] + b * f[LOAD_d1] + c * f[LOAD_d2], run);
    return bursts;
}

int64_t instr_cycles(const instr *i, const mera_platform *platform)
{
    const int64_t *f = i->f;
    const int64_t w = platform->array;
    switch ((dna_opcode)i->opcode) {
    case DNA_OP_LOAD:
    case DNA_OP_STORE: {
        const double bytes_per_cycle = platform->dram_gbps * 1e3 / platform->clock_mhz;
        return (int64_t)((double)(dma_bursts(i) * DNA_DRAM_BURST_BYTES) / bytes_per_cycle) + 1;
    }
    case DNA_OP_CONV: {
        const int64_t load = ceil_div(f[CONV_co], DNA_WEIGHT_ROWS_PER_CYCLE);
        const int64_t steps = f[CONV_kh] * f[CONV_kw] * ceil_div(f[CONV_run], w);
        return steps * max_i64(f[CONV_oh] * f[CONV_ow], load);
    }
    case DNA_OP_WINDOW: {
        const int64_t taps = f[WINDOW_kh] * f[WINDOW_kw];
        const int64_t load = f[WINDOW_mode] == 0 ? taps + DNA_PARAM_BYTES : 0;
        const int64_t work = f[WINDOW_ow] * f[WINDOW_oh] * f[WINDOW_kw] * ceil_div(f[WINDOW_kh], DNA_WINDOW_ROWS);
        return load + ceil_div(f[WINDOW_run], w) * max_i64(work, load);
    }
    case DNA_OP_VECTOR:
        return f[VECTOR_n0] * f[VECTOR_n1] * f[VECTOR_n2] * f[VECTOR_n3] * ceil_div(f[VECTOR_run], w);
    case DNA_OP_SOFTMAX: {
        const int64_t rows = f[SOFTMAX_n0] * f[SOFTMAX_n1], run = f[SOFTMAX_run];
        return rows * (ceil_div(run, w) + 2 * ceil_div(4 * run, w)) + ceil_div(rows, w) * DNA_RECIPROCAL_CYCLES +
               SOFTMAX_TABLE_BYTES / w;
    }
    case DNA_OP_RESIZE:
        return f[RESIZE_oh] * f[RESIZE_ow] * ceil_div(f[RESIZE_run], w) * (f[RESIZE_mode] ? 2 : 1);
    case DNA_OP_SYNC:
    case DNA_OPCODE_COUNT:
        break;
    }
    return 1;
}
