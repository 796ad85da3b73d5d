/* dna_runtime.h: running a deployment from C, C++ or any language that calls C. The one public header of the runtime.
 *
 *     dna_error error;
 *     dna_deployment *deployment = NULL;
 *     dna_runner *runner = NULL;
 *     dna_request *request = NULL;
 *     if (dna_deployment_load("deploy", &deployment, &error) || dna_runner_create(deployment, NULL, &runner, &error) ||
 *         dna_request_create(runner, &request, &error)) { fprintf(stderr, "%s\n", error.message); ... }
 *     memcpy(dna_request_input_handle(request, 0, NULL), image, bytes);
 *     if (dna_request_run(request)) { fprintf(stderr, "%s\n", dna_request_error(request)); ... }
 *     const float *scores = dna_request_output_handle(request, 0, NULL);
 *     dna_request_free(request); dna_runner_free(runner); dna_deployment_free(deployment);
 *
 * A deployment is what mera_torch.export writes: a folder. It is read once, checked whole, and never changes afterwards.
 * A runner is a deployment on a target, with the threads that run its requests. A request is one inference: the memory of
 * its inputs and outputs and everything that changes while it runs.
 *
 * Threads. Deployments and runners may be used by any number of threads at once. One request belongs to one thread at a
 * time; different requests run at the same time. Objects may be freed in any order: each keeps what it stands on alive.
 *
 * Failure. What can fail returns a dna_status, DNA_OK = 0; the sentence that says why is in the dna_error that was passed
 * (NULL is allowed), or in dna_request_error(). Nothing aborts, prints, or installs a handler.
 *
 * Tensors are dense, row-major, in the shapes of the original PyTorch module (images NCHW), little endian. */
#ifndef DNA_RUNTIME_H
#define DNA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__) && !defined(DNA_RUNTIME_STATIC)
#pragma GCC visibility push(default)
#endif

/* ---- cffi: begin ---- */

typedef enum dna_status {
    DNA_OK = 0,
    DNA_INVALID_ARGUMENT = 1, /* an index, a size or an option out of its range; a folder that is no deployment */
    DNA_OUT_OF_MEMORY = 2,
    DNA_UNSUPPORTED = 3,  /* the deployment holds a step that only PyTorch can run; the message names it */
    DNA_DOES_NOT_FIT = 4, /* a program was to be compiled, and no tiling fits the platform's SRAM */
    DNA_CORRUPT = 5,      /* a file that is missing, truncated, altered, of a newer version, or hostile */
    DNA_DEADLOCK = 6,     /* the simulator found queues waiting for each other */
    DNA_INTERNAL = 7,     /* a mistake of ours */
    DNA_STATE = 8,        /* a call out of order: run before all inputs are set, get_output before a run, ... */
    DNA_STORAGE = 9,      /* a file that exists and cannot be read */
    DNA_DEVICE_ABSENT = 10,
    DNA_DEVICE_BUSY = 11, /* in use by another process */
    DNA_DEVICE_FAULT = 12 /* hung, died, identified itself with nonsense, or failed a checksum */
} dna_status;

typedef enum dna_dtype {
    DNA_BOOL = 0, /* one byte, 0 or 1 */
    DNA_UINT8 = 1,
    DNA_INT8 = 2,
    DNA_INT16 = 3,
    DNA_INT32 = 4,
    DNA_INT64 = 5,
    DNA_FLOAT16 = 6,
    DNA_BFLOAT16 = 7,
    DNA_FLOAT32 = 8,
    DNA_FLOAT64 = 9
} dna_dtype;

typedef enum dna_target {
    DNA_TARGET_DEFAULT = 0,        /* the one that the deployment was exported for */
    DNA_TARGET_INTERPRETER_HW = 1, /* node by node, the accelerator's arithmetic */
    DNA_TARGET_SIMULATOR = 2,      /* the compiled program: bits and cycles */
    DNA_TARGET_IP = 3              /* a device */
} dna_target;

