/* deployment.h: a deployment as the runtime holds it: read, checked and planned once, then constant.
 *
 *   deployment.c  the folder: files and their checksums, regions
 *   manifest.c    deployment.json: platform, interface, regions' borders
 *   steps.c       the host's steps: values, their numbers, what each step reads and gives
 *   memory.c      where values lie in a request's memory
 *   session.c     runners and requests
 *   pool.c        the threads that run requests */
#ifndef MERA_RUNTIME_DEPLOYMENT_H
#define MERA_RUNTIME_DEPLOYMENT_H

#include <pthread.h>
#include <stdatomic.h>

#include "../dna_runtime.h"
#include "../graph.h"
#include "../sim.h"
#include "port.h"
#include "safetensors.h"

enum { DEPLOYMENT_VERSION = 2, MAX_REGIONS = 4096, MAX_STEPS = 1 << 20 };

/* A flat input of the model: a tensor, or a constant that the model was compiled for. */
typedef struct model_input {
    const char *name, *node, *source; /* the module's name, the steps' name, that of an imported file or NULL */
    bool is_tensor;
    host_tensor type;
    host_arg constant;
    int32_t value; /* of a tensor */
} model_input;

typedef struct model_output {
    const char *name;
    int32_t value;  /* -1: it needs PyTorch */
    int64_t offset; /* in the request's memory; the value's own place, or where it is copied to */
} model_output;

typedef struct region {
    const char *name;
    int32_t input_count, output_count;
    port *inputs, *outputs;
    int32_t *output_index; /* outputs[i] reads the graph's output output_index[i] */
    mera_options options;
    int32_t result_count; /* outputs of the graph */
    int64_t *result_bytes;
    mera_graph *graph;
    _Atomic(mera_program *) program;  /* NULL: not compiled yet; see deployment_program */
    _Atomic(mera_simulator *) timing; /* NULL: not timed yet; see deployment_timing */
} region;

/* Where the bytes of a value are. */
typedef enum place { PLACE_CONSTANT, PLACE_INPUT, PLACE_OUTPUT, PLACE_SHARED } place;

typedef struct value {
    int32_t root;     /* the value whose bytes it is: itself, or of which it is an alias */
    place place;      /* of a root */
    const void *data; /* of a constant */
    int64_t offset;   /* in the request's memory, of others */
    int32_t last_use; /* of a root: the last step that reads it or an alias of it; -1: none */
} value;

typedef struct step {
    int32_t region; /* -1: the host's */
    host_step host;
    int32_t first_value;           /* of its results, which are numbered one behind the other */
    const int32_t *inputs;         /* of a region: the value that each port reads */
    int64_t *store_at, *result_at; /* of a region: the DNA's inputs and outputs in the request's memory */
} step;

struct dna_deployment {
    atomic_int users;
    pthread_mutex_t lock; /* for what is made late: programs, timing */
    mera_context *ctx;    /* used by one thread at a time: while loading, and under the lock */
    arena memory;
    int32_t version;
    dna_target target;
    const char *core, *explanation, *needs_torch;
    bool foreign_core; /* another build of the core compiled it */
    mera_platform platform;
    int32_t input_count, flat_input_count, output_count, region_count, step_count, value_count, host_step_count;
    model_input *inputs;    /* flat_input_count: tensors and constants */
    int32_t *tensor_inputs; /* input_count: indices of inputs */
    model_output *outputs;
    region *regions;
    step *steps;
    host_tensor *types; /* a value */
    value *values;
    int64_t request_bytes, scratch_at, scratch_bytes; /* of a request's memory */
};

/* Deployment.json's text -> everything but steps and outputs. The arena keeps what it needs of json. */
mera_status manifest_read(dna_deployment *d, const json_value *json);
/* Numbers all values and plans all steps. If one needs PyTorch: MERA_OK, and needs_torch says which. */
mera_status steps_read(dna_deployment *d, const json_value *json, int32_t constant_count, const stored_tensor *constants);
/* Lays out a request's memory. */
mera_status memory_plan(dna_deployment *d);

/* The region's program, compiled if the folder holds none. Any thread; errors are ctx's, which is the caller's. */
mera_status deployment_program(dna_deployment *d, mera_context *ctx, int32_t region, mera_program **program);
/* Its timing, simulated once. Likewise. */
mera_status deployment_timing(dna_deployment *d, mera_context *ctx, int32_t region, mera_simulator **timing);
void deployment_keep(dna_deployment *d);

static inline size_t value_bytes(const dna_deployment *d, int32_t v) { return host_bytes(&d->types[v]); }

#endif
