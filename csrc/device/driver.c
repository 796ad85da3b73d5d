/* driver.c: opening, resetting and closing a device; its faults and counters. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "device.h"

#define DEFAULT_TIMEOUT_MS 60000
#define RESET_TIMEOUT_US 10000000
enum { POLL_US = 100 };

static const device_options no_options = {0};

/* ---- errors ---- */

const char *device_error_text(uint32_t code)
{
    switch (code) {
#define DNA_DEVICE_ERROR(name, number, doc)                                                                                 \
    case number:                                                                                                            \
        return doc;
#include "dna_regs.def"
    default:
        return "an error that does not exist";
    }
}

void device_fault(dna_device *d, const char *format, ...)
{
    if (d->faulted) return;
    va_list args;
    va_start(args, format);
    vsnprintf(d->fault, sizeof d->fault, format, args);
    va_end(args);
    d->faulted = true;
    for (; d->first_open < d->requests.count; d->first_open++) {
        request *r = d->requests.at[d->first_open];
        r->done = true;
        r->status = MERA_DEVICE_FAULT;
        if (r->staging >= 0) (void)!vec_push(d->memory, &d->limbo, r->staging); /* without room it stays taken */
        r->staging = -1;
    }
    pthread_cond_broadcast(&d->changed);
}

mera_status faulted(mera_context *ctx, const dna_device *d)
{
    return fail(ctx, MERA_DEVICE_FAULT, "device %s: %s", d->info.address, d->fault);
}

bool device_owned(mera_context *ctx, const dna_device *d, mera_status *status)
{
    if (getpid() == d->process) return true;
    *status = fail(ctx, MERA_STATE, "device %s was opened by process %ld, before a fork: open it in this process",
                   d->info.address, (long)d->process);
    return false;
}

/* ---- reset ---- */

/* Waits until (register & mask) is `value`; the lock is given up meanwhile. */
static bool register_becomes(dna_device *d, uint32_t offset, uint32_t mask, uint32_t value, int64_t timeout_us)
{
    const int64_t end = now_us() + timeout_us;
    for (int64_t pause = POLL_US / 10;; pause = min_i64(2 * pause, 20 * POLL_US)) {
        if ((transport_read(d->t, offset) & mask) == value) return true;
        if (now_us() > end || !d->t->kind->alive(d->t)) return (transport_read(d->t, offset) & mask) == value;
        pthread_mutex_unlock(&d->lock);
        sleep_us(pause);
        pthread_mutex_lock(&d->lock);
    }
}

static void write64(transport *t, uint32_t offset_low, uint64_t value)
{
    transport_write(t, offset_low, (uint32_t)value);
    transport_write(t, offset_low + 4, (uint32_t)(value >> 32));
}

/* Forgets all that was asked for; the rings begin anew. Needs the claim. */
static mera_status restart(mera_context *ctx, dna_device *d)
{
    const int64_t timeout_us = min_i64(RESET_TIMEOUT_US, d->timeout_us);
    if (!d->faulted) device_fault(d, "it was reset");
    if (!d->t->kind->alive(d->t))
        return fail(ctx, MERA_DEVICE_FAULT, "device %s is gone: its process ended, or it left the bus", d->info.address);
    transport_write(d->t, REG_CONTROL, 0);
    transport_write(d->t, REG_INTERRUPT_MASK, 0);
    d->reset_number = transport_read(d->t, REG_RESET_DONE) + 1;
    transport_write(d->t, REG_RESET, d->reset_number);
    if (!register_becomes(d, REG_RESET_DONE, UINT32_MAX, d->reset_number, timeout_us) ||
        !register_becomes(d, REG_STATUS, REG_STATUS_READY | REG_STATUS_ENABLED, REG_STATUS_READY, timeout_us))
        return fail(ctx, MERA_DEVICE_FAULT, "device %s does not answer to a reset", d->info.address);
    for (size_t k = 0; k < d->limbo.count; k++) ranges_give(&d->host, d->limbo.at[k]);
    d->limbo.count = 0;
    /* Nothing old may look like something new. */
    memset(d->submit, 0, (size_t)d->submit_size * DNA_ID_DESCRIPTOR_BYTES);
    memset(d->complete, 0, (size_t)d->complete_size * DNA_ID_COMPLETION_BYTES);
    int64_t piece;
    write64(d->t, REG_SUBMIT_BASE_LO, transport_bus(d->t, d->submit - d->t->dma, 1, &piece));
    transport_write(d->t, REG_SUBMIT_SIZE, d->submit_size);
    write64(d->t, REG_COMPLETE_BASE_LO, transport_bus(d->t, d->complete - d->t->dma, 1, &piece));
    transport_write(d->t, REG_COMPLETE_SIZE, d->complete_size);
    transport_write(d->t, REG_DOORBELL, 0);
    transport_write(d->t, REG_COMPLETE_HEAD, 0);
    transport_write(d->t, REG_INTERRUPT_MASK, REG_INTERRUPT_STATUS_COMPLETION | REG_INTERRUPT_STATUS_ERROR);
    transport_write(d->t, REG_CONTROL, REG_CONTROL_ENABLE);
    if (!register_becomes(d, REG_STATUS, REG_STATUS_ENABLED | REG_STATUS_FAULT, REG_STATUS_ENABLED, timeout_us))
        return fail(ctx, MERA_DEVICE_FAULT, "device %s does not take its rings: %s", d->info.address,
                    device_error_text(transport_read(d->t, REG_ERROR_CODE)));
    d->tail = d->complete_head = 0;
    for (int32_t k = 0; k < d->info.slots; k++)
        if (d->slots[k]) d->slots[k]->on_device = false;
    d->faulted = false;
    return MERA_OK;
}

