/* board.c: the registers and rings of an emulated board. */
#include <math.h>

#include "board_state.h"

enum { IDLE_FIRST_US = 20, IDLE_MOST_US = 1000 }; /* sleeps of a board without a bell */

uint32_t board_get(const dna_board *b, uint32_t offset)
{
    const uint32_t value = b->place.bar[offset / 4];
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return value;
}

void board_set(dna_board *b, uint32_t offset, uint32_t value)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    b->place.bar[offset / 4] = value;
}

static void set64(dna_board *b, uint32_t offset_low, uint64_t value)
{
    board_set(b, offset_low, (uint32_t)value);
    board_set(b, offset_low + 4, (uint32_t)(value >> 32));
}

static uint64_t get64(const dna_board *b, uint32_t offset_low)
{
    return board_get(b, offset_low) | (uint64_t)board_get(b, offset_low + 4) << 32;
}

/* ---- identification ---- */

static void publish(dna_board *b)
{
    const mera_platform *p = &b->options.platform;
    if (b->options.garbage) {
        for (uint32_t r = 0; r < REG_CONTROL; r += 4) board_set(b, r, 0x9e3779b9u * (r + 1));
        return;
    }
    board_set(b, REG_IDENTITY, DNA_ID_VENDOR | (uint32_t)DNA_ID_DEVICE << REG_IDENTITY_DEVICE_SHIFT);
    board_set(b, REG_VERSION, DNA_ID_VERSION_MINOR | (uint32_t)DNA_ID_VERSION_MAJOR << REG_VERSION_MAJOR_SHIFT);
    board_set(b, REG_UNITS, (uint32_t)p->units);
    board_set(b, REG_ARRAY, (uint32_t)p->array);
    board_set(b, REG_SRAM_BANKS, (uint32_t)p->sram_banks);
    board_set(b, REG_DRAM_LATENCY, (uint32_t)p->dram_latency_cycles);
    board_set(b, REG_SRAM_BYTES, (uint32_t)p->sram_bytes);
    board_set(b, REG_FEATURES, (p->bf16 ? REG_FEATURES_BF16 : 0) | REG_FEATURES_INTERRUPTS);
    set64(b, REG_MEMORY_LO, (uint64_t)b->memory_bytes);
    set64(b, REG_CLOCK_LO, (uint64_t)llround(p->clock_mhz * 1e6));
    set64(b, REG_BANDWIDTH_LO, (uint64_t)llround(p->dram_gbps * 1e9));
    board_set(b, REG_QUEUE_DEPTH, DNA_ID_RING_MAX);
    board_set(b, REG_SLOTS, (uint32_t)b->slot_count);
    for (uint32_t k = 0; k < REG_NAME_WORDS; k++)
        board_set(b, REG_NAME + 4 * k, (uint32_t)field_get((const uint8_t *)p->name, (int)k * 32, 32));
    board_set(b, REG_MAGIC, DNA_ID_MAGIC); /* last: what is there now is whole */
}

/* ---- control ---- */

static void set_status(dna_board *b, uint32_t bits, bool on)
{
    const uint32_t status = board_get(b, REG_STATUS);
    board_set(b, REG_STATUS, on ? status | bits : status & ~bits);
}

static void interrupt(dna_board *b, uint32_t cause)
{
    const uint32_t asking = board_get(b, REG_INTERRUPT_STATUS) | cause;
    board_set(b, REG_INTERRUPT_STATUS, asking);
    if (!(asking & board_get(b, REG_INTERRUPT_MASK)) || ++b->interrupts == b->options.lose_interrupt) return;
    board_interrupt(&b->place, ++b->interrupt_count);
}

static void stop(dna_board *b, device_error error, uint64_t detail)
{
    board_set(b, REG_ERROR_CODE, (uint32_t)error);
    set64(b, REG_ERROR_DETAIL_LO, detail);
    set_status(b, REG_STATUS_FAULT, true);
    b->enabled = false;
    interrupt(b, REG_INTERRUPT_STATUS_ERROR);
}

static void reset(dna_board *b)
{
    const uint32_t number = board_get(b, REG_RESET);
    b->enabled = b->hung = b->complete_pending = b->in_chain = false;
    b->submit = b->complete = (board_ring){0};
    memset(b->counters, 0, sizeof b->counters);
    board_forget_programs(b);
    memset(b->sram, 0xa5, (size_t)b->options.platform.sram_bytes); /* what a program has not written is anything */
    board_set(b, REG_SUBMIT_HEAD, 0);
    board_set(b, REG_COMPLETE_TAIL, 0);
    board_set(b, REG_INTERRUPT_STATUS, 0);
    board_set(b, REG_ERROR_CODE, DEVICE_ERROR_NONE);
    set64(b, REG_ERROR_DETAIL_LO, 0);
    board_set(b, REG_STATUS, REG_STATUS_READY);
    b->reset_done = number;
    board_set(b, REG_RESET_DONE, number);
}

