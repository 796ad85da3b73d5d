/* board.c: driver and emulated board under sanitizers.
 *
 *   board run FOLDER GRAPH...            both transports, three threads on one device: the Simulator's bytes and cycles
 *   board allocations FOLDER GRAPH...    allocation N of driver or board fails, for every N: reported, and nothing leaks
 *   board fuzz FOLDER SEED COUNT GRAPH...   the board is given COUNT chains of altered descriptors, instructions and rings
 *
 * FOLDER is for the board's files. Exit status: 0 if all went well. What a sanitizer finds ends the process by itself.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "../device/board_state.h"
#include "../program.h"

unsigned alarm(unsigned seconds); /* of unistd.h, whose access() is another than isa.h's */

enum { SECONDS = 120, THREADS = 3, RUNS = 12 };

static const mera_platform machine = {"small32", 4, 32, 500.0, 64 << 10, 8.0, 0, 64, 50};

static void die(const char *what, const char *detail)
{
    fprintf(stderr, "board: %s: %s\n", what, detail);
    exit(1);
}

static void must(mera_context *ctx, mera_status status, const char *what)
{
    if (status != MERA_OK) die(what, mera_last_error(ctx));
}

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory) die("harness", "out of memory");
    return memory;
}

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t below(uint64_t *state, uint64_t limit) { return limit ? next_random(state) % limit : 0; }

/* ---- a program, its inputs, and what the Simulator makes of them ---- */

typedef struct sample {
    mera_context *ctx;
    mera_program *program;
    int32_t inputs, outputs;
    void **in, **out;
    int64_t *in_bytes, *out_bytes;
    mera_stats stats;
} sample;

static char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) die("cannot read", path);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *text = allocate(*bytes + 1);
    if (fread(text, 1, *bytes, file) != *bytes) die("cannot read", path);
    fclose(file);
    return text;
}

static void **buffers(int32_t count, const int64_t *bytes, uint64_t seed)
{
    void **at = allocate((size_t)count * sizeof *at);
    for (int32_t k = 0; k < count; k++) {
        at[k] = allocate((size_t)bytes[k]);
        for (int64_t b = 0; b < bytes[k]; b++) ((uint8_t *)at[k])[b] = (uint8_t)next_random(&seed);
    }
    return at;
}

static void buffers_free(void **at, int32_t count)
{
    for (int32_t k = 0; k < count; k++) free(at[k]);
    free(at);
}

static sample sample_of(const char *path)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    sample s = {.ctx = mera_context_create(-1)};
    mera_graph *graph;
    mera_simulator *simulator;
    const mera_options options = {0};
    must(s.ctx, mera_graph_parse(s.ctx, text, bytes, &graph), path);
    must(s.ctx, mera_compile(graph, &machine, &options, NULL, NULL, &s.program), path);
    s.inputs = mera_program_input_count(s.program);
    s.outputs = mera_program_output_count(s.program);
    s.in_bytes = allocate((size_t)s.inputs * 8);
    s.out_bytes = allocate((size_t)s.outputs * 8);
    for (int32_t k = 0; k < s.inputs; k++) s.in_bytes[k] = mera_program_input_bytes(s.program, k);
    for (int32_t k = 0; k < s.outputs; k++) s.out_bytes[k] = mera_program_output_bytes(s.program, k);
    s.in = buffers(s.inputs, s.in_bytes, 1);
    s.out = buffers(s.outputs, s.out_bytes, 2);
    must(s.ctx, mera_simulator_create(s.program, &simulator), path);
    must(s.ctx,
         mera_simulator_run(simulator, s.inputs, (const void *const *)s.in, s.in_bytes, s.outputs, s.out, s.out_bytes),
         path);
    must(s.ctx, mera_simulator_stats(simulator, &s.stats), path);
    free(text);
    return s;
}

static void sample_free(sample *s)
{
    buffers_free(s->in, s->inputs);
    buffers_free(s->out, s->outputs);
    free(s->in_bytes);
    free(s->out_bytes);
    mera_context_destroy(s->ctx);
}

/* ---- run ---- */

typedef struct server {
    dna_board *board;
    pthread_t thread;
    atomic_bool stop;
} server;

static void *serve(void *user)
{
    server *s = user;
    while (!atomic_load(&s->stop) && board_serve(s->board, 20) == MERA_OK) continue;
    return NULL;
}