mera_status device_claim(mera_context *ctx, dna_device *d)
{
    mera_status status = MERA_OK;
    if (!device_owned(ctx, d, &status)) return status;
    pthread_mutex_lock(&d->lock);
    while (d->claimed) pthread_cond_wait(&d->changed, &d->lock);
    d->claimed = true;
    if (d->faulted) status = restart(ctx, d);
    if (status != MERA_OK) device_release(d);
    return status;
}

void device_release(dna_device *d)
{
    d->claimed = false;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}

mera_status device_reset(mera_context *ctx, dna_device *d)
{
    TRY(device_claim(ctx, d));
    mera_status status = restart(ctx, d);
    for (int32_t k = 0; k < d->info.slots && status == MERA_OK; k++)
        if (d->slots[k]) status = program_ensure(ctx, d, k);
    device_release(d);
    return status;
}

/* ---- counters ---- */

mera_status device_read_counters(mera_context *ctx, dna_device *d, device_counters *counters)
{
    TRY(device_claim(ctx, d));
    transport_write(d->t, REG_LATCH, ++d->latch_number);
    const bool ok = register_becomes(d, REG_LATCHED, UINT32_MAX, d->latch_number, d->timeout_us);
    static const uint32_t offsets[] = {
#define DNA_COUNTER(name, offset, doc) (offset),
#include "dna_regs.def"
    };
    int64_t *const fields[] = {&counters->cycles,       &counters->array_busy,   &counters->window_busy,
                               &counters->vector_busy,  &counters->dma_busy,     &counters->bank_conflicts,
                               &counters->dram_read,    &counters->dram_written, &counters->sram_read,
                               &counters->sram_written, &counters->instructions, &counters->host_read,
                               &counters->host_written, &counters->runs};
    _Static_assert(sizeof fields / sizeof *fields == COUNTER_COUNT, "a field for each counter");
    for (int k = 0; k < COUNTER_COUNT && ok; k++) *fields[k] = (int64_t)(transport_read64(d->t, offsets[k]) & INT64_MAX);
    mera_status status = MERA_OK;
    if (!ok) {
        device_fault(d, "it does not latch its counters");
        status = faulted(ctx, d);
    }
    device_release(d);
    return status;
}

/* ---- opening and closing ---- */

/* The rings lie at the start of DMA memory, each without a gap on the bus, as long as the device and the gaps let them. */
static mera_status place_rings(mera_context *ctx, dna_device *d)
{
    const int64_t depth = d->info.ring;
    int64_t submit, completion;
    transport_bus(d->t, 0, depth * DNA_ID_DESCRIPTOR_BYTES, &submit);
    int64_t entries = depth;
    while (entries * DNA_ID_DESCRIPTOR_BYTES > submit) entries /= 2;
    d->submit_size = (uint32_t)entries;
    const int64_t second = ceil_div(entries * DNA_ID_DESCRIPTOR_BYTES, d->t->page_bytes) * d->t->page_bytes;
    transport_bus(d->t, second, depth * DNA_ID_COMPLETION_BYTES, &completion);
    for (entries = depth; entries * DNA_ID_COMPLETION_BYTES > completion;) entries /= 2;
    d->complete_size = (uint32_t)entries;
    d->submit = d->t->dma;
    d->complete = d->t->dma + second;
    d->info.ring = (int32_t)d->submit_size;
    const int64_t end = second + entries * DNA_ID_COMPLETION_BYTES;
    d->host.total = d->t->dma_bytes;
    if (d->submit_size < DNA_ID_RING_MIN || entries < DNA_ID_RING_MIN || end >= d->t->dma_bytes)
        return fail(ctx, MERA_INVALID_ARGUMENT, "device %s: %lld bytes of DMA memory hold no rings", d->info.address,
                    (long long)d->t->dma_bytes);
    return ranges_take(d->memory, &d->host, end, 1) == 0 ? MERA_OK : out_of_memory(ctx);
}

static bool make_locks(dna_device *d)
{
    pthread_condattr_t attributes;
    if (pthread_mutex_init(&d->lock, NULL) != 0) return false;
    bool ok = pthread_condattr_init(&attributes) == 0;
    if (ok) {
        ok =
            pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 && pthread_cond_init(&d->changed, &attributes) == 0;
        pthread_condattr_destroy(&attributes);
    }
    if (!ok) pthread_mutex_destroy(&d->lock);
    return ok;
}

