/* program.c: the program container, as bytes.
 *
 * Bytes: "MERA.DNA", version u32, zero u32, length u64 of the whole file, FNV-1a u64 of all that follows; then platform,
 * sizes, ports, nodes, code (words), node of each instruction, constants. Little endian. */
#include "program.h"

#include "bytes.h"

#define PROGRAM_VERSION 1
#define HEADER_BYTES 32
#define MAX_DRAM ((int64_t)1 << 38)
static const char magic[] = "MERA.DNA";

static void destroy(mera_object *object)
{
    mera_program *p = (mera_program *)object;
    mera_context *ctx = object->ctx;
    ctx_free(ctx, p->saved);
    arena_free(&p->memory);
    ctx_free(ctx, p);
}

mera_status program_create(mera_context *ctx, mera_program **out)
{
    mera_program *p = ctx_alloc(ctx, sizeof *p);
    if (!p) return out_of_memory(ctx);
    memset(p, 0, sizeof *p);
    arena_init(&p->memory, ctx);
    object_attach(ctx, &p->object, destroy);
    *out = p;
    return MERA_OK;
}

void mera_program_destroy(mera_program *program)
{
    if (!program) return;
    object_detach(&program->object);
    destroy(&program->object);
}

/* ---- validation ---- */

static mera_status validate_ports(mera_program *p, const program_port *ports, int32_t count, const char *what)
{
    for (int32_t k = 0; k < count; k++)
        if (ports[k].bytes < 1 || ports[k].dram < p->constant_bytes || ports[k].dram > p->dram_bytes - ports[k].bytes)
            return fail(p->object.ctx, MERA_CORRUPT, "program: %s %d lies outside of DRAM", what, k);
    return MERA_OK;
}

mera_status program_validate(mera_program *p)
{
    mera_context *ctx = p->object.ctx;
    if (mera_platform_check(ctx, &p->platform) != MERA_OK)
        return fail(ctx, MERA_CORRUPT, "program: its platform is not valid");
    if (p->dram_bytes < p->constant_bytes || p->dram_bytes > MAX_DRAM || p->sram_peak < 0 ||
        p->sram_peak > p->platform.sram_bytes)
        return fail(ctx, MERA_CORRUPT, "program: memory sizes out of range");
    TRY(validate_ports(p, p->inputs, p->input_count, "input"));
    TRY(validate_ports(p, p->outputs, p->output_count, "output"));
    int64_t macs = 0; /* the sum must not overflow */
    for (int32_t k = 0; k < p->node_count; k++) {
        if (p->nodes[k].macs < 0 || p->nodes[k].macs > ((int64_t)1 << 62) - macs)
            return fail(ctx, MERA_CORRUPT, "program: node %d has %lld multiply-accumulates", k, (long long)p->nodes[k].macs);
        macs += p->nodes[k].macs;
    }
    int64_t in_queue[MAX_QUEUES] = {0};
    bool open[MAX_QUEUES] = {false}; /* a reduction has begun and not ended */
    for (int64_t i = 0; i < p->code_count; i++) {
        TRY(instr_check(ctx, &p->code[i], i, &p->platform, p->dram_bytes));
        if (p->code[i].node < -1 || p->code[i].node >= p->node_count)
            return fail(ctx, MERA_CORRUPT, "instruction %lld belongs to no node of the layer table", (long long)i);
        access a[MAX_ACCESSES];
        const int n = instr_accesses(&p->code[i], p->platform.array, a);
        for (int k = 0; k < n; k++)
            if (a[k].dram && a[k].write && a[k].low < p->constant_bytes)
                return fail(ctx, MERA_CORRUPT, "instruction %lld writes into the constants", (long long)i);
        in_queue[p->code[i].queue]++;
        if (p->code[i].opcode != DNA_OP_CONV && p->code[i].opcode != DNA_OP_WINDOW) continue;
        if (instr_first(&p->code[i]) == open[p->code[i].queue])
            return fail(ctx, MERA_CORRUPT, "instruction %lld: reductions of one unit are nested or begin in the middle",
                        (long long)i);
        open[p->code[i].queue] = !instr_last(&p->code[i]);
    }
    for (int q = 0; q < MAX_QUEUES; q++)
        if (open[q]) return fail(ctx, MERA_CORRUPT, "a reduction is never drained");
    for (int64_t i = 0; i < p->code_count; i++)
        for (int w = 0; w < p->code[i].wait_count; w++)
            if (p->code[i].waits[w].count > in_queue[p->code[i].waits[w].queue])
                return fail(ctx, MERA_CORRUPT, "instruction %lld waits for more instructions than its queue holds",
                            (long long)i);
    return MERA_OK;
}

