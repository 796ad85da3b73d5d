/* torture.c: the C core under sanitizers, driven by graph texts: every platform, every failing allocation, altered files.
 *
 *   torture run GRAPH...                 every platform: compile, save, load, run; simulator and interpreter must agree
 *   torture allocations GRAPH...         allocation N fails, for every N: each call reports it, nothing leaks
 *   torture fuzz SEED FIRST LAST GRAPH...   altered graph and program files number FIRST to LAST - 1 are loaded and, if
 *                                        they load, run; a number gives the same file again
 *
 * Exit status: 0 if all went well. What a sanitizer finds ends the process by itself.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../core.h"

enum { SECONDS = 60 }; /* that one fuzz run may take */

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t below(uint64_t *state, uint64_t limit) { return limit ? next_random(state) % limit : 0; }

static void die(const char *what, const char *detail)
{
    fprintf(stderr, "torture: %s: %s\n", what, detail);
    exit(1);
}

static void must(mera_context *ctx, mera_status status, const char *what)
{
    if (status != MERA_OK) die(what, mera_last_error(ctx));
}

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) die("harness", "out of memory");
    return memory;
}

static char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) die("cannot read", path);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *text = allocate(*bytes + 1);
    if (fread(text, 1, *bytes, file) != *bytes) die("cannot read", path);
    fclose(file);
    text[*bytes] = '\0';
    return text;
}

/* ---- platforms: the table's, and small ones that force tiling ---- */

static const mera_platform small_platforms[] = {
    {"small16", 1, 16, 500.0, 16 << 10, 8.0, 0, 16, 50},
    {"small16x2", 2, 16, 500.0, 32 << 10, 8.0, 0, 32, 50},
    {"small32", 4, 32, 500.0, 64 << 10, 8.0, 0, 64, 50},
    {"wide", 1, 128, 500.0, 64 << 10, 8.0, 0, 16, 50},
};
enum { SMALL_COUNT = sizeof small_platforms / sizeof *small_platforms };

static int32_t platform_count(void) { return mera_platform_count() + SMALL_COUNT; }

static mera_platform platform_at(int32_t index)
{
    return index < SMALL_COUNT ? small_platforms[index] : *mera_platform_at(index - SMALL_COUNT);
}

/* ---- buffers: exactly as large as they must be, so that ASan sees every byte too far ---- */

typedef struct buffers {
    int32_t count;
    void **at;
    int64_t *bytes;
} buffers;

typedef int64_t size_of(const void *object, int32_t index);
static int64_t graph_input_size(const void *g, int32_t i)
{
    return mera_graph_tensor_bytes(g, mera_graph_input_tensor(g, i));
}
static int64_t graph_output_size(const void *g, int32_t i)
{
    return mera_graph_tensor_bytes(g, mera_graph_output_tensor(g, i));
}
static int64_t program_input_size(const void *p, int32_t i) { return mera_program_input_bytes(p, i); }
static int64_t program_output_size(const void *p, int32_t i) { return mera_program_output_bytes(p, i); }

static buffers buffers_new(const void *object, int32_t count, size_of *size, uint64_t seed)
{
    buffers b = {count, allocate((size_t)count * sizeof(void *)), allocate((size_t)count * sizeof(int64_t))};
    for (int32_t i = 0; i < count; i++) {
        b.bytes[i] = size(object, i);
        b.at[i] = allocate((size_t)b.bytes[i]);
        for (int64_t k = 0; k < b.bytes[i]; k++) ((uint8_t *)b.at[i])[k] = (uint8_t)next_random(&seed);
    }
    return b;
}

static void buffers_free(buffers *b)
{
    for (int32_t i = 0; i < b->count; i++) free(b->at[i]);
    free(b->at);
    free(b->bytes);
}

static mera_status interpret(mera_graph *graph, const buffers *in, buffers *out)
{
    mera_interpreter *interpreter = NULL;
    mera_status status = mera_interpreter_create(graph, &interpreter);
    if (status == MERA_OK)
        status = mera_interpreter_run(interpreter, in->count, (const void *const *)in->at, in->bytes, out->count, out->at,
                                      out->bytes);
    mera_interpreter_destroy(interpreter);
    return status;
}