static void start(server *s)
{
    atomic_store(&s->stop, false);
    if (pthread_create(&s->thread, NULL, serve, s) != 0) die("harness", "no thread");
}

static void stop(server *s)
{
    atomic_store(&s->stop, true);
    pthread_join(s->thread, NULL);
}

typedef struct user {
    const sample *s;
    dna_device *device;
    int32_t slot;
} user;

static void *use(void *argument)
{
    const user *u = argument;
    const sample *s = u->s;
    mera_context *ctx = mera_context_create(-1);
    void **in = allocate((size_t)s->inputs * sizeof *in); /* the first one where the device reaches it by itself */
    memcpy(in, s->in, (size_t)s->inputs * sizeof *in);
    must(ctx, device_buffer(ctx, u->device, s->in_bytes[0], &in[0]), "device_buffer");
    memcpy(in[0], s->in[0], (size_t)s->in_bytes[0]);
    for (int k = 0; k < RUNS; k++) {
        void **out = buffers(s->outputs, s->out_bytes, 3);
        must(ctx,
             device_run(ctx, u->device, u->slot, s->inputs, k % 2 ? (const void *const *)in : (const void *const *)s->in,
                        s->in_bytes, s->outputs, out, s->out_bytes, 0),
             "device_run");
        for (int32_t n = 0; n < s->outputs; n++)
            if (memcmp(out[n], s->out[n], (size_t)s->out_bytes[n]) != 0)
                die("device_run", "other bytes than the Simulator's");
        buffers_free(out, s->outputs);
    }
    device_buffer_free(u->device, in[0]);
    free(in);
    mera_context_destroy(ctx);
    return NULL;
}

static device_options driver_options(const char *folder, bool pcie, char paths[4][PATH_BYTES])
{
    static const char *const names[4] = {"sys", "dev", "hugepages", "pagemap"};
    for (int k = 0; k < 4; k++)
        if (!path_print(paths[k], "%s/%s", folder, names[k])) die("harness", "the folder's path is too long");
    device_options options = {.runtime_folder = folder, .timeout_ms = 30000, .verify_runs = 1};
    if (!pcie) return options;
    options.sysfs = paths[0];
    options.dev = paths[1];
    options.hugepages = paths[2];
    options.pagemap = paths[3];
    options.dma_bytes = 1 << 20;
    return options;
}

static void run_sample(const sample *s, const char *folder, bool pcie)
{
    char paths[4][PATH_BYTES];
    const device_options options = driver_options(folder, pcie, paths);
    const board_options board = {.platform = machine, .runtime_folder = folder, .pcie_root = pcie ? folder : NULL};
    server served = {0};
    mera_context *ctx = mera_context_create(-1), *board_ctx = mera_context_create(-1);
    must(board_ctx, board_create(board_ctx, &board, &served.board), "board_create");
    start(&served);
    dna_device *device;
    pthread_t threads[THREADS];
    user u = {.s = s};
    char *json;
    must(ctx, device_list(ctx, &options, &json), "device_list");
    if (!strstr(json, board_address(served.board))) die("device_list", json);
    mera_free_text(ctx, json);
    must(ctx, device_open(ctx, board_address(served.board), &options, &device), "device_open");
    u.device = device;
    must(ctx, device_load(ctx, device, s->program, &u.slot), "device_load");
    for (int k = 0; k < THREADS; k++)
        if (pthread_create(&threads[k], NULL, use, &u) != 0) die("harness", "no thread");
    for (int k = 0; k < THREADS; k++) pthread_join(threads[k], NULL);
    mera_stats stats;
    must(ctx, device_stats(ctx, device, u.slot, &stats), "device_stats");
    if (memcmp(&stats, &s->stats, sizeof stats) != 0) die("device_stats", "other figures than the Simulator's");
    must(ctx, device_reset(ctx, device), "device_reset");
    use(&u);
    must(ctx, device_unload(ctx, device, u.slot), "device_unload");
    device_close(device);
    stop(&served);
    board_destroy(served.board);
    mera_context_destroy(board_ctx);
    mera_context_destroy(ctx);
}

/* ---- allocations ---- */