/* ---- bytes ---- */

static void write_ports(text *t, const program_port *ports, int32_t count)
{
    write_u32(t, (uint32_t)count);
    for (int32_t k = 0; k < count; k++) {
        write_text(t, ports[k].name);
        write_u64(t, (uint64_t)ports[k].dram);
        write_u64(t, (uint64_t)ports[k].bytes);
    }
}

mera_status mera_program_save(mera_program *p, const uint8_t **data, size_t *bytes)
{
    mera_context *ctx = p->object.ctx;
    word_vec words = {0};
    for (int64_t i = 0; i < p->code_count; i++) {
        const mera_status status = isa_encode(ctx, &p->code[i], &words);
        if (status == MERA_OK) continue;
        vec_free(ctx, &words);
        return status;
    }
    text t;
    text_init(&t, ctx);
    text_bytes(&t, magic, 8);
    write_u32(&t, PROGRAM_VERSION);
    write_u32(&t, 0);
    write_u64(&t, 0); /* length and checksum: below */
    write_u64(&t, 0);
    write_text(&t, p->platform.name);
    write_u32(&t, (uint32_t)p->platform.units);
    write_u32(&t, (uint32_t)p->platform.array);
    write_f64(&t, p->platform.clock_mhz);
    write_u64(&t, (uint64_t)p->platform.sram_bytes);
    write_f64(&t, p->platform.dram_gbps);
    write_u32(&t, (uint32_t)p->platform.bf16);
    write_u32(&t, (uint32_t)p->platform.sram_banks);
    write_u32(&t, (uint32_t)p->platform.dram_latency_cycles);
    write_u64(&t, (uint64_t)p->sram_peak);
    write_u64(&t, (uint64_t)p->dram_bytes);
    write_ports(&t, p->inputs, p->input_count);
    write_ports(&t, p->outputs, p->output_count);
    write_u32(&t, (uint32_t)p->node_count);
    for (int32_t k = 0; k < p->node_count; k++) {
        write_text(&t, p->nodes[k].name);
        write_text(&t, p->nodes[k].op);
        write_text(&t, p->nodes[k].layer);
        write_text(&t, p->nodes[k].source);
        write_u64(&t, (uint64_t)p->nodes[k].macs);
    }
    write_u64(&t, (uint64_t)p->code_count);
    for (int64_t i = 0; i < p->code_count; i++) write_u32(&t, (uint32_t)p->code[i].node);
    write_u64(&t, words.count);
    for (size_t w = 0; w < words.count; w++) write_u32(&t, words.at[w]);
    vec_free(ctx, &words);
    write_u64(&t, (uint64_t)p->constant_bytes);
    if (p->constant_bytes) text_bytes(&t, p->constants, (size_t)p->constant_bytes);
    const size_t total = t.count;
    char *file;
    TRY(text_finish(&t, &file));
    const uint64_t length = total, sum = fnv1a(file + HEADER_BYTES, total - HEADER_BYTES);
    for (int k = 0; k < 8; k++) {
        file[16 + k] = (char)(uint8_t)(length >> (8 * k));
        file[24 + k] = (char)(uint8_t)(sum >> (8 * k));
    }
    ctx_free(ctx, p->saved);
    p->saved = (uint8_t *)file;
    *data = p->saved;
    *bytes = total;
    return MERA_OK;
}

static mera_status cut_short(mera_context *ctx, const char *where)
{
    return fail(ctx, MERA_CORRUPT, "program file: it ends inside of its %s", where);
}

/* count items of at least `least` bytes each must still fit into the file, or the count is a lie. */
static bool plausible(const reader *r, uint64_t count, uint64_t least)
{
    return !r->failed && count <= (uint64_t)(r->end - r->at) / least;
}