static mera_status simulate(mera_program *program, const buffers *in, buffers *out)
{
    mera_simulator *simulator = NULL;
    mera_stats stats;
    mera_status status = mera_simulator_create(program, &simulator);
    if (status == MERA_OK)
        status = mera_simulator_run(simulator, in->count, (const void *const *)in->at, in->bytes, out->count, out->at,
                                    out->bytes);
    if (status == MERA_OK) status = mera_simulator_stats(simulator, &stats);
    mera_simulator_destroy(simulator);
    return status;
}

enum { MOST_BYTES = 64 << 20 }; /* of all inputs or outputs of an altered file that is run */

static bool small_enough(const void *object, int32_t count, size_of *size)
{
    int64_t left = MOST_BYTES;
    for (int32_t i = 0; i < count && left >= 0; i++) left = size(object, i) <= left ? left - size(object, i) : -1;
    return left >= 0;
}

static mera_status run_graph(mera_graph *graph)
{
    if (!small_enough(graph, mera_graph_input_count(graph), graph_input_size) ||
        !small_enough(graph, mera_graph_output_count(graph), graph_output_size))
        return MERA_OK;
    buffers in = buffers_new(graph, mera_graph_input_count(graph), graph_input_size, 1);
    buffers out = buffers_new(graph, mera_graph_output_count(graph), graph_output_size, 2);
    const mera_status status = interpret(graph, &in, &out);
    buffers_free(&in);
    buffers_free(&out);
    return status;
}

static mera_status run_program(mera_program *program)
{
    if (!small_enough(program, mera_program_input_count(program), program_input_size) ||
        !small_enough(program, mera_program_output_count(program), program_output_size))
        return MERA_OK;
    buffers in = buffers_new(program, mera_program_input_count(program), program_input_size, 1);
    buffers out = buffers_new(program, mera_program_output_count(program), program_output_size, 2);
    const mera_status status = simulate(program, &in, &out);
    buffers_free(&in);
    buffers_free(&out);
    return status;
}

/* ---- run ---- */

static void expect_same(const buffers *wanted, const buffers *got, const char *path, const char *what)
{
    for (int32_t i = 0; i < wanted->count; i++)
        if (wanted->bytes[i] != got->bytes[i] || memcmp(wanted->at[i], got->at[i], (size_t)wanted->bytes[i]) != 0) {
            char text[512];
            snprintf(text, sizeof text, "%.256s: output %d is not the interpreter's", what, i);
            die(path, text);
        }
}

static void run_file(const char *path)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    mera_context *ctx = mera_context_create(-1);
    mera_graph *graph;
    must(ctx, mera_graph_parse(ctx, text, bytes, &graph), path);
    const int32_t inputs = mera_graph_input_count(graph), outputs = mera_graph_output_count(graph);
    buffers in = buffers_new(graph, inputs, graph_input_size, 1), wanted = buffers_new(graph, outputs, graph_output_size, 2);
    must(ctx, interpret(graph, &in, &wanted), path);
    int32_t ran = 0;
    for (int32_t p = 0; p < platform_count(); p++) {
        const mera_platform platform = platform_at(p);
        const mera_options options = {0};
        mera_program *program, *loaded;
        const mera_status status = mera_compile(graph, &platform, &options, NULL, NULL, &program);
        if (status == MERA_DOES_NOT_FIT && p < SMALL_COUNT) continue;
        must(ctx, status, platform.name);
        const uint8_t *data;
        size_t size;
        must(ctx, mera_program_save(program, &data, &size), "save");
        must(ctx, mera_program_load(ctx, data, size, &loaded), "load");
        buffers got = buffers_new(loaded, mera_program_output_count(loaded), program_output_size, 3);
        must(ctx, simulate(loaded, &in, &got), platform.name);
        expect_same(&wanted, &got, path, platform.name);
        buffers_free(&got);
        mera_program_destroy(program);
        mera_program_destroy(loaded);
        ran++;
    }
    printf("%s: %d of %d platforms, equal\n", path, ran, platform_count());
    buffers_free(&in);
    buffers_free(&wanted);
    mera_context_destroy(ctx);
    free(text);
}

