/* program_text.c: the program as assembly, printed and read back. */
#include <stdlib.h>

#include "program.h"

static void print_string(text *t, const char *s)
{
    text_add(t, " \"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\' || (unsigned char)*s < 32)
            text_add(t, "\\%02x", (unsigned char)*s);
        else
            text_bytes(t, s, 1);
    }
    text_add(t, "\"");
}

static void print_ports(text *t, const char *what, const program_port *ports, int32_t count)
{
    for (int32_t k = 0; k < count; k++) {
        text_add(t, "%s", what);
        print_string(t, ports[k].name);
        text_add(t, " %lld %lld\n", (long long)ports[k].dram, (long long)ports[k].bytes);
    }
}

mera_status mera_program_print(mera_program *p, char **out)
{
    static const char digits[] = "0123456789abcdef";
    const mera_platform *f = &p->platform;
    text t;
    text_init(&t, p->object.ctx);
    text_add(&t, "platform");
    print_string(&t, f->name);
    text_add(&t, " %d %d %.17g %lld %.17g %d %d %d\n", f->units, f->array, f->clock_mhz, (long long)f->sram_bytes,
             f->dram_gbps, f->bf16, f->sram_banks, f->dram_latency_cycles);
    text_add(&t, "memory %lld %lld\n", (long long)p->sram_peak, (long long)p->dram_bytes);
    print_ports(&t, "input", p->inputs, p->input_count);
    print_ports(&t, "output", p->outputs, p->output_count);
    for (int32_t k = 0; k < p->node_count; k++) {
        text_add(&t, "node");
        print_string(&t, p->nodes[k].name);
        print_string(&t, p->nodes[k].op);
        print_string(&t, p->nodes[k].layer);
        print_string(&t, p->nodes[k].source);
        text_add(&t, " %lld\n", (long long)p->nodes[k].macs);
    }
    text_add(&t, "code\n");
    for (int64_t i = 0; i < p->code_count; i++) isa_print(&t, &p->code[i]);
    text_add(&t, "constants %lld", (long long)p->constant_bytes);
    for (int64_t i = 0; i < p->constant_bytes; i++) {
        const char two[3] = {i % 64 ? digits[p->constants[i] >> 4] : '\n',
                             i % 64 ? digits[p->constants[i] & 15] : digits[p->constants[i] >> 4],
                             digits[p->constants[i] & 15]};
        text_bytes(&t, two, i % 64 ? 2 : 3);
    }
    text_add(&t, "\n");
    return text_finish(&t, out);
}

typedef struct scanner {
    mera_program *p;
    const char *at, *end;
    int64_t line;
    bool out_of_memory;
} scanner;

static mera_status syntax(const scanner *s, const char *what)
{
    if (s->out_of_memory) return out_of_memory(s->p->object.ctx);
    return fail(s->p->object.ctx, MERA_INVALID_ARGUMENT, "program text, line %lld: expected %s", (long long)s->line, what);
}

static void skip_blanks(scanner *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t')) s->at++;
}

static bool take_word(scanner *s, char *word, size_t space)
{
    size_t n = 0;
    skip_blanks(s);
    while (s->at<s->end && * s->at> ' ' && n + 1 < space) word[n++] = *s->at++;
    word[n] = 0;
    return n > 0;
}

