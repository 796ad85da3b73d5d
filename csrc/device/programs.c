/* programs.c: loading programs into device memory, and running them. */
#include <math.h>
#include <stdio.h>

#include "../program.h"
#include "device.h"

#define UPLOAD_BYTES ((int64_t)4 << 20) /* DMA memory that an upload uses at once */

void loaded_free(dna_device *d, loaded *p)
{
    if (!p) return;
    ctx_free(d->memory, p->code);
    ctx_free(d->memory, p->constants);
    ctx_free(d->memory, p->inputs);
    ctx_free(d->memory, p->outputs);
    ctx_free(d->memory, p);
}

/* Gives up the slot and its device memory. */
static void forget(dna_device *d, int32_t slot)
{
    loaded *p = d->slots[slot];
    if (p->code_at >= 0) ranges_give(&d->device, p->code_at);
    if (p->memory_at >= 0) ranges_give(&d->device, p->memory_at);
    d->slots[slot] = NULL;
    loaded_free(d, p);
}

mera_status find_slot(mera_context *ctx, const dna_device *d, int32_t slot, loaded **out)
{
    *out = slot >= 0 && slot < d->info.slots ? d->slots[slot] : NULL;
    if (*out) return MERA_OK;
    return fail(ctx, MERA_STATE, "device %s: no program is loaded in slot %d", d->info.address, slot);
}

/* ---- loading ---- */

static mera_status check_platform(mera_context *ctx, const dna_device *d, const mera_platform *p)
{
    const mera_platform *q = &d->info.platform;
    const struct {
        const char *what;
        double program, device;
    } figures[] = {
        {"units", p->units, q->units},
        {"array", p->array, q->array},
        {"sram_bytes", (double)p->sram_bytes, (double)q->sram_bytes},
        {"sram_banks", p->sram_banks, q->sram_banks},
        {"bf16", p->bf16, q->bf16},
        {"clock_mhz", round(p->clock_mhz * 1e6) / 1e6, q->clock_mhz},
        {"dram_gbps", round(p->dram_gbps * 1e9) / 1e9, q->dram_gbps},
        {"dram_latency_cycles", p->dram_latency_cycles, q->dram_latency_cycles},
    };
    for (size_t k = 0; k < sizeof figures / sizeof *figures; k++)
        if (figures[k].program != figures[k].device)
            return fail(ctx, MERA_INVALID_ARGUMENT,
                        "the program was compiled for platform %s, device %s is %s (%s: %.10g and %.10g); compile for the "
                        "device's platform, or choose another device",
                        p->name, d->info.address, q->name, figures[k].what, figures[k].program, figures[k].device);
    return MERA_OK;
}

static loaded_port *copy_ports(dna_device *d, const program_port *ports, int32_t count)
{
    loaded_port *copy = ctx_alloc_zeroed(d->memory, (size_t)count * sizeof *copy);
    for (int32_t k = 0; k < count && copy; k++) {
        snprintf(copy[k].name, sizeof copy[k].name, "%s", ports[k].name);
        copy[k].address = ports[k].dram;
        copy[k].bytes = ports[k].bytes;
    }
    return copy;
}

/* The instructions as the device decodes them. */
static mera_status encode(mera_context *ctx, dna_device *d, const mera_program *program, loaded *p)
{
    word_vec words = {0};
    mera_status status = MERA_OK;
    for (int64_t k = 0; k < program->code_count && status == MERA_OK; k++)
        status = isa_encode(ctx, &program->code[k], &words);
    p->code_bytes = (int64_t)words.count * 4;
    p->code = status == MERA_OK ? ctx_alloc(d->memory, (size_t)p->code_bytes) : NULL;
    for (size_t w = 0; w < words.count && p->code; w++) field_set(p->code + 4 * w, 0, 32, words.at[w]);
    vec_free(ctx, &words);
    return status != MERA_OK || p->code ? status : out_of_memory(ctx);
}

/* All that the driver keeps of the program. */
static mera_status describe(mera_context *ctx, dna_device *d, const mera_program *program, loaded *p)
{
    p->code_at = p->memory_at = -1;
    TRY(encode(ctx, d, program, p));
    p->constant_bytes = program->constant_bytes;
    p->memory_bytes = program->dram_bytes;
    p->constants = ctx_alloc(d->memory, (size_t)p->constant_bytes);
    p->inputs = copy_ports(d, program->inputs, program->input_count);
    p->outputs = copy_ports(d, program->outputs, program->output_count);
    if (!p->constants || !p->inputs || !p->outputs) return out_of_memory(ctx);
    if (p->constant_bytes) memcpy(p->constants, program->constants, (size_t)p->constant_bytes);
    p->input_count = program->input_count;
    p->output_count = program->output_count;
    p->code_crc = crc32_of(0, p->code, (size_t)p->code_bytes);
    p->constant_crc = crc32_of(0, p->constants, (size_t)p->constant_bytes);
    p->sram_peak = program->sram_peak;
    for (int32_t n = 0; n < program->node_count; n++) p->macs += program->nodes[n].macs;
    return MERA_OK;
}