/* One life of a device whose allocation n fails; the first status that is not MERA_OK. */
static mera_status device_life(mera_context *ctx, const sample *s, const char *address, const device_options *options)
{
    dna_device *device;
    int32_t slot;
    TRY(device_open(ctx, address, options, &device));
    mera_status status = device_load(ctx, device, s->program, &slot);
    void **out = buffers(s->outputs, s->out_bytes, 3);
    if (status == MERA_OK)
        status = device_run(ctx, device, slot, s->inputs, (const void *const *)s->in, s->in_bytes, s->outputs, out,
                            s->out_bytes, 0);
    buffers_free(out, s->outputs);
    device_close(device);
    return status;
}

static void allocations(const sample *s, const char *folder)
{
    char paths[4][PATH_BYTES];
    device_options options = driver_options(folder, false, paths);
    const board_options wanted = {.platform = machine, .runtime_folder = folder};
    int64_t board_failures = 0, failures = 0, own = 0;
    for (mera_status status = MERA_OUT_OF_MEMORY; status != MERA_OK; board_failures++) {
        mera_context *ctx = mera_context_create(board_failures + 1);
        dna_board *board = NULL;
        status = board_create(ctx, &wanted, &board);
        if (status != MERA_OK && status != MERA_OUT_OF_MEMORY) die("board_create", mera_last_error(ctx));
        board_destroy(board);
        mera_context_destroy(ctx);
    }
    server served = {0};
    mera_context *board_ctx = mera_context_create(-1);
    must(board_ctx, board_create(board_ctx, &wanted, &served.board), "board_create");
    start(&served);
    const char *address = board_address(served.board);
    for (mera_status status = MERA_OUT_OF_MEMORY; status != MERA_OK; failures++) {
        mera_context *ctx = mera_context_create(failures + 1);
        status = device_life(ctx, s, address, &options);
        if (status != MERA_OK && status != MERA_OUT_OF_MEMORY) die("a call", mera_last_error(ctx));
        mera_context_destroy(ctx);
    }
    for (mera_status status = MERA_OUT_OF_MEMORY; status != MERA_OK; own++) {
        mera_context *ctx = mera_context_create(-1);
        options.fail_after_n = own + 1;
        status = device_life(ctx, s, address, &options);
        if (status != MERA_OK && status != MERA_OUT_OF_MEMORY) die("a device", mera_last_error(ctx));
        mera_context_destroy(ctx);
    }
    stop(&served);
    board_destroy(served.board);
    mera_context_destroy(board_ctx);
    printf("allocations that failed: %" PRId64 " of the board, %" PRId64 " of calls, %" PRId64 " of the driver\n",
           board_failures - 1, failures - 1, own - 1);
}

/* ---- fuzz: one thread is host and board in turn ---- */

enum { RING = 64, CODE_AT = 64 << 10, DATA_AT = 192 << 10, MEMORY_AT = 1 << 16 };

typedef struct host {
    transport *t;
    dna_board *board;
    uint32_t tail, sequence;
    uint64_t random;
    uint8_t *code; /* as encoded, in DMA memory */
    int64_t code_bytes;
} host;

static void give_time(host *h)
{
    alarm(SECONDS);
    for (int k = 0; k < 200; k++) {
        (void)board_serve(h->board, 1);
        const uint32_t status = transport_read(h->t, REG_STATUS);
        if (status & REG_STATUS_FAULT) break;
        if (!(status & REG_STATUS_ENABLED) || transport_read(h->t, REG_SUBMIT_HEAD) == h->tail) break;
    }
    alarm(0);
    /* The ring of completions is emptied without a look at them. */
    transport_write(h->t, REG_COMPLETE_HEAD, transport_read(h->t, REG_COMPLETE_TAIL));
}

