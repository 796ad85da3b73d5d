/* accesses.c: an instruction touches no byte but those that instr_accesses names. Everything that checkers and scheduler
 * prove stands on that.
 *
 *   accesses GRAPH...      for each instruction of the compiled graphs: memory filled at random, the instruction executed;
 *                          no byte outside of its writes has changed, and with all bytes but its accesses filled anew it
 *                          writes the same
 *
 * Exit status: 0 if that holds.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "../sim.h"

static const mera_platform platforms[] = {
    {"narrow", 2, 16, 500.0, 24 << 10, 8.0, 0, 64, 50},
    {"wide", 1, 64, 500.0, 96 << 10, 8.0, 0, 32, 50},
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void must(mera_context *ctx, mera_status status, const char *what)
{
    if (status != MERA_OK) die(what, mera_last_error(ctx));
}

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool inside(const access *a, int64_t at)
{
    if (at < a->low || at >= a->high) return false;
    return a->period == 0 || ((at - a->phase) % a->period + a->period) % a->period < a->width;
}

/* Whether the byte is among the accesses; writes_only: among the writes. */
static bool named(const access *all, int count, bool dram, int64_t at, bool writes_only)
{
    for (int k = 0; k < count; k++)
        if (all[k].dram == dram && (all[k].write || !writes_only) && inside(&all[k], at)) return true;
    return false;
}

static bool check_memory(const access *all, int count, bool dram, const uint8_t *before, const uint8_t *after,
                         const uint8_t *again, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at++) {
        const bool written = named(all, count, dram, at, true);
        if (written ? after[at] != again[at] : after[at] != before[at]) return false;
    }
    return true;
}

/* SRAM, then DRAM, then accumulators and sums. */
typedef struct state {
    int64_t sram, dram, accumulators, sums;
    uint8_t *at;
} state;

static void *part(const state *s, int64_t offset) { return s->at + offset; }

static void set(mera_simulator *s, const state *m)
{
    memcpy(s->sram, part(m, 0), (size_t)m->sram);
    memcpy(s->dram, part(m, m->sram), (size_t)m->dram);
    memcpy(s->accumulators, part(m, m->sram + m->dram), (size_t)m->accumulators);
    memcpy(s->window_sums, part(m, m->sram + m->dram + m->accumulators), (size_t)m->sums);
}

static int64_t check_program(mera_simulator *s, const char *path)
{
    const mera_program *p = s->program;
    const mera_platform *f = &p->platform;
    state before = {.sram = f->sram_bytes, .dram = p->dram_bytes};
    before.accumulators = (int64_t)sizeof(int32_t) * DNA_ACCUMULATORS * f->array * f->units;
    before.sums = (int64_t)sizeof(int32_t) * 2 * f->array * f->units;
    const int64_t total = before.sram + before.dram + before.accumulators + before.sums;
    state changed = before;
    uint8_t *after = malloc((size_t)(before.sram + before.dram));
    before.at = malloc((size_t)total);
    changed.at = malloc((size_t)total);
    if (!before.at || !changed.at || !after) die("harness", "out of memory");
    uint64_t seed = 1;
    for (int64_t n = 0; n < p->code_count; n++) {
        access all[MAX_ACCESSES];
        const instr *i = &p->code[n];
        const int count = instr_accesses(i, f->array, all);
        for (int64_t k = 0; k < total; k++) before.at[k] = (uint8_t)next_random(&seed);
        memcpy(changed.at, before.at, (size_t)total);
        for (int64_t k = 0; k < before.sram + before.dram; k++) {
            const bool dram = k >= before.sram;
            if (!named(all, count, dram, dram ? k - before.sram : k, false)) changed.at[k] = (uint8_t)next_random(&seed);
        }
        set(s, &before);
        exec_instr(s, i);
        memcpy(after, s->sram, (size_t)before.sram);
        memcpy(after + before.sram, s->dram, (size_t)before.dram);
        set(s, &changed);
        exec_instr(s, i);
        if (!check_memory(all, count, false, before.at, after, s->sram, before.sram) ||
            !check_memory(all, count, true, before.at + before.sram, after + before.sram, s->dram, before.dram)) {
            fprintf(stderr, "%s on %s: instruction %" PRId64 " (%s) touches bytes that it does not name\n", path, f->name, n,
                    isa_table(i->opcode)->name);
            exit(1);
        }
    }
    free(before.at);
    free(changed.at);
    free(after);
    return p->code_count;
}

int main(int argc, char **argv)
{
    static char text[1 << 20];
    int64_t instructions = 0;
    mera_context *ctx = mera_context_create(-1);
    if (!ctx || argc < 2) die("usage", "accesses GRAPH...");
    for (int g = 1; g < argc; g++) {
        FILE *file = fopen(argv[g], "rb");
        if (!file) die("cannot read", argv[g]);
        const size_t bytes = fread(text, 1, sizeof text, file);
        fclose(file);
        mera_graph *graph = NULL;
        must(ctx, mera_graph_parse(ctx, text, bytes, &graph), argv[g]);
        for (size_t k = 0; k < sizeof platforms / sizeof *platforms; k++) {
            mera_program *program = NULL;
            mera_simulator *simulator = NULL;
            must(ctx, mera_compile(graph, &platforms[k], NULL, NULL, NULL, &program), argv[g]);
            must(ctx, mera_simulator_create(program, &simulator), argv[g]);
            instructions += check_program(simulator, argv[g]);
            mera_simulator_destroy(simulator);
            mera_program_destroy(program);
        }
        mera_graph_destroy(graph);
    }
    mera_context_destroy(ctx);
    printf("%" PRId64 " instructions\n", instructions);
    return 0;
}