static mera_status place(mera_context *ctx, dna_device *d, loaded *p)
{
    p->code_at = ranges_take(d->memory, &d->device, p->code_bytes, DNA_ID_CODE_ALIGN);
    p->memory_at = p->code_at < 0 ? p->code_at : ranges_take(d->memory, &d->device, p->memory_bytes, DNA_ID_PROGRAM_ALIGN);
    if (p->memory_at >= 0) return MERA_OK;
    if (p->code_at == RANGES_NO_HOST_MEMORY || p->memory_at == RANGES_NO_HOST_MEMORY) return out_of_memory(ctx);
    if (p->code_at >= 0) ranges_give(&d->device, p->code_at);
    p->code_at = -1;
    return fail(ctx, MERA_OUT_OF_MEMORY,
                "device %s: the program needs %lld bytes of device memory (%lld of instructions, %lld of constants, inputs, "
                "outputs and scratch); of its %lld bytes %lld are free",
                d->info.address, (long long)(p->code_bytes + p->memory_bytes), (long long)p->code_bytes,
                (long long)p->memory_bytes, (long long)d->device.total, (long long)ranges_free_bytes(&d->device));
}

static mera_status upload(mera_context *ctx, dna_device *d, int64_t address, const uint8_t *data, int64_t bytes)
{
    const int64_t most = max_i64(min_i64(UPLOAD_BYTES, d->t->dma_bytes / 4), DNA_ID_DESCRIPTOR_BYTES);
    for (int64_t done = 0; done < bytes;) {
        const int64_t piece = min_i64(most, bytes - done);
        int64_t staging;
        request *r;
        TRY(staging_take(ctx, d, piece, &staging));
        const mera_status begun = request_begin(ctx, d, &r);
        if (begun != MERA_OK) {
            ranges_give(&d->host, staging);
            return begun;
        }
        r->staging = staging;
        memcpy(d->t->dma + staging, data + done, (size_t)piece);
        (void)request_copy(ctx, d, r, DESCRIPTOR_COPY_IN, staging, address + done, piece, true);
        TRY(request_finish(ctx, d, r)); /* a chain that could not be filed has failed with the device */
        done += piece;
    }
    return MERA_OK;
}

/* A chain of one descriptor. */
static mera_status order(mera_context *ctx, dna_device *d, int opcode, int32_t slot, uint8_t x[DNA_ID_DESCRIPTOR_BYTES])
{
    request *r;
    TRY(request_begin(ctx, d, &r));
    r->slot = slot;
    (void)request_add(ctx, d, r, opcode, slot, x, true);
    return request_finish(ctx, d, r);
}

mera_status program_ensure(mera_context *ctx, dna_device *d, int32_t slot)
{
    loaded *p = d->slots[slot];
    if (p->on_device) return MERA_OK;
    uint8_t unload[DNA_ID_DESCRIPTOR_BYTES] = {0}, load[DNA_ID_DESCRIPTOR_BYTES] = {0};
    /* A spoilt program is still in its slot; after a reset there is none: either is well. */
    if (order(ctx, d, DESCRIPTOR_UNLOAD, slot, unload) != MERA_OK && d->faulted) return faulted(ctx, d);
    TRY(upload(ctx, d, p->code_at, p->code, p->code_bytes));
    TRY(upload(ctx, d, p->memory_at, p->constants, p->constant_bytes));
    DSET(load, LOAD, code, p->code_at);
    DSET(load, LOAD, code_bytes, p->code_bytes);
    DSET(load, LOAD, code_crc, p->code_crc);
    DSET(load, LOAD, memory, p->memory_at);
    DSET(load, LOAD, memory_bytes, p->memory_bytes);
    DSET(load, LOAD, constant_bytes, p->constant_bytes);
    DSET(load, LOAD, constant_crc, p->constant_crc);
    TRY(order(ctx, d, DESCRIPTOR_LOAD, slot, load));
    p->on_device = true;
    return MERA_OK;
}

static mera_status load(mera_context *ctx, dna_device *d, const mera_program *program, int32_t *out)
{
    TRY(check_platform(ctx, d, &program->platform));
    int32_t slot = 0;
    while (slot < d->info.slots && d->slots[slot]) slot++;
    if (slot == d->info.slots)
        return fail(ctx, MERA_OUT_OF_MEMORY, "device %s: all of its %d slots for programs are in use; unload one",
                    d->info.address, d->info.slots);
    loaded *p = ctx_alloc_zeroed(d->memory, sizeof *p);
    if (!p) return out_of_memory(ctx);
    mera_status status = describe(ctx, d, program, p);
    d->slots[slot] = p;
    if (status == MERA_OK) status = place(ctx, d, p);
    if (status == MERA_OK) status = program_ensure(ctx, d, slot);
    if (status == MERA_OK)
        *out = slot;
    else
        forget(d, slot);
    return status;
}