typedef struct dna_deployment dna_deployment;
typedef struct dna_runner dna_runner;
typedef struct dna_request dna_request;

typedef struct dna_error {
    dna_status status;
    char message[1020]; /* one sentence, UTF-8; "" after DNA_OK */
} dna_error;

const char *dna_runtime_version(void);
const char *dna_status_name(dna_status status); /* "DNA_OK", ... */
const char *dna_dtype_name(dna_dtype dtype);    /* "float32", ... */
size_t dna_dtype_bytes(dna_dtype dtype);
const char *dna_target_name(dna_target target); /* "InterpreterHw", "Simulator", "IP" */

/* ---- deployments ---- */

/* Reads the folder whole and verifies every checksum. DNA_INVALID_ARGUMENT if there is no deployment, DNA_CORRUPT,
 * DNA_STORAGE, DNA_OUT_OF_MEMORY. */
dna_status dna_deployment_load(const char *folder, dna_deployment **deployment, dna_error *error);
void dna_deployment_free(dna_deployment *deployment); /* NULL is allowed; runners keep what they need */

#define DNA_MAX_RANK 8

typedef struct dna_tensor_info {
    const char *name; /* belongs to the deployment */
    dna_dtype dtype;
    int32_t rank;
    int64_t shape[DNA_MAX_RANK]; /* rank numbers, then zeros */
    size_t elements, bytes;
    /* 1 if the tensor enters or leaves the accelerator with this quantization, real = scale * (q - zero_point): a float32
     * tensor is converted at the border, an int8 one holds q. 0: scale and zero_point are 0. */
    int32_t quantized;
    float scale;
    int32_t zero_point;
} dna_tensor_info;

int32_t dna_deployment_input_count(const dna_deployment *deployment);
int32_t dna_deployment_output_count(const dna_deployment *deployment);
/* DNA_INVALID_ARGUMENT if there is no such index; DNA_UNSUPPORTED for an output behind a step that needs PyTorch. */
dna_status dna_deployment_input(const dna_deployment *deployment, int32_t index, dna_tensor_info *info);
dna_status dna_deployment_output(const dna_deployment *deployment, int32_t index, dna_tensor_info *info);
/* -1: there is none. Of an imported model, an input is also known by the name that it has in the file. */
int32_t dna_deployment_find_input(const dna_deployment *deployment, const char *name);
int32_t dna_deployment_find_output(const dna_deployment *deployment, const char *name);

const char *dna_deployment_platform(const dna_deployment *deployment); /* "DNAF200L0003", ... */
double dna_deployment_clock_mhz(const dna_deployment *deployment);
dna_target dna_deployment_target(const dna_deployment *deployment);       /* that it was exported for */
int32_t dna_deployment_version(const dna_deployment *deployment);         /* of the format */
const char *dna_deployment_core(const dna_deployment *deployment);        /* the version of mera_torch that wrote it */
int32_t dna_deployment_region_count(const dna_deployment *deployment);    /* parts that run on the accelerator */
int32_t dna_deployment_host_step_count(const dna_deployment *deployment); /* operators that run on the host */
/* NULL, or the sentence that names a step that only PyTorch can run: then no runner can be made of this deployment. */
const char *dna_deployment_needs_torch(const dna_deployment *deployment);
const char *dna_deployment_explanation(const dna_deployment *deployment); /* where each operator runs, and why; UTF-8 */

/* ---- runners ---- */

typedef struct dna_runner_options {
    dna_target target;
    int32_t requests;           /* that run at the same time, each in a thread of its own, 1 to 64; 0 = 1 */
    int32_t threads;            /* that one request's InterpreterHw uses; 0 = the machine's, divided among requests */
    int32_t timeout_ms;         /* IP: how long a device may take for one region; 0 = 10,000 */
    int32_t device_count;       /* IP: 0 = the first free device */
    const char *const *devices; /* IP: "emulated:0", "pcie:0000:01:00.0", ...; requests take turns on them */
} dna_runner_options;