/* ---- allocations ---- */

/* Everything that allocates, once; stops at the first status that is not MERA_OK. */
static mera_status whole_life(mera_context *ctx, const char *text, size_t bytes, const mera_platform *platform)
{
    const mera_options options = {0};
    mera_graph *graph, *graph_again, *graph_loaded;
    mera_program *program, *program_again, *program_loaded;
    const uint8_t *data;
    char *printed = NULL;
    size_t size;
    mera_status status = mera_graph_parse(ctx, text, bytes, &graph);
    if (status == MERA_OK) status = mera_graph_print(graph, 1, &printed);
    if (status == MERA_OK) {
        status = mera_graph_parse(ctx, printed, strlen(printed), &graph_again);
        mera_free_text(ctx, printed);
    }
    if (status == MERA_OK) status = mera_graph_save(graph, &data, &size);
    if (status == MERA_OK) status = mera_graph_load(ctx, data, size, &graph_loaded);
    if (status == MERA_OK) status = run_graph(graph_loaded);
    if (status == MERA_OK) status = mera_compile(graph, platform, &options, NULL, NULL, &program);
    if (status == MERA_OK) status = mera_program_print(program, &printed);
    if (status == MERA_OK) {
        status = mera_program_parse(ctx, printed, strlen(printed), &program_again);
        mera_free_text(ctx, printed);
    }
    if (status == MERA_OK) status = mera_program_save(program, &data, &size);
    if (status == MERA_OK) status = mera_program_load(ctx, data, size, &program_loaded);
    if (status == MERA_OK) status = run_program(program_loaded);
    return status;
}

static void allocations_file(const char *path)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    mera_platform platform = platform_at(0);
    mera_context *unlimited = mera_context_create(-1);
    mera_status status = whole_life(unlimited, text, bytes, &platform);
    if (status == MERA_DOES_NOT_FIT) {
        platform = platform_at(SMALL_COUNT);
        status = whole_life(unlimited, text, bytes, &platform);
    }
    must(unlimited, status, path);
    mera_context_destroy(unlimited);
    status = MERA_OUT_OF_MEMORY;
    int64_t n = 0;
    for (; status == MERA_OUT_OF_MEMORY; n++) {
        mera_context *ctx = mera_context_create(n);
        if (!ctx) continue;
        status = whole_life(ctx, text, bytes, &platform);
        if (status != MERA_OK && mera_last_error(ctx)[0] == '\0') die(path, "a failure without a message");
        if (status != MERA_OK && status != MERA_OUT_OF_MEMORY) die(path, mera_last_error(ctx));
        mera_context_destroy(ctx);
    }
    printf("%s: %" PRId64 " allocations failed one by one\n", path, n - 1);
    free(text);
}

/* ---- fuzz ---- */

typedef struct blob {
    uint8_t *at;
    size_t bytes;
} blob;

static blob blob_copy(const void *data, size_t bytes)
{
    blob b = {allocate(bytes), bytes};
    memcpy(b.at, data, bytes);
    return b;
}

enum { GRAPH_FILE, PROGRAM_FILE, GRAPH_TEXT, PROGRAM_TEXT, KINDS };
typedef struct sample {
    blob files[KINDS];
} sample;

static sample sample_of(const char *path, int32_t index)
{
    size_t bytes;
    char *text = read_file(path, &bytes), *printed;
    mera_context *ctx = mera_context_create(-1);
    const mera_options options = {0};
    const uint8_t *data;
    mera_graph *graph;
    mera_program *program;
    sample s = {0};
    must(ctx, mera_graph_parse(ctx, text, bytes, &graph), path);
    s.files[GRAPH_TEXT] = blob_copy(text, bytes);
    must(ctx, mera_graph_save(graph, &data, &bytes), path);
    s.files[GRAPH_FILE] = blob_copy(data, bytes);
    mera_platform platform = platform_at(index % SMALL_COUNT); /* little SRAM to clear */
    mera_status status = mera_compile(graph, &platform, &options, NULL, NULL, &program);
    if (status == MERA_DOES_NOT_FIT) {
        platform = platform_at(SMALL_COUNT);
        status = mera_compile(graph, &platform, &options, NULL, NULL, &program);
    }
    must(ctx, status, path);
    must(ctx, mera_program_save(program, &data, &bytes), path);
    s.files[PROGRAM_FILE] = blob_copy(data, bytes);
    must(ctx, mera_program_print(program, &printed), path);
    s.files[PROGRAM_TEXT] = blob_copy(printed, strlen(printed));
    mera_free_text(ctx, printed);
    mera_context_destroy(ctx);
    free(text);
    return s;
}

