/* driver.h: the user-space driver of DNA boards, over PCI Express or to an emulated board; docs/device.md describes both.
 *
 * A device is used by any number of threads at once: no function but device_close needs it alone. `ctx` is the calling
 * thread's own context, for the message of an error and for what the call allocates; a device outlives the context that
 * it was opened with. A device must not be used across fork().
 *
 * Statuses: MERA_DEVICE_ABSENT no such device; MERA_DEVICE_BUSY another process has it; MERA_DEVICE_FAULT it hung, died,
 * identified itself with nonsense or failed a checksum. After a fault the next call resets it and loads its programs again.
 */
#ifndef MERA_DEVICE_DRIVER_H
#define MERA_DEVICE_DRIVER_H

#include "../mera.h"

/* ---- cffi: begin ---- */

typedef struct dna_device dna_device;

/* 0 or NULL stands for the default of each. */
typedef struct device_options {
    const char *runtime_folder; /* of emulated boards; default: $XDG_RUNTIME_DIR/mera_torch, else <temp>/mera_torch-<uid> */
    const char *sysfs;          /* default: /sys */
    const char *dev;            /* where uio<N> are; default: /dev */
    const char *hugepages;      /* a folder on hugetlbfs for DMA memory; default: anonymous huge pages */
    const char *pagemap;        /* default: /proc/self/pagemap */
    uint32_t vendor_id;         /* PCI identifiers; defaults: dna_regs.def */
    uint32_t device_id;
    int64_t dma_bytes;    /* host memory for DMA; default: 64 MiB (pcie) or what the board offers (emulated) */
    int64_t timeout_ms;   /* longest that one request may take once it is its turn; default: 60000 */
    int32_t verify_runs;  /* 1: the device checks the program's checksums before every run */
    int64_t fail_after_n; /* for tests: allocation number n of the device itself and all later ones fail */
} device_options;

typedef struct device_info {
    char address[64];       /* "emulated:0", "pcie:0000:01:00.0" */
    mera_platform platform; /* as the device describes itself */
    int64_t memory_bytes;   /* device memory, and what of it no program holds */
    int64_t memory_free;
    int64_t dma_bytes; /* host memory for DMA */
    uint32_t vendor_id, device_id, version;
    int32_t slots;      /* programs that can be loaded at once */
    int32_t ring;       /* entries of the submission ring */
    int32_t interrupts; /* 1: waits for interrupts; 0: polls */
} device_info;

/* Since the device was reset; the meaning of each: DNA_COUNTER in dna_regs.def. */
typedef struct device_counters {
    int64_t cycles, array_busy, window_busy, vector_busy, dma_busy, bank_conflicts;
    int64_t dram_read, dram_written, sram_read, sram_written, instructions, host_read, host_written, runs;
} device_counters;

/* All boards, as JSON: a list of objects with address, transport, state ("free", "busy", "unidentified"), holder (a pid or
 * null), vendor, device, memory_bytes, platform (an object, or null if unidentified). Cleans up after dead emulated boards.
 * Freed with mera_free_text. */
mera_status device_list(mera_context *ctx, const device_options *options, char **json);

/* address: "emulated:<n>", "pcie:<domain:bus:device.function>", or NULL for the first that is free. Checks what the device
 * says of itself, resets it, sets up its rings. */
mera_status device_open(mera_context *ctx, const char *address, const device_options *options, dna_device **device);
/* Waits for nothing: requests in flight are dropped. NULL is allowed. */
void device_close(dna_device *device);
void device_get_info(dna_device *device, device_info *info);
/* 0 if it is gone for good: its process ended, or it left the bus. */
int32_t device_alive(dna_device *device);

/* Copies program and constants to the device, which checks them. The program is not needed afterwards.
 * MERA_INVALID_ARGUMENT if it was compiled for another platform, MERA_OUT_OF_MEMORY if device memory is short of it. */
mera_status device_load(mera_context *ctx, dna_device *device, const mera_program *program, int32_t *slot);
mera_status device_unload(mera_context *ctx, dna_device *device, int32_t slot);
/* The device checks the checksums of what it holds again. */
mera_status device_verify(mera_context *ctx, dna_device *device, int32_t slot);

/* Runs a loaded program: as mera_simulator_run. timeout_ms: 0 for the device's own. */
mera_status device_run(mera_context *ctx, dna_device *device, int32_t slot, int32_t input_count, const void *const *inputs,
                       const int64_t *input_bytes, int32_t output_count, void *const *outputs, const int64_t *output_bytes,
                       int64_t timeout_ms);
/* The same in two halves, with several requests in flight. Inputs are read before device_submit returns (but those in
 * device_buffer memory until the request is complete), outputs are written by device_wait. Requests are done in order.
 * Every request is waited for once. */
mera_status device_submit(mera_context *ctx, dna_device *device, int32_t slot, int32_t input_count,
                          const void *const *inputs, const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                          const int64_t *output_bytes, uint64_t *request);
mera_status device_wait(mera_context *ctx, dna_device *device, uint64_t request, int64_t timeout_ms);
/* done: whether device_wait would return at once. */
mera_status device_poll(mera_context *ctx, dna_device *device, uint64_t request, int32_t *done);

/* Memory that the device reaches by itself: inputs and outputs there are not copied by the host. */
mera_status device_buffer(mera_context *ctx, dna_device *device, int64_t bytes, void **memory);
void device_buffer_free(dna_device *device, void *memory);

mera_status device_read_counters(mera_context *ctx, dna_device *device, device_counters *counters);
/* What one run of the program cost on the device, from the counters of its last run. MERA_STATE before the first. */
mera_status device_stats(mera_context *ctx, dna_device *device, int32_t slot, mera_stats *stats);
/* Stops what is in flight, forgets and reloads all programs. A fault does this by itself at the next call. */
mera_status device_reset(mera_context *ctx, dna_device *device);

/* ---- cffi: end ---- */

#endif
