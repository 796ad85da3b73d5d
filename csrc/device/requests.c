/* requests.c: chains of descriptors in, completions out; who waits, and for how long.
 *
 * Any number of threads may wait. One of them at a time sleeps on the transport, the others on the condition variable. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "device.h"

enum { SLICE_US = 20000 }; /* the longest sleep: what a lost interrupt costs */

/* ---- completions ---- */

static bool in_flight(const dna_device *d) { return d->first_open < d->requests.count; }

static void copy_outputs(dna_device *d, request *r)
{
    for (size_t k = 0; k < r->outputs.count; k++)
        memcpy(r->outputs.at[k].to, d->t->dma + r->outputs.at[k].offset, (size_t)r->outputs.at[k].bytes);
}

static void complete(dna_device *d, request *r, const uint8_t *entry)
{
    r->done = true;
    r->error = (uint32_t)CGET(entry, error);
    r->index = (uint32_t)CGET(entry, index);
    r->detail = CGET(entry, detail);
    r->status = r->error ? MERA_DEVICE_FAULT : MERA_OK;
    for (int k = 0; k < COMPLETION_COUNTERS; k++)
        r->counters[k] = (int64_t)(field_get(entry, C_cycles + 64 * k, 64) & INT64_MAX);
    loaded *p = r->slot >= 0 ? d->slots[r->slot] : NULL;
    if (r->error == DEVICE_ERROR_BAD_CODE_CRC || r->error == DEVICE_ERROR_BAD_CONSTANT_CRC) {
        if (p) p->on_device = false; /* spoilt: the next run loads it again */
    } else if (r->status == MERA_OK && p && r->counters[COUNTER_INSTRUCTIONS] > 0) {
        memcpy(p->last, r->counters, sizeof p->last);
        p->has_run = true;
    }
    if (r->status == MERA_OK) copy_outputs(d, r);
    if (r->staging >= 0) ranges_give(&d->host, r->staging);
    r->staging = -1;
}

void take_completions(dna_device *d)
{
    bool some = false;
    const uint32_t tail = d->faulted ? d->complete_head : transport_read(d->t, REG_COMPLETE_TAIL);
    if (tail >= d->complete_size) {
        device_fault(d, "its register COMPLETE_TAIL is %u, the ring has %u entries", (unsigned)tail,
                     (unsigned)d->complete_size);
        return;
    }
    while (!d->faulted && d->complete_head != tail) {
        uint8_t entry[DNA_ID_COMPLETION_BYTES]; /* a copy: the device could write to the ring meanwhile */
        memcpy(entry, d->complete + (size_t)d->complete_head * sizeof entry, sizeof entry);
        if (crc32_of(0, entry, C_crc / 8) != CGET(entry, crc)) {
            device_fault(d, "a completion has a wrong checksum");
            return;
        }
        request *r = in_flight(d) ? d->requests.at[d->first_open] : NULL;
        if (!r || r->sequence != (uint32_t)CGET(entry, sequence)) {
            device_fault(d, "it completed request %u, which it was not working on", (unsigned)CGET(entry, sequence));
            return;
        }
        complete(d, r, entry);
        d->first_open++;
        d->complete_head = (d->complete_head + 1) & (d->complete_size - 1);
        some = true;
    }
    if (!some) return;
    d->progress_us = now_us();
    transport_write(d->t, REG_COMPLETE_HEAD, d->complete_head);
    pthread_cond_broadcast(&d->changed);
}

/* ---- waiting ---- */

static void check_health(dna_device *d)
{
    if (d->faulted) return;
    if (!d->t->kind->alive(d->t)) {
        device_fault(d, "it is gone: its process ended, or it left the bus");
        return;
    }
    const uint32_t magic = transport_read(d->t, REG_MAGIC), status = transport_read(d->t, REG_STATUS);
    if (magic != DNA_ID_MAGIC) {
        device_fault(d, "its register MAGIC turned to 0x%08x", (unsigned)magic);
    } else if (status & REG_STATUS_FAULT) {
        device_fault(d, "it stopped: %s (detail 0x%llx)", device_error_text(transport_read(d->t, REG_ERROR_CODE)),
                     (unsigned long long)transport_read64(d->t, REG_ERROR_DETAIL_LO));
    } else if (in_flight(d)) {
        const request *r = d->requests.at[d->first_open];
        const int64_t waited = now_us() - d->progress_us;
        if (waited > r->timeout_us)
            device_fault(d, "it hung: request %llu is not complete after %.3f s (the watchdog's limit is %.3f s)",
                         (unsigned long long)r->id, (double)waited / 1e6, (double)r->timeout_us / 1e6);
    }
}