/* options = NULL: all zero. Makes everything that requests share: programs, timing, open devices. */
dna_status dna_runner_create(dna_deployment *deployment, const dna_runner_options *options, dna_runner **runner,
                             dna_error *error);
void dna_runner_free(dna_runner *runner);                   /* NULL is allowed; requests keep what they need */
dna_target dna_runner_target(const dna_runner *runner);     /* never DNA_TARGET_DEFAULT */
int64_t dna_runner_request_bytes(const dna_runner *runner); /* host memory for the values of one request */

/* ---- requests ---- */

dna_status dna_request_create(dna_runner *runner, dna_request **request, dna_error *error);
void dna_request_free(dna_request *request);               /* NULL is allowed; waits for a run that was started */
const char *dna_request_error(const dna_request *request); /* of the last call that failed; "" if none did */

/* Zero copy: the memory of the request itself, aligned to 64 bytes, at the same address as long as the request lives.
 * Write inputs before a run, read outputs after it, neither while it goes on. bytes may be NULL. NULL if there is no such
 * index. */
void *dna_request_input_handle(dna_request *request, int32_t index, size_t *bytes);
const void *dna_request_output_handle(const dna_request *request, int32_t index, size_t *bytes);
/* Copies. DNA_INVALID_ARGUMENT for a wrong index or number of bytes; DNA_STATE while a run goes on, and for outputs before
 * the first run. */
dna_status dna_request_set_input(dna_request *request, int32_t index, const void *data, size_t bytes);
dna_status dna_request_get_output(dna_request *request, int32_t index, void *data, size_t bytes);

/* Runs in the calling thread. DNA_STATE if an input was neither set nor its handle taken, or if a run goes on. */
dna_status dna_request_run(dna_request *request);

/* Called once a started run is over, in a thread of the runner, before the request counts as done. It must not free the
 * request or the runner, nor wait for them. */
typedef void (*dna_callback)(void *user, dna_request *request, dna_status status);

/* Queues the request and returns; a thread of the runner runs it. callback may be NULL. DNA_STATE as dna_request_run. */
dna_status dna_request_start(dna_request *request, dna_callback callback, void *user);
/* 1 if no run goes on. */
int32_t dna_request_done(const dna_request *request);
/* Waits until no run goes on, at most timeout_ms (< 0: without end), and returns what the last run returned. If the time
 * is over first: DNA_STATE, and dna_request_done() is still 0. DNA_STATE, too, if nothing was ever run. */
dna_status dna_request_wait(dna_request *request, int64_t timeout_ms);

/* ---- metrics ---- */

/* Timing of the accelerator does not depend on data. On InterpreterHw nothing is timed, and cycles to instructions are
 * 0. Sums over regions, except sram_peak_bytes, a maximum. */
typedef struct dna_metrics {
    double wall_ms;        /* the whole of the last run, on this machine */
    double accelerator_ms; /* of it: in InterpreterHw, the Simulator, or waiting for the device */
    double border_ms;      /* of it: quantizing, dequantizing and permuting at the borders */
    double host_ms;        /* of it: operators on the host */
    double device_ms;      /* cycles at the platform's clock: the latency of the accelerator */
    int64_t cycles;
    int64_t macs;
    int64_t dram_bytes_read;
    int64_t dram_bytes_written;
    int64_t sram_peak_bytes;
    int64_t instructions;
} dna_metrics;

/* DNA_STATE before the first run. */
dna_status dna_request_metrics(dna_request *request, dna_metrics *metrics);
/* One region's: its wall_ms is accelerator_ms + border_ms, its host_ms 0. */
dna_status dna_request_region_metrics(dna_request *request, int32_t region, dna_metrics *metrics);

/* ---- cffi: end ---- */

#if defined(__GNUC__) && !defined(DNA_RUNTIME_STATIC)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif
