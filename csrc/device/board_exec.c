/* board_exec.c: the machine of an emulated board: its memory, the programs in it, and what descriptors do. A descriptor, the
 * instructions and the constants may be anything: all is checked before it is used. */
#include <sys/mman.h>

#include "../sim.h"
#include "board_state.h"

#define DEFAULT_MEMORY ((int64_t)8 << 30)

/* ---- host memory ---- */

uint8_t *board_host(const dna_board *b, uint64_t bus, uint64_t bytes, uint64_t *piece)
{
    const board_place *p = &b->place;
    if (!p->dma || bus < BUS_BASE || bus - BUS_BASE >= (uint64_t)p->dma_bytes) return NULL;
    uint64_t at = bus - BUS_BASE;
    *piece = (uint64_t)p->dma_bytes - at;
    if (p->swapped) {
        const uint64_t inside = at % (uint64_t)p->page_bytes;
        at = ((at / (uint64_t)p->page_bytes) ^ 1) * (uint64_t)p->page_bytes + inside;
        *piece = (uint64_t)p->page_bytes - inside;
        if (at >= (uint64_t)p->dma_bytes) return NULL;
    }
    if (*piece > bytes) *piece = bytes;
    return p->dma + at;
}

/* Copies between host memory and a part of device memory that was checked. */
static device_error copy(dna_board *b, uint64_t bus, uint8_t *memory, uint64_t bytes, bool in, uint64_t *detail)
{
    while (bytes > 0) {
        uint64_t piece;
        uint8_t *host = board_host(b, bus, bytes, &piece);
        *detail = bus;
        if (!host) return DEVICE_ERROR_BAD_HOST_ADDRESS;
        memcpy(in ? memory : host, in ? host : memory, (size_t)piece);
        b->counters[in ? COUNTER_HOST_READ : COUNTER_HOST_WRITTEN] += piece;
        bus += piece;
        memory += piece;
        bytes -= piece;
    }
    return DEVICE_ERROR_NONE;
}

/* ---- device memory ---- */