mera_status device_load(mera_context *ctx, dna_device *d, const mera_program *program, int32_t *slot)
{
    TRY(device_claim(ctx, d));
    const mera_status status = load(ctx, d, program, slot);
    device_release(d);
    return status;
}

mera_status device_unload(mera_context *ctx, dna_device *d, int32_t slot)
{
    loaded *p;
    uint8_t x[DNA_ID_DESCRIPTOR_BYTES] = {0};
    TRY(device_claim(ctx, d));
    mera_status status = find_slot(ctx, d, slot, &p);
    if (status == MERA_OK) {
        status = p->on_device ? order(ctx, d, DESCRIPTOR_UNLOAD, slot, x) : MERA_OK;
        forget(d, slot);
    }
    device_release(d);
    return status;
}

mera_status device_verify(mera_context *ctx, dna_device *d, int32_t slot)
{
    loaded *p;
    uint8_t x[DNA_ID_DESCRIPTOR_BYTES] = {0};
    TRY(device_claim(ctx, d));
    mera_status status = find_slot(ctx, d, slot, &p);
    if (status == MERA_OK) status = program_ensure(ctx, d, slot);
    if (status == MERA_OK) status = order(ctx, d, DESCRIPTOR_VERIFY, slot, x);
    device_release(d);
    return status;
}

/* ---- running ---- */

static mera_status check_ports(mera_context *ctx, const char *what, const loaded_port *ports, int32_t count, int32_t given,
                               const void *const *data, const int64_t *bytes)
{
    if (given != count) return fail(ctx, MERA_INVALID_ARGUMENT, "the program has %d %ss, got %d", count, what, given);
    for (int32_t k = 0; k < count; k++)
        if (!data[k] || bytes[k] != ports[k].bytes)
            return fail(ctx, MERA_INVALID_ARGUMENT, "%s %d ('%s') has %lld bytes, the program needs %lld", what, k,
                        ports[k].name, (long long)(data[k] ? bytes[k] : 0), (long long)ports[k].bytes);
    return MERA_OK;
}

/* Where memory lies in DMA memory, -1 if elsewhere. */
static int64_t dma_offset(const dna_device *d, const void *memory, int64_t bytes)
{
    const uintptr_t at = (uintptr_t)memory, first = (uintptr_t)d->t->dma, end = first + (uintptr_t)d->t->dma_bytes;
    return at >= first && at < end && (uintptr_t)bytes <= end - at ? (int64_t)(at - first) : -1;
}

static int64_t padded(int64_t bytes) { return (bytes + DNA_ID_DESCRIPTOR_BYTES - 1) & -DNA_ID_DESCRIPTOR_BYTES; }

/* DMA memory for what does not lie there already. */
static int64_t staging_bytes(const dna_device *d, const loaded_port *ports, int32_t count, const void *const *data)
{
    int64_t total = 0;
    for (int32_t k = 0; k < count; k++)
        if (dma_offset(d, data[k], ports[k].bytes) < 0) total += padded(ports[k].bytes);
    return total;
}

typedef struct run_ports {
    const void *const *inputs;
    void *const *outputs;
} run_ports;

static mera_status file_run(mera_context *ctx, dna_device *d, const loaded *p, request *r, const run_ports *ports)
{
    uint8_t run[DNA_ID_DESCRIPTOR_BYTES] = {0};
    int64_t staging = r->staging;
    for (int32_t k = 0; k < p->input_count; k++) {
        const int64_t bytes = p->inputs[k].bytes, own = dma_offset(d, ports->inputs[k], bytes);
        TRY(request_copy(ctx, d, r, DESCRIPTOR_COPY_IN, own >= 0 ? own : staging, p->memory_at + p->inputs[k].address, bytes,
                         false));
        staging += own >= 0 ? 0 : padded(bytes);
    }
    DSET(run, RUN, verify, d->verify_runs);
    TRY(request_add(ctx, d, r, DESCRIPTOR_RUN, r->slot, run, p->output_count == 0));
    for (int32_t k = 0; k < p->output_count; k++) {
        const int64_t bytes = p->outputs[k].bytes, own = dma_offset(d, ports->outputs[k], bytes);
        TRY(request_copy(ctx, d, r, DESCRIPTOR_COPY_OUT, own >= 0 ? own : staging, p->memory_at + p->outputs[k].address,
                         bytes, k == p->output_count - 1));
        staging += own >= 0 ? 0 : padded(bytes);
    }
    return MERA_OK;
}