static void reset(host *h)
{
    const bool wild = below(&h->random, 8) == 0;
    transport_write(h->t, REG_CONTROL, 0);
    transport_write(h->t, REG_RESET, transport_read(h->t, REG_RESET_DONE) + 1);
    (void)board_serve(h->board, 1);
    const uint64_t submit = wild ? next_random(&h->random) >> below(&h->random, 64) : BUS_BASE;
    transport_write(h->t, REG_SUBMIT_BASE_LO, (uint32_t)submit);
    transport_write(h->t, REG_SUBMIT_BASE_LO + 4, (uint32_t)(submit >> 32));
    transport_write(h->t, REG_SUBMIT_SIZE, wild && below(&h->random, 2) ? (uint32_t)next_random(&h->random) : RING);
    transport_write(h->t, REG_COMPLETE_BASE_LO, 32 << 10);
    transport_write(h->t, REG_COMPLETE_BASE_LO + 4, 1);
    transport_write(h->t, REG_COMPLETE_SIZE, wild && below(&h->random, 2) ? (uint32_t)next_random(&h->random) : RING);
    transport_write(h->t, REG_DOORBELL, 0);
    transport_write(h->t, REG_COMPLETE_HEAD, 0);
    transport_write(h->t, REG_CONTROL, REG_CONTROL_ENABLE);
    h->tail = 0;
    (void)board_serve(h->board, 1);
}

static void file(host *h, uint8_t x[DNA_ID_DESCRIPTOR_BYTES], int opcode, bool last)
{
    DSET(x, ANY, opcode, opcode);
    DSET(x, ANY, last, last);
    DSET(x, ANY, sequence, h->sequence);
    if (below(&h->random, 6) == 0) { /* an altered field, often near what is right */
        const uint64_t field = below(&h->random, 15);
        const uint64_t old = field_get(x, (int)field * 32, 32), pick = below(&h->random, 4);
        field_set(x, (int)field * 32, 32,
                  pick == 0   ? next_random(&h->random)
                  : pick == 1 ? old + below(&h->random, 129) - 64
                  : pick == 2 ? old ^ (uint64_t)1 << below(&h->random, 32)
                              : 0);
    }
    const uint32_t crc = crc32_of(0, x, D_ANY_crc / 8);
    DSET(x, ANY, crc, below(&h->random, 200) ? crc : crc + 1);
    memcpy(h->t->dma + (size_t)h->tail * DNA_ID_DESCRIPTOR_BYTES, x, DNA_ID_DESCRIPTOR_BYTES);
    h->tail = (h->tail + 1) % RING;
}

static void copy_chain(host *h, int opcode, uint64_t offset, uint64_t address, uint64_t bytes, bool last)
{
    uint8_t x[DNA_ID_DESCRIPTOR_BYTES] = {0};
    DSET(x, COPY_IN, host, BUS_BASE + offset);
    DSET(x, COPY_IN, address, address);
    DSET(x, COPY_IN, bytes, bytes);
    file(h, x, opcode, last);
}

/* Loads the program, altered now and then but with the right checksums, runs it and unloads it. */
static void chain(host *h, const sample *s)
{
    const mera_program *p = s->program;
    uint8_t *code = h->t->dma + CODE_AT, *data = h->t->dma + DATA_AT;
    memcpy(code, h->code, (size_t)h->code_bytes);
    if (p->constant_bytes) memcpy(data, p->constants, (size_t)p->constant_bytes);
    for (uint64_t k = below(&h->random, 3); k > 0; k--)
        code[below(&h->random, (uint64_t)h->code_bytes)] ^= (uint8_t)(1 << below(&h->random, 8));
    uint8_t load[DNA_ID_DESCRIPTOR_BYTES] = {0}, run[DNA_ID_DESCRIPTOR_BYTES] = {0}, unload[DNA_ID_DESCRIPTOR_BYTES] = {0};
    h->sequence++;
    copy_chain(h, DESCRIPTOR_COPY_IN, CODE_AT, 0, (uint64_t)h->code_bytes, false);
    if (p->constant_bytes) copy_chain(h, DESCRIPTOR_COPY_IN, DATA_AT, MEMORY_AT, (uint64_t)p->constant_bytes, false);
    DSET(load, LOAD, code_bytes, h->code_bytes);
    DSET(load, LOAD, memory, MEMORY_AT);
    DSET(load, LOAD, memory_bytes, p->dram_bytes);
    DSET(load, LOAD, constant_bytes, p->constant_bytes);
    DSET(load, LOAD, code_crc, crc32_of(0, code, (size_t)h->code_bytes));
    DSET(load, LOAD, constant_crc, crc32_of(0, data, (size_t)p->constant_bytes));
    file(h, load, DESCRIPTOR_LOAD, true);
    h->sequence++;
    copy_chain(h, DESCRIPTOR_COPY_IN, DATA_AT, MEMORY_AT + (uint64_t)p->inputs[0].dram, (uint64_t)p->inputs[0].bytes, false);
    DSET(run, RUN, verify, below(&h->random, 2));
    file(h, run, DESCRIPTOR_RUN, false);
    copy_chain(h, DESCRIPTOR_COPY_OUT, DATA_AT, MEMORY_AT + (uint64_t)p->outputs[0].dram, (uint64_t)p->outputs[0].bytes,
               true);
    h->sequence++;
    uint8_t any[DNA_ID_DESCRIPTOR_BYTES] = {0};
    DSET(any, QUERY, host, BUS_BASE + DATA_AT);
    DSET(any, QUERY, bytes, below(&h->random, 100));
    file(h, any, (int)below(&h->random, 10), true);
    h->sequence++;
    if (below(&h->random, 4)) file(h, unload, DESCRIPTOR_UNLOAD, true);
    if (below(&h->random, 50) == 0) h->tail = (uint32_t)below(&h->random, RING + 2);
    transport_write(h->t, REG_DOORBELL, h->tail);
    give_time(h);
}