static mera_status read_ports(mera_program *p, reader *r, program_port **ports, int32_t *count)
{
    mera_context *ctx = p->object.ctx;
    const uint32_t n = read_u32(r);
    if (!plausible(r, n, 20) || n > 65536) return cut_short(ctx, "interface");
    *count = (int32_t)n;
    if (!(*ports = arena_array(&p->memory, (size_t)n + 1, sizeof **ports))) return out_of_memory(ctx);
    for (uint32_t k = 0; k < n; k++) {
        (*ports)[k].name = read_text(r, &p->memory);
        (*ports)[k].dram = (int64_t)(read_u64(r) & INT64_MAX);
        (*ports)[k].bytes = (int64_t)(read_u64(r) & INT64_MAX);
        if (!(*ports)[k].name) return r->failed ? cut_short(ctx, "interface") : out_of_memory(ctx);
    }
    return r->failed ? cut_short(ctx, "interface") : MERA_OK;
}

static mera_status read_body(mera_program *p, reader *r)
{
    mera_context *ctx = p->object.ctx;
    const char *name = read_text(r, &p->memory);
    if (!name) return r->failed ? cut_short(ctx, "platform") : out_of_memory(ctx);
    if (strlen(name) >= sizeof p->platform.name)
        return fail(ctx, MERA_CORRUPT, "program file: the platform's name is too long");
    strcpy(p->platform.name, name);
    p->platform.units = (int32_t)read_u32(r);
    p->platform.array = (int32_t)read_u32(r);
    p->platform.clock_mhz = read_f64(r);
    p->platform.sram_bytes = (int64_t)read_u64(r);
    p->platform.dram_gbps = read_f64(r);
    p->platform.bf16 = (int32_t)read_u32(r);
    p->platform.sram_banks = (int32_t)read_u32(r);
    p->platform.dram_latency_cycles = (int32_t)read_u32(r);
    p->sram_peak = (int64_t)read_u64(r);
    p->dram_bytes = (int64_t)read_u64(r);
    if (r->failed) return cut_short(ctx, "platform");
    TRY(read_ports(p, r, &p->inputs, &p->input_count));
    TRY(read_ports(p, r, &p->outputs, &p->output_count));
    const uint32_t nodes = read_u32(r);
    if (!plausible(r, nodes, 24)) return cut_short(ctx, "layer table");
    p->node_count = (int32_t)nodes;
    if (!(p->nodes = arena_array(&p->memory, (size_t)nodes + 1, sizeof *p->nodes))) return out_of_memory(ctx);
    for (uint32_t k = 0; k < nodes; k++) {
        program_node *n = &p->nodes[k];
        n->name = read_text(r, &p->memory);
        n->op = read_text(r, &p->memory);
        n->layer = read_text(r, &p->memory);
        n->source = read_text(r, &p->memory);
        n->macs = (int64_t)(read_u64(r) & INT64_MAX);
        if (!n->name || !n->op || !n->layer || !n->source || r->failed)
            return r->failed ? cut_short(ctx, "layer table") : out_of_memory(ctx);
    }
    const uint64_t instructions = read_u64(r);
    if (!plausible(r, instructions, 8)) return cut_short(ctx, "code");
    p->code_count = (int64_t)instructions;
    if (!(p->code = arena_array(&p->memory, (size_t)instructions + 1, sizeof *p->code))) return out_of_memory(ctx);
    reader node_of = *r;
    read_bytes(r, 4 * instructions);
    const uint64_t word_count = read_u64(r);
    if (!plausible(r, word_count, 4)) return cut_short(ctx, "code");
    uint32_t *words = ctx_alloc(ctx, 4 * (size_t)word_count + 4);
    if (!words) return out_of_memory(ctx);
    for (uint64_t w = 0; w < word_count; w++) words[w] = read_u32(r);
    mera_status status = MERA_OK;
    int64_t at = 0;
    for (uint64_t i = 0; i < instructions && status == MERA_OK; i++) {
        status = isa_decode(ctx, words, (int64_t)word_count, &at, &p->code[i]);
        p->code[i].node = (int32_t)read_u32(&node_of);
    }
    if (status == MERA_OK && at != (int64_t)word_count)
        status = fail(ctx, MERA_CORRUPT, "program file: code goes on behind its last instruction");
    ctx_free(ctx, words);
    TRY(status);
    const uint64_t constants = read_u64(r);
    const uint8_t *data = read_bytes(r, constants);
    if (!data) return cut_short(ctx, "constants");
    if (r->at != r->end) return fail(ctx, MERA_CORRUPT, "program file: there are bytes behind its end");
    uint8_t *copy = arena_array(&p->memory, (size_t)constants + 1, 1);
    if (!copy) return out_of_memory(ctx);
    memcpy(copy, data, (size_t)constants);
    p->constants = copy;
    p->constant_bytes = (int64_t)constants;
    return program_validate(p);
}

