/* host.h: what a deployment does outside the DNA: operators of PyTorch on dense row-major tensors, by name.
 *
 * A session reads the steps of deployment.json, numbers every tensor that there is (inputs, constants, results of steps and
 * of regions), and plans each step once: host_plan checks the arguments and says what dtype and shape the results have.
 * All shapes are static. A planned step is constant: several threads may run it at once, each with buffers of its own.
 *
 * Arguments are mera_host_arg of mera.h. A name that stands for several tensors (the result of split, topk, ...: step->many)
 * is an argument of kind MERA_HOST_LIST of MERA_HOST_TENSORs; the operator "getitem" takes one of them, as any other
 * operator, and its result is an alias.
 */
#ifndef MERA_RUNTIME_HOST_H
#define MERA_RUNTIME_HOST_H

#include "../core.h"

typedef mera_host_dtype host_dtype;
typedef mera_host_tensor host_tensor;
typedef mera_host_arg host_arg;
typedef struct host_op host_op;

enum { HOST_MAX_RANK = MERA_HOST_MAX_RANK, HOST_MAX_RESULTS = 1024 };

/* A step as deployment.json has it: target(*args, **kwargs). */
typedef struct host_call {
    const char *name;   /* of the step, for messages */
    const char *target; /* "aten.add.Tensor", "getitem", ... */
    int32_t arg_count;
    const host_arg *args;
    int32_t kwarg_count;
    const char *const *kwarg_names;
    const host_arg *kwargs;
} host_call;

struct host_step;

/* One run of a step. */
typedef struct host_frame {
    mera_context *ctx;
    const struct host_step *step;
    const void *const *tensors; /* by number */
    void *const *results;
    void *scratch;
} host_frame;

/* A planned step. All of it lies in the arena it was planned with. */
typedef struct host_step {
    const host_op *op;
    const char *name;
    mera_status (*run)(const host_frame *frame); /* call host_run; NULL if all results are aliases */
    int32_t arg_count; /* one a parameter of the operator's schema; what the call left out has its default */
    const host_arg *args;
    int32_t read_count; /* the tensors it reads, each once, by number; aliased ones too */
    const int32_t *reads;
    bool many; /* the results are a list, even if there is one only */
    int32_t result_count;
    const host_tensor *results;
    const int32_t *alias; /* >= 0: result k is tensor alias[k] under another shape: there is nothing to compute, and run
                           * neither reads nor writes results[k]; -1: run fills it */
    size_t scratch_bytes; /* that a run needs, aligned to 64 bytes */
    const void *plan;     /* the operator's own */
} host_step;

/* NULL if there is no such operator. */
const host_op *host_find(const char *target);

/* tensors: by number, those that args may name. Raises (as a status) MERA_UNSUPPORTED for an operator, an argument or a
 * dtype that it does not have, MERA_INVALID_ARGUMENT for arguments that contradict the operator's rules. The message names
 * step, operator and argument. Nothing of the call is referred to afterwards. */
mera_status host_plan(mera_context *ctx, arena *memory, const host_call *call, int32_t tensor_count,
                      const host_tensor *tensors, host_step *step);

/* Whether all results are aliases: there is no need to run it. */
bool host_is_alias(const host_step *step);

/* tensors: by number, only step->reads are looked at; results: one buffer each, NULL where it is an alias; scratch:
 * step->scratch_bytes bytes. Buffers are aligned as malloc does and do not overlap; one of no elements may be NULL.
 * Fails only for values that the operator does not allow (an index out of range, an integer division by 0). */
mera_status host_run(mera_context *ctx, const host_step *step, const void *const *tensors, void *const *results,
                     void *scratch);

/* ---- tensors ---- */

size_t host_dtype_size(host_dtype dtype);      /* 1, 2, 4 or 8 */
const char *host_dtype_name(host_dtype dtype); /* as PyTorch's: "float32" */
bool host_dtype_find(const char *name, host_dtype *dtype);
/* Sets dtype, rank, shape; fails if there are more than 2^40 elements, a negative size or a rank above 8. */
mera_status host_tensor_init(mera_context *ctx, host_tensor *t, host_dtype dtype, int32_t rank, const int64_t *shape);
int64_t host_elements(const host_tensor *t);
static inline size_t host_bytes(const host_tensor *t) { return (size_t)host_elements(t) * host_dtype_size(t->dtype); }

#endif