static void fuzz(const sample *s, const char *folder, uint64_t seed, int64_t count)
{
    const board_options options = {
        .platform = machine, .runtime_folder = folder, .memory_bytes = 8 << 20, .dma_bytes = 8 << 20, .slots = 3};
    char paths[4][PATH_BYTES];
    const device_options driver = driver_options(folder, false, paths);
    mera_context *ctx = mera_context_create(-1), *board_ctx = mera_context_create(-1);
    host h = {.random = seed};
    must(board_ctx, board_create(board_ctx, &options, &h.board), "board_create");
    must(ctx, transport_open(ctx, &driver, board_address(h.board), true, &h.t), "transport_open");
    word_vec words = {0};
    for (int64_t k = 0; k < s->program->code_count; k++) must(ctx, isa_encode(ctx, &s->program->code[k], &words), "encode");
    h.code_bytes = (int64_t)words.count * 4;
    h.code = allocate((size_t)h.code_bytes);
    for (size_t w = 0; w < words.count; w++) field_set(h.code + 4 * w, 0, 32, words.at[w]);
    vec_free(ctx, &words);
    const mera_program *p = s->program;
    if (h.code_bytes > DATA_AT - CODE_AT || p->dram_bytes > (4 << 20) || h.code_bytes > MEMORY_AT) count = 0;
    int64_t stops = 0;
    for (int64_t k = 0; k < count; k++) {
        const bool bad =
            !(transport_read(h.t, REG_STATUS) & REG_STATUS_ENABLED) || (transport_read(h.t, REG_STATUS) & REG_STATUS_FAULT);
        stops += bad;
        if (bad || below(&h.random, 30) == 0) reset(&h);
        if (transport_read(h.t, REG_STATUS) & REG_STATUS_ENABLED) chain(&h, s);
    }
    printf("%" PRId64 " rounds of chains, %" PRId64 " resets after a fault, %" PRIu64 " runs\n", count, stops,
           (uint64_t)h.board->runs);
    free(h.code);
    transport_close(ctx, h.t);
    board_destroy(h.board);
    mera_context_destroy(board_ctx);
    mera_context_destroy(ctx);
}

int main(int argc, char **argv)
{
    const bool fuzzing = argc > 5 && !strcmp(argv[1], "fuzz");
    if (!fuzzing && (argc < 4 || (strcmp(argv[1], "run") && strcmp(argv[1], "allocations")))) {
        fprintf(stderr, "usage: board run|allocations FOLDER GRAPH... | board fuzz FOLDER SEED COUNT GRAPH...\n");
        return 2;
    }
    if (mkdir(argv[2], 0700) != 0 && chmod(argv[2], 0700) != 0) die("cannot make", argv[2]);
    for (int k = fuzzing ? 5 : 3; k < argc; k++) {
        sample s = sample_of(argv[k]);
        if (fuzzing) {
            fuzz(&s, argv[2], strtoull(argv[3], NULL, 10) + (uint64_t)k, strtoll(argv[4], NULL, 10));
        } else if (!strcmp(argv[1], "run")) {
            run_sample(&s, argv[2], false);
            run_sample(&s, argv[2], true);
            printf("%s: both transports, equal\n", argv[k]);
        } else {
            allocations(&s, argv[2]);
        }
        sample_free(&s);
    }
    return 0;
}
