/* device.h: the state of the driver. driver.c opens, resets and identifies; requests.c works the rings; programs.c keeps
 * what is loaded. Unless a function says otherwise, its caller holds the lock; what sleeps gives it up meanwhile. */
#ifndef MERA_DEVICE_DEVICE_H
#define MERA_DEVICE_DEVICE_H

#include <pthread.h>

#include "ranges.h"
#include "transport.h"

enum { MAX_SLOTS = 4096 };

typedef struct copy_back {
    void *to;
    int64_t offset, bytes; /* in DMA memory */
} copy_back;

/* A chain of descriptors, from its first one to the call that waits for it. */
typedef struct request {
    uint64_t id;
    uint32_t sequence;
    bool done;
    mera_status status; /* once done: MERA_OK, or MERA_DEVICE_FAULT and the rest of what is known */
    uint32_t error, index;
    uint64_t detail;
    int64_t counters[COMPLETION_COUNTERS];
    int64_t timeout_us;
    int64_t staging; /* of inputs and outputs, in DMA memory; -1: none */
    int32_t slot;    /* that it runs; -1: none */
    VEC(copy_back) outputs;
} request;

typedef struct loaded_port {
    char name[64];
    int64_t address, bytes; /* within the program's memory */
} loaded_port;

typedef struct loaded {
    uint8_t *code, *constants; /* to load them again */
    int64_t code_bytes, constant_bytes, memory_bytes;
    uint32_t code_crc, constant_crc;
    int64_t code_at, memory_at; /* in device memory */
    int32_t input_count, output_count;
    loaded_port *inputs, *outputs;
    int64_t macs, sram_peak;
    bool on_device, has_run;
    int64_t last[COMPLETION_COUNTERS];
} loaded;

struct dna_device {
    mera_context *memory; /* for what the device allocates; guarded by the lock */
    transport *t;
    pid_t process;
    device_info info;
    int64_t timeout_us;
    bool verify_runs;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* anything below */
    bool polling;           /* a thread waits for the transport */
    bool claimed;           /* a thread builds chains, resets or loads: one at a time */

    bool faulted;
    char fault[512];
    uint32_t reset_number, latch_number;

    uint8_t *submit, *complete;
    uint32_t submit_size, complete_size, tail, complete_head;
    VEC(request *) requests; /* in the order of their chains */
    size_t first_open;       /* those in front of it are done */
    uint32_t next_sequence;
    uint64_t next_id;
    int64_t progress_us; /* when the device last completed something, or got work while it had none */

    ranges host, device;
    VEC(int64_t) limbo; /* staging of requests that failed: the device may still write there, until it is reset */
    loaded **slots;     /* info.slots of them; NULL: free */
};

/* ---- discover.c: no lock is needed ---- */

/* Reads what the registers say of the board; nothing of it is used before it makes sense. */
mera_status device_identify(mera_context *ctx, const transport *t, device_info *info);

/* ---- driver.c ---- */

/* Marks the device as faulty and fails all that is in flight; the first message is kept. */
void device_fault(dna_device *d, const char *format, ...) MERA_PRINTF(2, 3);
mera_status faulted(mera_context *ctx, const dna_device *d); /* sets its message */
/* Claims the device for this thread, and resets it if it is faulty. Undo with device_release. On failure it is not claimed.
 * These two take and give up the lock. */
mera_status device_claim(mera_context *ctx, dna_device *d);
void device_release(dna_device *d);
bool device_owned(mera_context *ctx, const dna_device *d, mera_status *status); /* false after a fork */

/* ---- requests.c ---- */

/* A new chain; add descriptors, the last one with last = true, then finish or drop it. Needs the claim. */
mera_status request_begin(mera_context *ctx, dna_device *d, request **out);
mera_status request_add(mera_context *ctx, dna_device *d, request *r, int opcode, int32_t slot, uint8_t descriptor[64],
                        bool last);
/* COPY_IN or COPY_OUT between DMA memory and device memory, in as many descriptors as that takes. */
mera_status request_copy(mera_context *ctx, dna_device *d, request *r, int opcode, int64_t offset, int64_t address,
                         int64_t bytes, bool last);
/* Waits until it is done, then frees it. */
mera_status request_finish(mera_context *ctx, dna_device *d, request *r);
/* Undoes request_begin, as long as nothing was added. */
void request_drop(dna_device *d, request *r);
void request_free(dna_device *d, request *r);
/* Takes what the device has completed. */
void take_completions(dna_device *d);
/* Sleeps until the device has done something, or a moment has passed; notices if it is dead or hung. */
void await_device(dna_device *d, uint32_t ticket);
/* A part of DMA memory; waits for requests in flight to give some back. */
mera_status staging_take(mera_context *ctx, dna_device *d, int64_t bytes, int64_t *offset);

/* ---- programs.c ---- */

mera_status find_slot(mera_context *ctx, const dna_device *d, int32_t slot, loaded **out);
/* Makes sure that the device holds the program of the slot. Needs the claim. */
mera_status program_ensure(mera_context *ctx, dna_device *d, int32_t slot);
void loaded_free(dna_device *d, loaded *p);

#endif
