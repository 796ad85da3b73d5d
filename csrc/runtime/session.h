/* session.h: a deployment on a target: what its requests share (runner.c), and one inference (request.c, run.c). */
#ifndef MERA_RUNTIME_SESSION_H
#define MERA_RUNTIME_SESSION_H

#include "../device/driver.h"
#include "deployment.h"
#include "inner.h"
#include "pool.h"

/* A region on the runner's target. Requests read it. */
typedef struct shared_engine {
    mera_program *program;   /* IP */
    mera_interpreter *plans; /* InterpreterHw */
    mera_simulator *timing;  /* Simulator */
} shared_engine;

struct dna_runner {
    atomic_int users;
    dna_deployment *deployment;
    mera_context *ctx; /* used while the runner is made */
    dna_target target;
    dna_runner_options options; /* what was given as 0 filled in */
    shared_engine *engines;     /* a region each */
    int32_t device_count;       /* IP */
    dna_device **devices;
    int32_t *slots; /* [device][region]: where the device holds the region's program */
    atomic_uint turn;
    runner_executor executor; /* IP; else, and without one, NULL */
    void *user;
    pool pool;
};

typedef struct request_engine {
    mera_interpreter *interpreter;
    mera_simulator *simulator;
    mera_stats stats; /* IP: of the last run */
} request_engine;

struct dna_request {
    pool_job job; /* first: a job is its request */
    dna_runner *runner;
    int32_t device;          /* IP: its number */
    mera_context *ctx;       /* the run's */
    uint8_t *block, *memory; /* as allocated, and aligned */
    const void **pointers;   /* of each value */
    request_engine *engines; /* a region each */
    const void **dna_inputs; /* room for the pointers and sizes of one region's border */
    void **dna_outputs;
    int64_t *dna_input_bytes;
    bool *given; /* of each input: set, or its handle taken */
    dna_metrics total, *regions;
    dna_callback callback;
    void *user;
    char error[1024]; /* of the last call that failed; the owner's */
    /* under the lock */
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool running, ever_ran, ever_succeeded;
    dna_status status; /* of the last run */
};

static inline const model_input *tensor_input(const dna_deployment *d, int32_t index)
{
    return &d->inputs[d->tensor_inputs[index]];
}

void runner_keep(dna_runner *runner);

/* One inference, in the calling thread. Fills metrics. */
mera_status request_execute(dna_request *request);

#endif