static void splice(blob *b, size_t at, size_t cut, const uint8_t *with, size_t bytes)
{
    uint8_t *joined = allocate(b->bytes - cut + bytes);
    memcpy(joined, b->at, at);
    if (bytes) memcpy(joined + at, with, bytes);
    memcpy(joined + at + bytes, b->at + at + cut, b->bytes - at - cut);
    free(b->at);
    *b = (blob){joined, b->bytes - cut + bytes};
}

static void put_u64(uint8_t *at, uint64_t value)
{
    for (int k = 0; k < 8; k++) at[k] = (uint8_t)(value >> (8 * k));
}

/* Makes length and checksum right again, so that the reader behind them is reached; see graph_file.c and program.c. */
static void seal(blob *b, int kind)
{
    const size_t header = kind == GRAPH_FILE ? 28 : 32, length = kind == GRAPH_FILE ? 12 : 16;
    if (b->bytes < header) return;
    put_u64(b->at + length, kind == GRAPH_FILE ? b->bytes - header : b->bytes);
    put_u64(b->at + length + 8, fnv1a(b->at + header, b->bytes - header));
}

/* One alteration: of bits, of a number, of the length, or a piece taken from elsewhere in `other`. */
static void mutate(blob *b, const blob *other, uint64_t *random)
{
    static const uint64_t extremes[] = {0,
                                        1,
                                        2,
                                        0x7f,
                                        0x80,
                                        0xff,
                                        0x7fff,
                                        0xffff,
                                        0x7fffffff,
                                        0x80000000,
                                        0xffffffff,
                                        0x7fffffffffffffff,
                                        0x8000000000000000,
                                        0xffffffffffffffff};
    if (!b->bytes) return;
    const size_t at = below(random, b->bytes), piece = below(random, 1 + below(random, 256));
    switch (below(random, 8)) {
    case 0:
    case 1: /* bits */
        for (uint64_t k = 1 + below(random, 4); k; k--) b->at[below(random, b->bytes)] ^= (uint8_t)(1u << below(random, 8));
        break;
    case 2: { /* a number of 1, 2, 4 or 8 bytes, aligned, becomes extreme */
        const size_t width = (size_t)1 << below(random, 4), start = at / width * width;
        const uint64_t value = extremes[below(random, sizeof extremes / sizeof *extremes)];
        for (size_t k = 0; k < width && start + k < b->bytes; k++) b->at[start + k] = (uint8_t)(value >> (8 * k));
        break;
    }
    case 3: { /* ... or a little larger or smaller */
        const size_t start = at / 4 * 4;
        if (start + 4 <= b->bytes) {
            uint32_t number;
            memcpy(&number, b->at + start, 4);
            number += (uint32_t)below(random, 9) - 4;
            memcpy(b->at + start, &number, 4);
        }
        break;
    }
    case 4: /* truncation */
        splice(b, at, b->bytes - at, NULL, 0);
        break;
    case 5: /* a piece left out */
        splice(b, at, piece < b->bytes - at ? piece : b->bytes - at, NULL, 0);
        break;
    default: { /* a piece of another file inserted, or written over this one */
        const size_t from = below(random, other->bytes), most = other->bytes - from, bytes = piece < most ? piece : most;
        const size_t room = b->bytes - at, cut = below(random, 2) ? 0 : bytes < room ? bytes : room;
        splice(b, at, cut, other->at + from, bytes);
    }
    }
}