void await_device(dna_device *d, uint32_t ticket)
{
    if (d->polling) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += SLICE_US * 1000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&d->changed, &d->lock, &until);
        return;
    }
    int64_t slice = SLICE_US;
    if (in_flight(d)) { /* not far beyond the watchdog's limit */
        const int64_t left = d->progress_us + d->requests.at[d->first_open]->timeout_us - now_us();
        slice = max_i64(min_i64(slice, left + 500), 500);
    }
    d->polling = true;
    pthread_mutex_unlock(&d->lock);
    const int64_t start = now_us();
    d->t->kind->wait(d->t, ticket, slice);
    const bool in_vain = now_us() - start >= slice;
    pthread_mutex_lock(&d->lock);
    d->polling = false;
    take_completions(d);
    if (in_vain) check_health(d);
    pthread_cond_broadcast(&d->changed);
}

mera_status staging_take(mera_context *ctx, dna_device *d, int64_t bytes, int64_t *offset)
{
    for (;;) {
        const uint32_t ticket = d->t->kind->ticket(d->t);
        take_completions(d);
        if (d->faulted) return faulted(ctx, d);
        *offset = ranges_take(d->memory, &d->host, bytes, DNA_ID_DESCRIPTOR_BYTES);
        if (*offset >= 0) return MERA_OK;
        if (*offset == RANGES_NO_HOST_MEMORY) return out_of_memory(ctx);
        if (!in_flight(d))
            return fail(ctx, MERA_OUT_OF_MEMORY,
                        "device %s: a request needs %lld bytes of DMA memory at once, of %lld bytes %lld are free; give the "
                        "device more of it",
                        d->info.address, (long long)bytes, (long long)d->host.total, (long long)ranges_free_bytes(&d->host));
        await_device(d, ticket);
    }
}

/* ---- chains ---- */

void request_free(dna_device *d, request *r)
{
    vec_free(d->memory, &r->outputs);
    ctx_free(d->memory, r);
}

mera_status request_begin(mera_context *ctx, dna_device *d, request **out)
{
    for (;;) { /* the completion ring must have room for it */
        const uint32_t ticket = d->t->kind->ticket(d->t);
        take_completions(d);
        if (d->faulted) return faulted(ctx, d);
        if (d->requests.count - d->first_open < d->complete_size - 1) break;
        await_device(d, ticket);
    }
    request *r = ctx_alloc_zeroed(d->memory, sizeof *r);
    if (!r) return out_of_memory(ctx);
    *r = (request){
        .id = ++d->next_id, .sequence = d->next_sequence++, .staging = -1, .slot = -1, .timeout_us = d->timeout_us};
    if (!vec_push(d->memory, &d->requests, r)) {
        ctx_free(d->memory, r);
        return out_of_memory(ctx);
    }
    if (d->requests.count - d->first_open == 1) d->progress_us = now_us();
    *out = r;
    return MERA_OK;
}

void request_drop(dna_device *d, request *r)
{
    if (r->staging >= 0) ranges_give(&d->host, r->staging);
    d->requests.count--; /* it is the last one */
    d->first_open = d->first_open > d->requests.count ? d->requests.count : d->first_open;
    request_free(d, r);
}