static bool take_number(scanner *s, double *real, int64_t *whole)
{
    char word[48], *stop;
    if (!take_word(s, word, sizeof word)) return false;
    if (whole)
        *whole = strtoll(word, &stop, 10);
    else
        *real = strtod(word, &stop);
    return *stop == 0;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

static bool take_string(scanner *s, const char **out)
{
    skip_blanks(s);
    if (s->at == s->end || *s->at++ != '"') return false;
    const char *stop = s->at;
    while (stop < s->end && *stop != '"' && *stop != '\n') stop++;
    if (stop == s->end || *stop != '"') return false;
    char *to = arena_array(&s->p->memory, (size_t)(stop - s->at) + 1, 1);
    s->out_of_memory = !to;
    if (!to) return false;
    *out = to;
    while (s->at < stop) {
        if (*s->at != '\\') {
            *to++ = *s->at++;
            continue;
        }
        if (stop - s->at < 3 || hex_digit(s->at[1]) < 0 || hex_digit(s->at[2]) < 0) return false;
        *to++ = (char)(hex_digit(s->at[1]) * 16 + hex_digit(s->at[2]));
        s->at += 3;
    }
    s->at++;
    return true;
}

static mera_status next_line(scanner *s)
{
    skip_blanks(s);
    if (s->at < s->end && *s->at == '\r') s->at++;
    if (s->at < s->end && *s->at != '\n') return syntax(s, "the end of the line");
    if (s->at < s->end) s->at++;
    s->line++;
    return MERA_OK;
}

static mera_status scan_constants(scanner *s)
{
    mera_program *p = s->p;
    if (!take_number(s, NULL, &p->constant_bytes) || p->constant_bytes < 0 || p->constant_bytes > (s->end - s->at))
        return syntax(s, "a number of bytes");
    uint8_t *data = arena_array(&p->memory, (size_t)p->constant_bytes + 1, 1);
    if (!data) return out_of_memory(p->object.ctx);
    p->constants = data;
    for (int64_t i = 0; i < p->constant_bytes; i++) {
        while (s->at < s->end && (*s->at == '\n' || *s->at == '\r' || *s->at == ' ')) {
            s->line += *s->at == '\n';
            s->at++;
        }
        if (s->end - s->at < 2 || hex_digit(s->at[0]) < 0 || hex_digit(s->at[1]) < 0)
            return syntax(s, "two hexadecimal digits");
        data[i] = (uint8_t)(hex_digit(s->at[0]) * 16 + hex_digit(s->at[1]));
        s->at += 2;
    }
    return MERA_OK;
}

typedef struct scanned {
    VEC(program_port) inputs;
    VEC(program_port) outputs;
    VEC(program_node) nodes;
    VEC(instr) code;
} scanned;

static mera_status scan_lines(scanner *s, scanned *all)
{
    mera_program *p = s->p;
    mera_context *ctx = p->object.ctx;
    bool code = false;
    while (s->at < s->end) {
        skip_blanks(s);
        if (s->at == s->end) break;
        const char *start = s->at;
        char word[32];
        bool pushed = true;
        if (*s->at == '\n' || *s->at == '\r' || *s->at == '#') {
            while (s->at < s->end && *s->at != '\n') s->at++;
            TRY(next_line(s));
            continue;
        }
        if (!take_word(s, word, sizeof word)) return syntax(s, "a word");
        if (!strcmp(word, "constants")) {
            TRY(scan_constants(s));
        } else if (code) {
            while (s->at < s->end && *s->at != '\n') s->at++;
            const size_t length = (size_t)(s->at - start);
            char line[4096];
            instr i;
            if (length >= sizeof line) return syntax(s, "a shorter line");
            memcpy(line, start, length);
            line[length] = 0;
            TRY(isa_parse(ctx, line, s->line, &i));
            pushed = vec_push(ctx, &all->code, i);
        } else if (!strcmp(word, "platform")) {
            const char *name;
            int64_t units, array, sram, bf16, banks, latency;
            if (!take_string(s, &name) || strlen(name) >= sizeof p->platform.name || !take_number(s, NULL, &units) ||
                !take_number(s, NULL, &array) || !take_number(s, &p->platform.clock_mhz, NULL) ||
                !take_number(s, NULL, &sram) || !take_number(s, &p->platform.dram_gbps, NULL) ||
                !take_number(s, NULL, &bf16) || !take_number(s, NULL, &banks) || !take_number(s, NULL, &latency))
                return syntax(s, "platform \"name\" units array clock sram gbps bf16 banks latency");
            strcpy(p->platform.name, name);
            p->platform.units = (int32_t)units;
            p->platform.array = (int32_t)array;
            p->platform.sram_bytes = sram;
            p->platform.bf16 = (int32_t)bf16;
            p->platform.sram_banks = (int32_t)banks;
            p->platform.dram_latency_cycles = (int32_t)latency;
        } else if (!strcmp(word, "memory")) {
            if (!take_number(s, NULL, &p->sram_peak) || !take_number(s, NULL, &p->dram_bytes))
                return syntax(s, "memory sram dram");
        } else if (!strcmp(word, "input") || !strcmp(word, "output")) {
            program_port port;
            if (!take_string(s, &port.name) || !take_number(s, NULL, &port.dram) || !take_number(s, NULL, &port.bytes) ||
                port.dram < 0)
                return syntax(s, "\"name\" address bytes");
            pushed = word[0] == 'i' ? vec_push(ctx, &all->inputs, port) : vec_push(ctx, &all->outputs, port);
        } else if (!strcmp(word, "node")) {
            program_node n;
            if (!take_string(s, &n.name) || !take_string(s, &n.op) || !take_string(s, &n.layer) ||
                !take_string(s, &n.source) || !take_number(s, NULL, &n.macs))
                return syntax(s, "\"name\" \"op\" \"layer\" \"source\" macs");
            pushed = vec_push(ctx, &all->nodes, n);
        } else if (!strcmp(word, "code")) {
            code = true;
        } else {
            return syntax(s, "platform, memory, input, output, node, code or constants");
        }
        if (!pushed) return out_of_memory(ctx);
        TRY(next_line(s));
    }
    return MERA_OK;
}

static void *keep(arena *a, const void *from, size_t count, size_t size)
{
    void *to = arena_array(a, count + 1, size);
    if (to && count) memcpy(to, from, count * size);
    return to;
}

mera_status mera_program_parse(mera_context *ctx, const char *data, size_t bytes, mera_program **program)
{
    scanner s = {NULL, data, data + bytes, 1, false};
    scanned all = {0};
    TRY(program_create(ctx, &s.p));
    mera_program *p = s.p;
    mera_status status = scan_lines(&s, &all);
    if (status == MERA_OK) {
        p->input_count = (int32_t)all.inputs.count;
        p->output_count = (int32_t)all.outputs.count;
        p->node_count = (int32_t)all.nodes.count;
        p->code_count = (int64_t)all.code.count;
        p->inputs = keep(&p->memory, all.inputs.at, all.inputs.count, sizeof *p->inputs);
        p->outputs = keep(&p->memory, all.outputs.at, all.outputs.count, sizeof *p->outputs);
        p->nodes = keep(&p->memory, all.nodes.at, all.nodes.count, sizeof *p->nodes);
        p->code = keep(&p->memory, all.code.at, all.code.count, sizeof *p->code);
        if (!p->constants) p->constants = keep(&p->memory, NULL, 0, 1);
        status = p->inputs && p->outputs && p->nodes && p->code && p->constants ? program_validate(p) : out_of_memory(ctx);
    }
    vec_free(ctx, &all.inputs);
    vec_free(ctx, &all.outputs);
    vec_free(ctx, &all.nodes);
    vec_free(ctx, &all.code);
    if (status == MERA_OK)
        *program = p;
    else
        mera_program_destroy(p);
    return status;
}