/* Loads and, if that succeeds, runs. Returns whether it loaded. */
static bool try_file(mera_context *ctx, int kind, const blob *file, mera_status *status)
{
    mera_graph *graph = NULL;
    mera_program *program = NULL;
    const char *text = (const char *)file->at;
    *status = kind == GRAPH_FILE     ? mera_graph_load(ctx, file->at, file->bytes, &graph)
              : kind == GRAPH_TEXT   ? mera_graph_parse(ctx, text, file->bytes, &graph)
              : kind == PROGRAM_FILE ? mera_program_load(ctx, file->at, file->bytes, &program)
                                     : mera_program_parse(ctx, text, file->bytes, &program);
    if (*status != MERA_OK) return false;
    *status = graph ? run_graph(graph) : run_program(program);
    return true;
}

static volatile int64_t fuzz_index; /* of the run under way, for those who tell of its end */

static void tell_index(void)
{
    char text[64];
    const int length = snprintf(text, sizeof text, "torture: it was fuzz run %" PRId64 "\n", fuzz_index);
    if (write(2, text, (size_t)length) < 0) _exit(2);
}

static void aborted(int number) /* by a sanitizer, see sanitize.sh */
{
    (void)number;
    tell_index();
    _exit(1);
}

static void too_long(int number)
{
    (void)number;
    tell_index();
    static const char text[] = "torture: and took too long\n";
    _exit(write(2, text, sizeof text - 1) > 0 ? 1 : 2);
}

static void fuzz(uint64_t seed, int64_t first, int64_t last, const sample *samples, int count)
{
    static const char *const names[KINDS] = {"graph files", "program files", "graph texts", "program texts"};
    int64_t tried[KINDS] = {0}, loaded[KINDS] = {0}, ran[KINDS] = {0};
    signal(SIGALRM, too_long);
    signal(SIGABRT, aborted);
    for (int64_t i = first; i < last; i++) {
        uint64_t random = seed ^ ((uint64_t)i * 0xd1342543de82ef95u);
        const sample *s = &samples[below(&random, (uint64_t)count)], *t = &samples[below(&random, (uint64_t)count)];
        const int kind = below(&random, 2) ? PROGRAM_FILE : (int)below(&random, KINDS);
        blob file = blob_copy(s->files[kind].at, s->files[kind].bytes);
        for (uint64_t k = 1 + below(&random, 3); k; k--) mutate(&file, &t->files[kind], &random);
        if (kind <= PROGRAM_FILE && below(&random, 8)) seal(&file, kind);
        fuzz_index = i;
        alarm(SECONDS);
        mera_context *ctx = mera_context_create(-1);
        mera_status status;
        tried[kind]++;
        if (try_file(ctx, kind, &file, &status)) loaded[kind]++, ran[kind] += status == MERA_OK;
        if (status != MERA_OK && mera_last_error(ctx)[0] == '\0') die("fuzz", "a failure without a message");
        if (status == MERA_INTERNAL) {
            fprintf(stderr, "torture: fuzz run %" PRId64 ": internal error: %s\n", i, mera_last_error(ctx));
            exit(1);
        }
        mera_context_destroy(ctx);
        free(file.at);
    }
    alarm(0);
    for (int k = 0; k < KINDS; k++)
        printf("%s: %" PRId64 " altered, %" PRId64 " loaded all the same, %" PRId64 " ran\n", names[k], tried[k], loaded[k],
               ran[k]);
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "run") == 0 && argc > 2) {
        for (int i = 2; i < argc; i++) run_file(argv[i]);
    } else if (strcmp(command, "allocations") == 0 && argc > 2) {
        for (int i = 2; i < argc; i++) allocations_file(argv[i]);
    } else if (strcmp(command, "fuzz") == 0 && argc > 5) {
        const int count = argc - 5;
        sample *samples = allocate((size_t)count * sizeof *samples);
        for (int i = 0; i < count; i++) samples[i] = sample_of(argv[5 + i], i);
        fuzz(strtoull(argv[2], NULL, 0), atoll(argv[3]), atoll(argv[4]), samples, count);
        for (int i = 0; i < count; i++)
            for (int k = 0; k < KINDS; k++) free(samples[i].files[k].at);
        free(samples);
    } else {
        fputs("usage: torture run GRAPH... | allocations GRAPH... | fuzz SEED FIRST LAST GRAPH...\n", stderr);
        return 2;
    }
    return 0;
}