mera_status request_add(mera_context *ctx, dna_device *d, request *r, int opcode, int32_t slot, uint8_t descriptor[64],
                        bool last)
{
    const uint32_t next = (d->tail + 1) & (d->submit_size - 1);
    for (;;) {
        const uint32_t ticket = d->t->kind->ticket(d->t), head = transport_read(d->t, REG_SUBMIT_HEAD);
        if (head >= d->submit_size)
            device_fault(d, "its register SUBMIT_HEAD is %u, the ring has %u entries", (unsigned)head,
                         (unsigned)d->submit_size);
        if (d->faulted) return faulted(ctx, d);
        if (next != head) break;
        transport_write(d->t, REG_DOORBELL, d->tail); /* so that it makes room */
        await_device(d, ticket);
    }
    DSET(descriptor, ANY, opcode, opcode);
    DSET(descriptor, ANY, last, last);
    DSET(descriptor, ANY, slot, slot < 0 ? 0 : slot);
    DSET(descriptor, ANY, sequence, r->sequence);
    DSET(descriptor, ANY, crc, crc32_of(0, descriptor, D_ANY_crc / 8));
    memcpy(d->submit + (size_t)d->tail * DNA_ID_DESCRIPTOR_BYTES, descriptor, DNA_ID_DESCRIPTOR_BYTES);
    d->tail = next;
    if (last) transport_write(d->t, REG_DOORBELL, d->tail);
    return MERA_OK;
}

mera_status request_copy(mera_context *ctx, dna_device *d, request *r, int opcode, int64_t offset, int64_t address,
                         int64_t bytes, bool last)
{
    while (bytes > 0) {
        uint8_t x[DNA_ID_DESCRIPTOR_BYTES] = {0};
        int64_t piece;
        const uint64_t bus = transport_bus(d->t, offset, bytes, &piece);
        DSET(x, COPY_IN, host, bus); /* COPY_OUT has the same fields */
        DSET(x, COPY_IN, address, address);
        DSET(x, COPY_IN, bytes, piece);
        TRY(request_add(ctx, d, r, opcode, -1, x, last && piece == bytes));
        offset += piece;
        address += piece;
        bytes -= piece;
    }
    return MERA_OK;
}

static mera_status failed(mera_context *ctx, const dna_device *d, const request *r)
{
    if (r->error)
        return fail(ctx, MERA_DEVICE_FAULT, "device %s reports: %s (descriptor %u of request %llu, detail 0x%llx)",
                    d->info.address, device_error_text(r->error), (unsigned)r->index, (unsigned long long)r->id,
                    (unsigned long long)r->detail);
    return faulted(ctx, d);
}

mera_status request_finish(mera_context *ctx, dna_device *d, request *r)
{
    for (;;) {
        const uint32_t ticket = d->t->kind->ticket(d->t);
        if (!r->done) take_completions(d);
        if (r->done) break;
        await_device(d, ticket);
    }
    const mera_status status = r->status == MERA_OK ? MERA_OK : failed(ctx, d, r);
    for (size_t k = 0; k < d->requests.count; k++) {
        if (d->requests.at[k] != r) continue;
        d->requests.count--;
        d->first_open--; /* it is done, so it is in front of those that are not */
        memmove(d->requests.at + k, d->requests.at + k + 1, (d->requests.count - k) * sizeof *d->requests.at);
        break;
    }
    request_free(d, r);
    return status;
}

/* ---- the public half ---- */

static request *find(const dna_device *d, uint64_t id)
{
    for (size_t k = 0; k < d->requests.count; k++)
        if (d->requests.at[k]->id == id) return d->requests.at[k];
    return NULL;
}

static mera_status unknown(mera_context *ctx, const dna_device *d, uint64_t id)
{
    return fail(ctx, MERA_STATE, "device %s: there is no request %llu, or it was waited for already", d->info.address,
                (unsigned long long)id);
}

mera_status device_wait(mera_context *ctx, dna_device *d, uint64_t id, int64_t timeout_ms)
{
    mera_status status = MERA_OK;
    if (!device_owned(ctx, d, &status)) return status;
    pthread_mutex_lock(&d->lock);
    request *r = find(d, id);
    if (r && timeout_ms > 0) r->timeout_us = min_i64(timeout_ms, INT64_MAX / 2000) * 1000;
    status = r ? request_finish(ctx, d, r) : unknown(ctx, d, id);
    pthread_mutex_unlock(&d->lock);
    return status;
}

mera_status device_poll(mera_context *ctx, dna_device *d, uint64_t id, int32_t *done)
{
    mera_status status = MERA_OK;
    if (!device_owned(ctx, d, &status)) return status;
    pthread_mutex_lock(&d->lock);
    take_completions(d);
    const request *r = find(d, id);
    if (r && !r->done) check_health(d);
    if (r)
        *done = r->done;
    else
        status = unknown(ctx, d, id);
    pthread_mutex_unlock(&d->lock);
    return status;
}
