/* checkers.c: the compiler's checkers can fail. Compiles a graph, spoils the result in one place after the other, and counts
 * what the checkers find.
 *
 *   checkers GRAPH...      prints for each checker how many of the spoilt results it refused
 *
 * Exit status: 0 if the unspoilt results pass, and the checkers refuse enough of the spoilt ones.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "../compile.h"

static const mera_platform platform = {"checked", 3, 16, 500.0, 64 << 10, 8.0, 0, 64, 50};

typedef struct tally {
    int64_t tried, refused;
} tally;

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void must(mera_context *ctx, mera_status status, const char *what)
{
    if (status != MERA_OK) die(what, mera_last_error(ctx));
}

static void count(tally *t, mera_status status)
{
    t->tried++;
    t->refused += status == MERA_INTERNAL;
}

/* The first stages, as compile.c runs them. */
static mera_status until_lowered(compiler *c)
{
    TRY(stage_fuse(c));
    c->chunk_bytes = 4096;
    c->slack = platform.sram_bytes / 4;
    TRY(stage_plan(c));
    return stage_lower(c);
}

/* An operand of a job begins where its buffer ends, or in front of it. */
static void spoil_lowering(compiler *c, tally *t)
{
    for (size_t i = 0; i < c->jobs.count; i++) {
        job *j = &c->jobs.at[i];
        access a[MAX_ACCESSES];
        const int accesses = instr_accesses(&j->i, platform.array, a);
        for (int k = 0; k < j->fix_count; k++) {
            bool used = false; /* a window in the padding alone reads nothing */
            for (int n = 0; n < accesses; n++) used = used || a[n].field == j->fix[k].field;
            if (!used) continue;
            int64_t *field = &j->i.f[j->fix[k].field];
            const int64_t kept = *field, spoilt[2] = {kept + c->buffers.at[j->fix[k].buffer].bytes,
                                                      kept - c->buffers.at[j->fix[k].buffer].bytes};
            for (int s = 0; s < 2; s++) {
                *field = spoilt[s];
                count(t, check_lower(c, MERA_INTERNAL));
            }
            *field = kept;
        }
    }
}

/* A buffer moves onto another one that lives at the same time, or out of SRAM. */
static void spoil_allocation(compiler *c, tally *t)
{
    for (size_t a = 0; a < c->buffers.count; a++) {
        buffer *x = &c->buffers.at[a];
        if (x->kind == BUFFER_DRAM || x->last < 0) continue;
        const int64_t kept = x->address;
        x->address = c->platform.sram_bytes - x->bytes + 1;
        count(t, check_alloc(c));
        for (size_t b = 0; b < c->buffers.count; b++) {
            const buffer *y = &c->buffers.at[b];
            if (b == a || y->kind == BUFFER_DRAM || y->last < x->first || y->first > x->last) continue;
            x->address = y->address + y->bytes - 1;
            if (x->address + x->bytes > c->platform.sram_bytes) x->address = y->address;
            count(t, check_alloc(c));
            break;
        }
        x->address = kept;
    }
}

/* A wait is left out, or is for one instruction fewer; and two queues wait for each other. */
static void spoil_schedule(compiler *c, tally *dropped, tally *deadlocked)
{
    for (size_t i = 0; i < c->code.count; i++) {
        instr *x = &c->code.at[i];
        const instr kept = *x;
        for (int w = 0; w < kept.wait_count; w++) {
            x->waits[w].count--;
            if (x->waits[w].count == 0) {
                x->waits[w] = x->waits[x->wait_count - 1];
                x->wait_count--;
            }
            count(dropped, check_schedule(c->ctx, &platform, c->code.at, c->code.count));
            *x = kept;
        }
        if (i + 1 == c->code.count || x->wait_count == DNA_INSTRUCTION_WAITS) continue;
        int64_t total = 0; /* its own queue's last instruction: it comes never before itself */
        for (size_t k = 0; k < c->code.count; k++) total += c->code.at[k].queue == x->queue;
        x->waits[x->wait_count++] = (instr_wait){x->queue, (int32_t)total};
        count(deadlocked, check_schedule(c->ctx, &platform, c->code.at, c->code.count));
        *x = kept;
    }
}

/* One field of one instruction differs between code and program. */
static void spoil_encoding(compiler *c, const mera_program *program, tally *t)
{
    for (size_t i = 0; i < c->code.count; i++) {
        instr *x = &c->code.at[i];
        for (int f = 0; f < isa_table(x->opcode)->field_count; f++) {
            const int64_t kept = x->f[f];
            x->f[f] = (int64_t)1 << 62; /* no field has so many bits */
            t->tried++;
            t->refused += check_encoding(c, program) != MERA_OK;
            x->f[f] = kept;
        }
    }
}

static void check_graph(mera_context *ctx, const char *path, tally t[5])
{
    static char text[1 << 20];
    FILE *file = fopen(path, "rb");
    if (!file) die("cannot read", path);
    const size_t bytes = fread(text, 1, sizeof text, file);
    fclose(file);
    mera_graph *graph = NULL;
    mera_program *program = NULL;
    must(ctx, mera_graph_parse(ctx, text, bytes, &graph), path);
    compiler c = {.ctx = ctx, .graph = graph, .platform = platform};
    arena_init(&c.memory, ctx);
    must(ctx, until_lowered(&c), path);
    spoil_lowering(&c, &t[4]);
    must(ctx, stage_alloc(&c), path);
    must(ctx, stage_schedule(&c), path);
    must(ctx, check_schedule(ctx, &platform, c.code.at, c.code.count), path);
    must(ctx, stage_program(&c, &program), path);
    spoil_encoding(&c, program, &t[3]);
    spoil_schedule(&c, &t[1], &t[2]);
    spoil_allocation(&c, &t[0]);
    mera_program_destroy(program);
    for (size_t i = 0; i < c.layers.count; i++) vec_free(ctx, &c.layers.at[i].pieces);
    vec_free(ctx, &c.layers);
    vec_free(ctx, &c.roots);
    vec_free(ctx, &c.jobs);
    vec_free(ctx, &c.buffers);
    vec_free(ctx, &c.constants);
    vec_free(ctx, &c.code);
    arena_free(&c.memory);
    mera_graph_destroy(graph);
}

int main(int argc, char **argv)
{
    /* Not every wait that is left out is a race: memory that changes hands is waited for as a whole. */
    static const struct {
        const char *name;
        int least_percent;
    } checkers[5] = {{"allocation", 100},
                     {"schedule, a wait less", 60},
                     {"schedule, deadlock", 100},
                     {"encoding", 100},
                     {"lowering", 100}};
    tally t[5] = {{0, 0}};
    int failures = 0;
    mera_context *ctx = mera_context_create(-1);
    if (!ctx || argc < 2) die("usage", "checkers GRAPH...");
    for (int i = 1; i < argc; i++) check_graph(ctx, argv[i], t);
    for (int k = 0; k < 5; k++) {
        printf("%s: %" PRId64 " of %" PRId64 " refused\n", checkers[k].name, t[k].refused, t[k].tried);
        failures += t[k].tried == 0 || t[k].refused * 100 < t[k].tried * checkers[k].least_percent;
    }
    mera_context_destroy(ctx);
    return failures > 0;
}