bool board_reset_asked(const dna_board *b) { return board_get(b, REG_RESET) != b->reset_done; }

/* Every entry of the ring is memory of the host. */
static bool ring_take(dna_board *b, board_ring *ring, uint32_t base, uint32_t size, uint32_t entry_bytes)
{
    *ring = (board_ring){.base = get64(b, base), .size = board_get(b, size)};
    if (ring->size < DNA_ID_RING_MIN || ring->size > DNA_ID_RING_MAX || (ring->size & (ring->size - 1)) ||
        ring->base % DNA_ID_DESCRIPTOR_BYTES)
        return false;
    for (uint32_t k = 0; k < ring->size; k++) {
        uint64_t piece;
        if (!board_host(b, ring->base + (uint64_t)k * entry_bytes, entry_bytes, &piece) || piece < entry_bytes) return false;
    }
    return true;
}

static void enable(dna_board *b)
{
    if (!board_map_dma(&b->place)) {
        stop(b, DEVICE_ERROR_BAD_HOST_ADDRESS, 0);
    } else if (!ring_take(b, &b->submit, REG_SUBMIT_BASE_LO, REG_SUBMIT_SIZE, DNA_ID_DESCRIPTOR_BYTES)) {
        stop(b, DEVICE_ERROR_BAD_RING, b->submit.base);
    } else if (!ring_take(b, &b->complete, REG_COMPLETE_BASE_LO, REG_COMPLETE_SIZE, DNA_ID_COMPLETION_BYTES)) {
        stop(b, DEVICE_ERROR_BAD_RING, b->complete.base);
    } else {
        b->enabled = true;
        set_status(b, REG_STATUS_ENABLED, true);
    }
}

void board_breathe(dna_board *b)
{
    board_set(b, REG_HEARTBEAT, ++b->heartbeat);
    const uint32_t asked = board_get(b, REG_LATCH);
    if (asked == b->latched) return;
    static const uint32_t offsets[] = {
#define DNA_COUNTER(name, offset, doc) (offset),
#include "dna_regs.def"
    };
    for (int k = 0; k < COUNTER_COUNT; k++) set64(b, offsets[k], b->counters[k]);
    b->latched = asked;
    board_set(b, REG_LATCHED, asked);
}

/* Does what the registers ask for; false if that was nothing. */
static bool obey(dna_board *b)
{
    if (board_reset_asked(b)) {
        reset(b);
        return true;
    }
    const bool wanted = board_get(b, REG_CONTROL) & REG_CONTROL_ENABLE;
    const uint32_t status = board_get(b, REG_STATUS);
    if (wanted && !(status & (REG_STATUS_ENABLED | REG_STATUS_FAULT))) {
        enable(b);
        return true;
    }
    if (!wanted && (status & REG_STATUS_ENABLED)) {
        b->enabled = false;
        set_status(b, REG_STATUS_ENABLED, false);
    }
    return false;
}

/* ---- rings ---- */

/* Files the completion of the chain that has ended; false while the ring is full. */
static bool complete(dna_board *b)
{
    const uint32_t next = (b->complete.at + 1) & (b->complete.size - 1);
    if (board_get(b, REG_COMPLETE_HEAD) == next) return false;
    uint8_t entry[DNA_ID_COMPLETION_BYTES] = {0};
    CSET(entry, sequence, b->chain_sequence);
    CSET(entry, error, b->chain_error);
    CSET(entry, index, b->chain_index);
    CSET(entry, detail, b->chain_detail);
    for (int k = 0; k < COMPLETION_COUNTERS; k++)
        field_set(entry, C_cycles + 64 * k, 64, b->counters[k] - b->chain_start[k]);
    CSET(entry, crc, crc32_of(0, entry, C_crc / 8));
    uint64_t piece;
    uint8_t *to = board_host(b, b->complete.base + (uint64_t)b->complete.at * sizeof entry, sizeof entry, &piece);
    if (!to || piece < sizeof entry) {
        stop(b, DEVICE_ERROR_BAD_RING, b->complete.base);
        return true;
    }
    memcpy(to, entry, sizeof entry);
    b->complete.at = next;
    b->complete_pending = b->in_chain = false;
    board_set(b, REG_COMPLETE_TAIL, next);
    interrupt(b, REG_INTERRUPT_STATUS_COMPLETION);
    return true;
}

static void chain_begin(dna_board *b, uint32_t sequence)
{
    b->in_chain = true;
    b->chain_sequence = sequence;
    b->chain_error = DEVICE_ERROR_NONE;
    b->chain_index = b->chain_length = 0;
    b->chain_detail = 0;
    memcpy(b->chain_start, b->counters, sizeof b->counters);
}