mera_status mera_program_load(mera_context *ctx, const uint8_t *data, size_t bytes, mera_program **program)
{
    if (bytes < HEADER_BYTES || memcmp(data, magic, 8))
        return fail(ctx, MERA_CORRUPT, "program file: it does not begin as a DNA program does");
    reader r = {data + 8, data + bytes, false};
    const uint32_t version = read_u32(&r), reserved = read_u32(&r);
    if (version != PROGRAM_VERSION)
        return fail(ctx, MERA_CORRUPT, "program file: version %u, this build reads version %d; compile the model again",
                    version, PROGRAM_VERSION);
    if (reserved != 0) return fail(ctx, MERA_CORRUPT, "program file: its reserved word is not 0: it was altered");
    const uint64_t length = read_u64(&r), sum = read_u64(&r);
    if (length != bytes)
        return fail(ctx, MERA_CORRUPT, "program file: %llu bytes, its header says %llu: it was truncated or extended",
                    (unsigned long long)bytes, (unsigned long long)length);
    if (sum != fnv1a(data + HEADER_BYTES, bytes - HEADER_BYTES))
        return fail(ctx, MERA_CORRUPT, "program file: its checksum is wrong: it was altered");
    mera_program *p = NULL;
    TRY(program_create(ctx, &p));
    const mera_status status = read_body(p, &r);
    if (status == MERA_OK)
        *program = p;
    else
        mera_program_destroy(p);
    return status;
}

/* ---- reflection ---- */

void mera_program_platform(const mera_program *p, mera_platform *platform) { *platform = p->platform; }
int64_t mera_program_instruction_count(const mera_program *p) { return p->code_count; }
int64_t mera_program_constant_bytes(const mera_program *p) { return p->constant_bytes; }
int64_t mera_program_sram_peak_bytes(const mera_program *p) { return p->sram_peak; }
int32_t mera_program_input_count(const mera_program *p) { return p->input_count; }
int32_t mera_program_output_count(const mera_program *p) { return p->output_count; }
int64_t mera_program_input_bytes(const mera_program *p, int32_t k)
{
    return k >= 0 && k < p->input_count ? p->inputs[k].bytes : 0;
}
int64_t mera_program_output_bytes(const mera_program *p, int32_t k)
{
    return k >= 0 && k < p->output_count ? p->outputs[k].bytes : 0;
}
int32_t mera_program_node_count(const mera_program *p) { return p->node_count; }
static const program_node *node_of(const mera_program *p, int32_t n)
{
    static const program_node none = {"", "", "", "", 0};
    return n >= 0 && n < p->node_count ? &p->nodes[n] : &none;
}
const char *mera_program_node_name(const mera_program *p, int32_t n) { return node_of(p, n)->name; }
const char *mera_program_node_op(const mera_program *p, int32_t n) { return node_of(p, n)->op; }
const char *mera_program_node_layer(const mera_program *p, int32_t n) { return node_of(p, n)->layer; }
const char *mera_program_node_source(const mera_program *p, int32_t n) { return node_of(p, n)->source; }
int32_t mera_program_queue_count(const mera_program *p) { return queue_count(p->platform.units); }
const char *mera_program_queue_name(const mera_program *p, int32_t queue)
{
    static const char *const dma[] = {"const", "load", "store"};
    static const char *const units[][UNIT_QUEUES] = {
#define U(n) {"array" #n, "window" #n, "vector" #n}
        U(0), U(1),  U(2),  U(3),  U(4),  U(5),  U(6), U(7), U(8),
        U(9), U(10), U(11), U(12), U(13), U(14), U(15)
#undef U
    };
    if (queue < 0 || queue >= queue_count(p->platform.units)) return "";
    return queue < QUEUE_UNITS ? dma[queue] : units[(queue - QUEUE_UNITS) / UNIT_QUEUES][queue_kind(queue)];
}