static bool in_memory(const dna_board *b, uint64_t at, uint64_t bytes)
{
    return at <= (uint64_t)b->memory_bytes && bytes <= (uint64_t)b->memory_bytes - at;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

/* Whether a program that is loaded relies on what is there: its instructions, and its constants, or all of its memory. */
static bool in_use(const dna_board *b, uint64_t at, uint64_t bytes, bool all)
{
    for (int32_t k = 0; k < b->slot_count; k++) {
        const board_slot *s = &b->slots[k];
        if (s->program && (overlap(at, bytes, s->code, s->code_bytes) ||
                           overlap(at, bytes, s->memory, all ? s->memory_bytes : s->constant_bytes)))
            return true;
    }
    return false;
}

mera_status board_machine_create(dna_board *b)
{
    const mera_platform *p = &b->options.platform;
    b->memory_bytes = b->options.memory_bytes ? b->options.memory_bytes : DEFAULT_MEMORY;
    b->slot_count = b->options.slots ? b->options.slots : BOARD_SLOTS_DEFAULT;
    void *memory =
        mmap(NULL, (size_t)b->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return fail(b->ctx, MERA_OUT_OF_MEMORY, "an emulated device cannot have %lld bytes of memory on this machine",
                    (long long)b->memory_bytes);
    b->memory = memory;
    const size_t lanes = (size_t)p->array * (size_t)p->units;
    b->sram = ctx_alloc_zeroed(b->ctx, (size_t)p->sram_bytes);
    b->accumulators = ctx_alloc_zeroed(b->ctx, sizeof(int32_t) * DNA_ACCUMULATORS * lanes);
    b->window_sums = ctx_alloc_zeroed(b->ctx, 2 * sizeof(int32_t) * lanes);
    b->slots = ctx_alloc_zeroed(b->ctx, (size_t)b->slot_count * sizeof *b->slots);
    return b->sram && b->accumulators && b->window_sums && b->slots ? MERA_OK : out_of_memory(b->ctx);
}

static void forget(board_slot *s)
{
    if (s->simulator) { /* memory and machine are the board's */
        s->simulator->sram = s->simulator->dram = s->simulator->scratch = NULL;
        s->simulator->accumulators = s->simulator->window_sums = NULL;
        mera_simulator_destroy(s->simulator);
    }
    mera_program_destroy(s->program);
    *s = (board_slot){0};
}

/* Gives the host's memory behind a part of device memory back; it reads as zeros then. */
static void release_pages(dna_board *b, uint64_t at, uint64_t bytes)
{
    const uint64_t page = DNA_ID_PROGRAM_ALIGN, first = (at + page - 1) / page * page, end = (at + bytes) / page * page;
    if (end > first) (void)madvise(b->memory + first, (size_t)(end - first), MADV_DONTNEED);
}

void board_forget_programs(dna_board *b)
{
    for (int32_t k = 0; k < b->slot_count; k++) forget(&b->slots[k]);
}

void board_machine_destroy(dna_board *b)
{
    if (b->slots) board_forget_programs(b);
    if (b->memory) munmap(b->memory, (size_t)b->memory_bytes);
    ctx_free(b->ctx, b->sram);
    ctx_free(b->ctx, b->accumulators);
    ctx_free(b->ctx, b->window_sums);
    ctx_free(b->ctx, b->scratch);
    ctx_free(b->ctx, b->slots);
}

/* ---- programs ---- */

static uint32_t word_at(const uint8_t *code, int64_t w) { return (uint32_t)field_get(code + 4 * w, 0, 32); }

/* Decodes the instructions of a slot into its program. */
static mera_status decode(dna_board *b, const board_slot *s, mera_program *p)
{
    const int64_t count = (int64_t)s->code_bytes / 4;
    const uint8_t *code = b->memory + s->code;
    uint32_t *words = ctx_alloc(b->ctx, (size_t)s->code_bytes);
    if (!words) return out_of_memory(b->ctx);
    for (int64_t w = 0; w < count; w++) words[w] = word_at(code, w);
    instr one;
    mera_status status = MERA_OK;
    for (int64_t at = 0; at < count && status == MERA_OK; p->code_count++)
        status = isa_decode(b->ctx, words, count, &at, &one);
    if (status == MERA_OK && !(p->code = arena_array(&p->memory, (size_t)p->code_count + 1, sizeof *p->code)))
        status = out_of_memory(b->ctx);
    for (int64_t at = 0, i = 0; at < count && status == MERA_OK; i++) {
        status = isa_decode(b->ctx, words, count, &at, &p->code[i]);
        p->code[i].node = -1; /* the layer table is for reports; the device has none */
    }
    ctx_free(b->ctx, words);
    return status;
}

/* The program of a slot whose ranges and checksums are right. */
static mera_status make_program(dna_board *b, board_slot *s)
{
    TRY(program_create(b->ctx, &s->program));
    mera_program *p = s->program;
    p->platform = b->options.platform;
    p->dram_bytes = (int64_t)s->memory_bytes;
    p->constant_bytes = (int64_t)s->constant_bytes;
    p->constants = b->memory + s->memory;
    TRY(decode(b, s, p));
    TRY(program_validate(p));
    TRY(simulator_timing(b->ctx, p, &s->simulator));
    s->simulator->sram = b->sram;
    s->simulator->dram = b->memory + s->memory;
    s->simulator->accumulators = b->accumulators;
    s->simulator->window_sums = b->window_sums;
    const size_t scratch = exec_scratch_bytes(p);
    if (scratch <= b->scratch_bytes) return MERA_OK;
    uint8_t *grown = ctx_realloc(b->ctx, b->scratch, scratch);
    if (!grown) return out_of_memory(b->ctx);
    b->scratch = grown;
    b->scratch_bytes = scratch;
    return MERA_OK;
}

static device_error check_sums(dna_board *b, const board_slot *s, uint64_t *detail)
{
    *detail = crc32_of(0, b->memory + s->code, (size_t)s->code_bytes);
    if (*detail != s->code_crc) return DEVICE_ERROR_BAD_CODE_CRC;
    *detail = crc32_of(0, b->memory + s->memory, (size_t)s->constant_bytes);
    return *detail == s->constant_crc ? DEVICE_ERROR_NONE : DEVICE_ERROR_BAD_CONSTANT_CRC;
}

static void flip(dna_board *b, uint64_t at, uint64_t bytes)
{
    if (bytes) b->memory[at + bytes / 2] ^= 0x10;
}

static device_error load(dna_board *b, const uint8_t *x, uint64_t *detail)
{
    *detail = DGET(x, ANY, slot);
    if (*detail >= (uint64_t)b->slot_count || b->slots[*detail].program) return DEVICE_ERROR_BAD_SLOT;
    board_slot *s = &b->slots[*detail];
    board_slot wanted = {.code = DGET(x, LOAD, code),
                         .code_bytes = DGET(x, LOAD, code_bytes),
                         .memory = DGET(x, LOAD, memory),
                         .memory_bytes = DGET(x, LOAD, memory_bytes),
                         .constant_bytes = DGET(x, LOAD, constant_bytes),
                         .code_crc = (uint32_t)DGET(x, LOAD, code_crc),
                         .constant_crc = (uint32_t)DGET(x, LOAD, constant_crc)};
    *detail = wanted.code;
    if (!in_memory(b, wanted.code, wanted.code_bytes) || wanted.code % DNA_ID_CODE_ALIGN || wanted.code_bytes % 4 ||
        in_use(b, wanted.code, wanted.code_bytes, true) ||
        overlap(wanted.code, wanted.code_bytes, wanted.memory, wanted.memory_bytes))
        return DEVICE_ERROR_BAD_ADDRESS;
    *detail = wanted.memory;
    if (!in_memory(b, wanted.memory, wanted.memory_bytes) || wanted.memory % DNA_ID_PROGRAM_ALIGN ||
        wanted.constant_bytes > wanted.memory_bytes || in_use(b, wanted.memory, wanted.memory_bytes, true))
        return DEVICE_ERROR_BAD_ADDRESS;
    b->loads++;
    if (b->loads == b->options.flip_code_at_load) flip(b, wanted.code, wanted.code_bytes);
    if (b->loads == b->options.flip_constants_at_load) flip(b, wanted.memory, wanted.constant_bytes);
    const device_error sums = check_sums(b, &wanted, detail);
    if (sums) return sums;
    *s = wanted;
    const mera_status status = make_program(b, s);
    if (status == MERA_OK) return DEVICE_ERROR_NONE;
    forget(s);
    *detail = (uint64_t)status;
    return status == MERA_OUT_OF_MEMORY ? DEVICE_ERROR_OUT_OF_MEMORY
           : status == MERA_DEADLOCK    ? DEVICE_ERROR_DEADLOCK
                                        : DEVICE_ERROR_BAD_CODE;
}

/* ---- running ---- */

static void count(dna_board *b, const mera_stats *s)
{
    b->counters[COUNTER_CYCLES] += (uint64_t)s->cycles;
    b->counters[COUNTER_ARRAY_BUSY] += (uint64_t)s->array_busy_cycles;
    b->counters[COUNTER_WINDOW_BUSY] += (uint64_t)s->window_busy_cycles;
    b->counters[COUNTER_VECTOR_BUSY] += (uint64_t)s->vector_busy_cycles;
    b->counters[COUNTER_DMA_BUSY] += (uint64_t)s->dma_busy_cycles;
    b->counters[COUNTER_BANK_CONFLICTS] += (uint64_t)s->bank_conflict_cycles;
    b->counters[COUNTER_DRAM_READ] += (uint64_t)s->dram_bytes_read;
    b->counters[COUNTER_DRAM_WRITTEN] += (uint64_t)s->dram_bytes_written;
    b->counters[COUNTER_SRAM_READ] += (uint64_t)s->sram_words_read;
    b->counters[COUNTER_SRAM_WRITTEN] += (uint64_t)s->sram_words_written;
    b->counters[COUNTER_INSTRUCTIONS] += (uint64_t)s->instructions;
    b->counters[COUNTER_RUNS]++;
}

static device_error run(dna_board *b, const board_slot *s, bool verify, uint64_t *detail)
{
    if (verify) {
        const device_error sums = check_sums(b, s, detail);
        if (sums) return sums;
    }
    b->runs++;
    if (b->runs == b->options.hang_at_run) b->hung = true;
    if (b->runs == b->options.die_at_run) b->dead = true;
    if (b->hung || b->dead) return DEVICE_ERROR_STOPPED;
    for (int64_t end = now_us() + b->options.slow_ms * 1000; now_us() < end && !board_reset_asked(b);) {
        board_breathe(b);
        sleep_us(1000);
    }
    mera_simulator *m = s->simulator;
    m->scratch = b->scratch;
    m->scratch_bytes = b->scratch_bytes;
    for (int64_t i = 0; i < s->program->code_count; i++) {
        if (board_reset_asked(b)) return DEVICE_ERROR_STOPPED;
        board_breathe(b);
        exec_instr(m, &s->program->code[m->completion_order[i]]);
    }
    count(b, &m->stats);
    if (b->runs == b->options.flip_memory_after_run)
        s->constant_bytes ? flip(b, s->memory, s->constant_bytes) : flip(b, s->code, s->code_bytes);
    return DEVICE_ERROR_NONE;
}

static device_error query(dna_board *b, const uint8_t *x, uint64_t *detail)
{
    uint8_t state[4096];
    for (int32_t k = 0; k < b->slot_count; k++) state[k] = b->slots[k].program != NULL;
    const uint64_t bytes = DGET(x, QUERY, bytes), most = (uint64_t)b->slot_count;
    return copy(b, DGET(x, QUERY, host), state, bytes < most ? bytes : most, false, detail);
}

device_error board_execute(dna_board *b, const uint8_t x[DNA_ID_DESCRIPTOR_BYTES], uint64_t *detail)
{
    const uint64_t opcode = DGET(x, ANY, opcode), slot = DGET(x, ANY, slot);
    const uint64_t address = DGET(x, COPY_IN, address), bytes = DGET(x, COPY_IN, bytes); /* of all that copy or fill */
    board_slot *s = slot < (uint64_t)b->slot_count && b->slots[slot].program ? &b->slots[slot] : NULL;
    *detail = slot;
    switch (opcode) {
    case DESCRIPTOR_NOP:
        return DEVICE_ERROR_NONE;
    case DESCRIPTOR_COPY_IN:
    case DESCRIPTOR_COPY_OUT:
    case DESCRIPTOR_FILL:
        *detail = address;
        if (!in_memory(b, address, bytes)) return DEVICE_ERROR_BAD_ADDRESS;
        if (opcode == DESCRIPTOR_COPY_OUT)
            return copy(b, DGET(x, COPY_OUT, host), b->memory + address, bytes, false, detail);
        if (in_use(b, address, bytes, false)) return DEVICE_ERROR_BAD_ADDRESS;
        if (opcode == DESCRIPTOR_COPY_IN) return copy(b, DGET(x, COPY_IN, host), b->memory + address, bytes, true, detail);
        memset(b->memory + address, (int)DGET(x, FILL, value), (size_t)bytes);
        return DEVICE_ERROR_NONE;
    case DESCRIPTOR_LOAD:
        return load(b, x, detail);
    case DESCRIPTOR_RUN:
        return s ? run(b, s, DGET(x, RUN, verify) != 0, detail) : DEVICE_ERROR_BAD_SLOT;
    case DESCRIPTOR_VERIFY:
        return s ? check_sums(b, s, detail) : DEVICE_ERROR_BAD_SLOT;
    case DESCRIPTOR_UNLOAD:
        if (!s) return DEVICE_ERROR_BAD_SLOT;
        release_pages(b, s->code, s->code_bytes);
        release_pages(b, s->memory, s->memory_bytes);
        forget(s);
        return DEVICE_ERROR_NONE;
    case DESCRIPTOR_QUERY:
        return query(b, x, detail);
    default:
        *detail = opcode;
        return DEVICE_ERROR_BAD_OPCODE;
    }
}