/* Works on one descriptor; false if there is none. */
static bool work(dna_board *b)
{
    if (b->complete_pending) return complete(b);
    const uint32_t tail = board_get(b, REG_DOORBELL);
    if (board_get(b, REG_COMPLETE_HEAD) == b->complete.at &&
        (board_get(b, REG_INTERRUPT_STATUS) & REG_INTERRUPT_STATUS_COMPLETION))
        board_set(b, REG_INTERRUPT_STATUS, board_get(b, REG_INTERRUPT_STATUS) & ~(uint32_t)REG_INTERRUPT_STATUS_COMPLETION);
    if (tail == b->submit.at) return false;
    if (tail >= b->submit.size) {
        stop(b, DEVICE_ERROR_BAD_RING, tail);
        return true;
    }
    uint64_t piece, detail = 0;
    uint8_t x[DNA_ID_DESCRIPTOR_BYTES]; /* a copy: the host could write to the ring meanwhile */
    const uint8_t *from = board_host(b, b->submit.base + (uint64_t)b->submit.at * sizeof x, sizeof x, &piece);
    if (!from || piece < sizeof x) {
        stop(b, DEVICE_ERROR_BAD_RING, b->submit.base);
        return true;
    }
    memcpy(x, from, sizeof x);
    if (crc32_of(0, x, D_ANY_crc / 8) != DGET(x, ANY, crc)) { /* nothing in it can be relied on, not even where it ends */
        stop(b, DEVICE_ERROR_BAD_DESCRIPTOR, b->submit.at);
        return true;
    }
    const uint32_t sequence = (uint32_t)DGET(x, ANY, sequence);
    if (b->in_chain && sequence != b->chain_sequence) {
        stop(b, DEVICE_ERROR_BAD_DESCRIPTOR, b->submit.at);
        return true;
    }
    if (!b->in_chain) chain_begin(b, sequence);
    set_status(b, REG_STATUS_BUSY, true);
    const device_error error = b->chain_error ? DEVICE_ERROR_NONE : board_execute(b, x, &detail);
    if (b->hung || b->dead || board_reset_asked(b)) return true;
    set_status(b, REG_STATUS_BUSY, false);
    if (error) {
        b->chain_error = (uint32_t)error;
        b->chain_index = b->chain_length;
        b->chain_detail = detail;
    }
    b->chain_length++;
    b->submit.at = (b->submit.at + 1) & (b->submit.size - 1);
    board_set(b, REG_SUBMIT_HEAD, b->submit.at);
    if (DGET(x, ANY, last)) {
        b->complete_pending = true;
        complete(b);
    }
    return true;
}

/* ---- the public face ---- */

mera_status board_serve(dna_board *b, int64_t milliseconds)
{
    const int64_t end = now_us() + milliseconds * 1000;
    int64_t pause = IDLE_FIRST_US;
    for (int64_t now = now_us(); now < end; now = now_us()) {
        const uint32_t bell = b->place.wires ? __atomic_load_n(&b->place.wires->bell, __ATOMIC_SEQ_CST) : 0;
        bool busy = obey(b);
        if (!b->hung) board_breathe(b);
        if (b->enabled && !b->hung) busy = work(b) || busy;
        if (b->dead) return fail(b->ctx, MERA_DEVICE_FAULT, "board %s died, as it was asked to", b->place.address);
        if (busy) {
            pause = IDLE_FIRST_US;
            continue;
        }
        const int64_t most = min_i64(DNA_ID_HEARTBEAT_MS * 1000, end - now);
        board_sleep(&b->place, bell, b->place.wires ? most : min_i64(pause, most));
        pause = min_i64(2 * pause, IDLE_MOST_US);
    }
    return MERA_OK;
}

const char *board_address(const dna_board *b) { return b->place.address; }

mera_status board_create(mera_context *ctx, const board_options *options, dna_board **board)
{
    TRY(mera_platform_check(ctx, &options->platform));
    if (options->memory_bytes < 0 || options->dma_bytes < 0 || options->slots < 0 || options->slots > 4096 ||
        options->memory_bytes > (int64_t)1 << 44 || options->dma_bytes > (int64_t)1 << 40)
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "a board has at most 16 TiB of memory, 1 TiB for DMA and 4096 slots, and none of them is negative");
    dna_board *b = ctx_alloc_zeroed(ctx, sizeof *b);
    if (!b) return out_of_memory(ctx);
    b->ctx = ctx;
    b->options = *options;
    memset(b->options.platform.name, 0, sizeof b->options.platform.name);
    strcpy(b->options.platform.name,
           options->platform.name); /* checked: it ends; what is behind its end is nobody's concern */
    b->place.lock_fd = b->place.folder_lock_fd = b->place.interrupt_fd = -1;
    mera_status status = board_machine_create(b);
    if (status == MERA_OK) status = board_place_create(ctx, &b->options, &b->place);
    if (status != MERA_OK) {
        board_destroy(b);
        return status;
    }
    board_set(b, REG_STATUS, REG_STATUS_READY);
    publish(b);
    board_place_announce(&b->place);
    *board = b;
    return MERA_OK;
}

void board_destroy(dna_board *b)
{
    if (!b) return;
    board_place_destroy(&b->place);
    board_machine_destroy(b);
    ctx_free(b->ctx, b);
}