static mera_status open_at(mera_context *ctx, const char *address, const device_options *options, dna_device **out)
{
    mera_context *memory = mera_context_create(options->fail_after_n ? options->fail_after_n : -1);
    if (!memory) return out_of_memory(ctx);
    dna_device *d = ctx_alloc_zeroed(memory, sizeof *d);
    if (!d || !make_locks(d)) {
        ctx_free(memory, d);
        mera_context_destroy(memory);
        return out_of_memory(ctx);
    }
    d->memory = memory;
    d->process = getpid();
    const int64_t timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
    d->timeout_us = min_i64(timeout_ms, INT64_MAX / 2000) * 1000;
    d->verify_runs = options->verify_runs != 0;
    mera_status status = transport_open(ctx, options, address, true, &d->t);
    if (status == MERA_OK) status = device_identify(ctx, d->t, &d->info);
    if (status == MERA_OK) status = place_rings(ctx, d);
    if (status == MERA_OK) {
        d->device.total = d->info.memory_bytes;
        d->slots = ctx_alloc_zeroed(memory, (size_t)d->info.slots * sizeof *d->slots);
        status = d->slots ? MERA_OK : out_of_memory(ctx);
    }
    if (status == MERA_OK) {
        d->latch_number = transport_read(d->t, REG_LATCHED);
        device_fault(d, "it was not reset yet");
        status = device_claim(ctx, d); /* resets it */
        if (status == MERA_OK) device_release(d);
    }
    if (status == MERA_OK)
        *out = d;
    else
        device_close(d);
    return status;
}

mera_status device_open(mera_context *ctx, const char *address, const device_options *options, dna_device **device)
{
    if (!options) options = &no_options;
    if (address) return open_at(ctx, address, options, device);
    address_vec found = {0};
    mera_status status = transport_list(ctx, options, &found);
    size_t busy = 0;
    bool opened = false;
    for (size_t k = 0; k < found.count && status == MERA_OK && !opened; k++) {
        status = open_at(ctx, found.at[k], options, device);
        opened = status == MERA_OK;
        if (status != MERA_DEVICE_BUSY && status != MERA_DEVICE_ABSENT) continue;
        busy += status == MERA_DEVICE_BUSY;
        status = MERA_OK;
    }
    address_vec_free(ctx, &found);
    if (status != MERA_OK || opened) return status;
    if (busy) return fail(ctx, MERA_DEVICE_BUSY, "no device is free: %d are in use by other processes", (int)busy);
    return fail(ctx, MERA_DEVICE_ABSENT, "no device was found; 'mera device' starts an emulated one");
}

void device_close(dna_device *d)
{
    if (!d) return;
    mera_context *memory = d->memory;
    /* The device shall write nowhere from now on. What did not identify itself is not written to at all. */
    if (d->submit && getpid() == d->process && d->t->kind->alive(d->t)) {
        transport_write(d->t, REG_CONTROL, 0);
        transport_write(d->t, REG_INTERRUPT_MASK, 0);
        transport_write(d->t, REG_RESET, ++d->reset_number);
        pthread_mutex_lock(&d->lock);
        register_becomes(d, REG_RESET_DONE, UINT32_MAX, d->reset_number, min_i64(RESET_TIMEOUT_US / 10, d->timeout_us));
        pthread_mutex_unlock(&d->lock);
    }
    for (int32_t k = 0; d->slots && k < d->info.slots; k++) loaded_free(d, d->slots[k]);
    for (size_t k = 0; k < d->requests.count; k++) request_free(d, d->requests.at[k]);
    vec_free(memory, &d->requests);
    vec_free(memory, &d->limbo);
    vec_free(memory, &d->host.taken);
    vec_free(memory, &d->device.taken);
    ctx_free(memory, d->slots);
    transport_close(memory, d->t);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
    ctx_free(memory, d);
    mera_context_destroy(memory);
}

void device_get_info(dna_device *d, device_info *info)
{
    pthread_mutex_lock(&d->lock);
    d->info.memory_free = ranges_free_bytes(&d->device);
    *info = d->info;
    pthread_mutex_unlock(&d->lock);
}

int32_t device_alive(dna_device *d) { return d->t->kind->alive(d->t); }

/* ---- memory that the device reaches ---- */

mera_status device_buffer(mera_context *ctx, dna_device *d, int64_t bytes, void **memory)
{
    if (bytes < 0) return fail(ctx, MERA_INVALID_ARGUMENT, "a buffer cannot have %lld bytes", (long long)bytes);
    int64_t offset = 0;
    TRY(device_claim(ctx, d));
    const mera_status status = staging_take(ctx, d, bytes, &offset);
    device_release(d);
    if (status == MERA_OK) *memory = d->t->dma + offset;
    return status;
}

void device_buffer_free(dna_device *d, void *memory)
{
    if (!memory) return;
    pthread_mutex_lock(&d->lock);
    ranges_give(&d->host, (uint8_t *)memory - d->t->dma);
    pthread_mutex_unlock(&d->lock);
}