/* Inputs into DMA memory; what is to be copied back once the run is complete. */
static mera_status stage(mera_context *ctx, dna_device *d, const loaded *p, request *r, const run_ports *ports)
{
    int64_t staging = r->staging;
    for (int32_t k = 0; k < p->input_count; k++) {
        const int64_t bytes = p->inputs[k].bytes;
        if (dma_offset(d, ports->inputs[k], bytes) >= 0) continue;
        memcpy(d->t->dma + staging, ports->inputs[k], (size_t)bytes);
        staging += padded(bytes);
    }
    for (int32_t k = 0; k < p->output_count; k++) {
        const int64_t bytes = p->outputs[k].bytes;
        if (dma_offset(d, ports->outputs[k], bytes) >= 0) continue;
        if (!vec_push(d->memory, &r->outputs, ((copy_back){ports->outputs[k], staging, bytes}))) return out_of_memory(ctx);
        staging += padded(bytes);
    }
    return MERA_OK;
}

static mera_status submit(mera_context *ctx, dna_device *d, int32_t slot, const run_ports *ports, uint64_t *id)
{
    const loaded *p = d->slots[slot];
    TRY(program_ensure(ctx, d, slot));
    const int64_t bytes = staging_bytes(d, p->inputs, p->input_count, ports->inputs) +
                          staging_bytes(d, p->outputs, p->output_count, (const void *const *)ports->outputs);
    int64_t staging;
    request *r;
    TRY(staging_take(ctx, d, bytes, &staging));
    mera_status status = request_begin(ctx, d, &r);
    if (status != MERA_OK) {
        ranges_give(&d->host, staging);
        return status;
    }
    r->staging = staging;
    r->slot = slot;
    status = stage(ctx, d, p, r, ports);
    if (status != MERA_OK) {
        request_drop(d, r);
        return status;
    }
    if (file_run(ctx, d, p, r, ports) != MERA_OK) return request_finish(ctx, d, r); /* it has failed with the device */
    *id = r->id;
    return MERA_OK;
}

mera_status device_submit(mera_context *ctx, dna_device *d, int32_t slot, int32_t input_count, const void *const *inputs,
                          const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                          const int64_t *output_bytes, uint64_t *request)
{
    loaded *p;
    TRY(device_claim(ctx, d));
    mera_status status = find_slot(ctx, d, slot, &p);
    if (status == MERA_OK) status = check_ports(ctx, "input", p->inputs, p->input_count, input_count, inputs, input_bytes);
    if (status == MERA_OK)
        status = check_ports(ctx, "output", p->outputs, p->output_count, output_count, (const void *const *)outputs,
                             output_bytes);
    const run_ports ports = {inputs, outputs};
    if (status == MERA_OK) status = submit(ctx, d, slot, &ports, request);
    device_release(d);
    return status;
}

mera_status device_run(mera_context *ctx, dna_device *d, int32_t slot, int32_t input_count, const void *const *inputs,
                       const int64_t *input_bytes, int32_t output_count, void *const *outputs, const int64_t *output_bytes,
                       int64_t timeout_ms)
{
    uint64_t request;
    TRY(device_submit(ctx, d, slot, input_count, inputs, input_bytes, output_count, outputs, output_bytes, &request));
    return device_wait(ctx, d, request, timeout_ms);
}

mera_status device_stats(mera_context *ctx, dna_device *d, int32_t slot, mera_stats *stats)
{
    loaded *p;
    TRY(device_claim(ctx, d));
    mera_status status = find_slot(ctx, d, slot, &p);
    if (status == MERA_OK && !p->has_run)
        status = fail(ctx, MERA_STATE, "device %s: the program in slot %d has not run yet", d->info.address, slot);
    if (status == MERA_OK)
        *stats = (mera_stats){.cycles = p->last[COUNTER_CYCLES],
                              .array_busy_cycles = p->last[COUNTER_ARRAY_BUSY],
                              .window_busy_cycles = p->last[COUNTER_WINDOW_BUSY],
                              .vector_busy_cycles = p->last[COUNTER_VECTOR_BUSY],
                              .dma_busy_cycles = p->last[COUNTER_DMA_BUSY],
                              .bank_conflict_cycles = p->last[COUNTER_BANK_CONFLICTS],
                              .dram_bytes_read = p->last[COUNTER_DRAM_READ],
                              .dram_bytes_written = p->last[COUNTER_DRAM_WRITTEN],
                              .sram_words_read = p->last[COUNTER_SRAM_READ],
                              .sram_words_written = p->last[COUNTER_SRAM_WRITTEN],
                              .instructions = p->last[COUNTER_INSTRUCTIONS],
                              .macs = p->macs,
                              .sram_peak_bytes = p->sram_peak};
    device_release(d);
    return status;
}
