/* host.c: the table of the host's operators, planning and running one step, dtypes. */
#include "host.h"

#include <stdio.h>

#include "ops/binary.h"
#include "ops/ops.h"
#include "ops/unary.h"

static const host_op table[] = {
#define HOST_OP(name, schema, plan, variant, exact, note) {name, schema, plan, variant, exact, note},
#include "host_ops.def"
#undef HOST_OP
};
enum { OPS = sizeof table / sizeof *table };

const host_op *host_op_at(int32_t index) { return index >= 0 && index < OPS ? &table[index] : NULL; }

const host_op *host_find(const char *target)
{
    for (int32_t i = 0; i < OPS; i++)
        if (strcmp(table[i].name, target) == 0) return &table[i];
    return NULL;
}

/* ---- dtypes and tensors ---- */

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {{"bool", 1},  {"uint8", 1},   {"int8", 1},     {"int16", 2},   {"int32", 4},
              {"int64", 8}, {"float16", 2}, {"bfloat16", 2}, {"float32", 4}, {"float64", 8}};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

size_t host_dtype_size(host_dtype dtype) { return (unsigned)dtype < DTYPES ? dtypes[dtype].size : 0; }
const char *host_dtype_name(host_dtype dtype) { return (unsigned)dtype < DTYPES ? dtypes[dtype].name : ""; }

bool host_dtype_find(const char *name, host_dtype *dtype)
{
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0) {
            *dtype = (host_dtype)i;
            return true;
        }
    return false;
}

mera_status host_tensor_init(mera_context *ctx, host_tensor *t, host_dtype dtype, int32_t rank, const int64_t *shape)
{
    const int64_t most = INT64_C(1) << 40;
    *t = (host_tensor){.dtype = dtype, .rank = rank};
    if ((unsigned)dtype >= DTYPES) return fail(ctx, MERA_INVALID_ARGUMENT, "there is no dtype %d", (int)dtype);
    if (rank < 0 || rank > HOST_MAX_RANK)
        return fail(ctx, MERA_UNSUPPORTED, "a tensor must have 0 to %d dimensions, got %d", HOST_MAX_RANK, rank);
    int64_t elements = 1;
    for (int32_t d = 0; d < rank; d++) {
        if (shape[d] < 0) return fail(ctx, MERA_INVALID_ARGUMENT, "a size must not be negative: %lld", (long long)shape[d]);
        t->shape[d] = shape[d];
        if (shape[d] > 0 && elements > most / shape[d])
            return fail(ctx, MERA_UNSUPPORTED, "a tensor must have at most 2^40 elements");
        elements *= shape[d] > 0 ? shape[d] : 1;
    }
    return MERA_OK;
}

int64_t product(int32_t count, const int64_t *values)
{
    int64_t n = 1;
    for (int32_t i = 0; i < count; i++) n *= values[i];
    return n;
}

int64_t host_elements(const host_tensor *t) { return product(t->rank, t->shape); }

host_dtype promote(host_dtype a, host_dtype b)
{
    const host_dtype low = a < b ? a : b, high = a < b ? b : a;
    if (low == MERA_HOST_UINT8 && high == MERA_HOST_INT8) return MERA_HOST_INT16;
    if (low == MERA_HOST_FLOAT16 && high == MERA_HOST_BFLOAT16) return MERA_HOST_FLOAT32;
    return high;
}

/* ---- planning ---- */

mera_status host_refuse(host_planner *p, mera_status status, const char *format, ...)
{
    char message[256];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return fail(p->ctx, status, "step %s (%s): %s", p->name, p->op->name, message);
}

mera_status add_result(host_planner *p, host_dtype dtype, int32_t rank, const int64_t *shape)
{
    const int32_t count = p->step->result_count;
    if (count >= HOST_MAX_RESULTS)
        return host_refuse(p, MERA_UNSUPPORTED, "it has more than %d results", (int)HOST_MAX_RESULTS);
    if (count == p->result_space) {
        const int32_t space = count == 0 ? 2 : 4 * count;
        host_tensor *results = arena_array(p->memory, (size_t)space, sizeof *results);
        int32_t *alias = arena_array(p->memory, (size_t)space, sizeof *alias);
        if (results == NULL || alias == NULL) return out_of_memory(p->ctx);
        if (count > 0) {
            memcpy(results, p->results, (size_t)count * sizeof *results);
            memcpy(alias, p->alias, (size_t)count * sizeof *alias);
        }
        p->results = results;
        p->alias = alias;
        p->result_space = space;
        p->step->results = results;
        p->step->alias = alias;
    }
    const mera_status status = host_tensor_init(p->ctx, &p->results[count], dtype, rank, shape);
    if (status != MERA_OK) return host_refuse(p, status, "%s", mera_last_error(p->ctx));
    p->alias[count] = -1;
    p->step->result_count++;
    return MERA_OK;
}

mera_status add_alias(host_planner *p, int32_t number, int32_t rank, const int64_t *shape)
{
    const host_tensor *t = &p->tensors[number];
    TRY(add_result(p, t->dtype, rank, shape));
    const int32_t k = p->step->result_count - 1;
    if (host_elements(&p->results[k]) != host_elements(t))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld elements cannot have a shape of %lld",
                           (long long)host_elements(t), (long long)host_elements(&p->results[k]));
    p->alias[k] = number;
    return MERA_OK;
}

void *new_plan(host_planner *p, size_t size)
{
    void *plan = arena_array(p->memory, 1, size);
    p->step->plan = plan;
    return plan;
}

typedef struct reads {
    int32_t *at;
    int32_t count;
} reads;

static void collect(const host_arg *a, reads *found)
{
    if (a->kind == MERA_HOST_LIST)
        for (int64_t i = 0; i < a->integer; i++) collect(&a->items[i], found);
    if (a->kind != MERA_HOST_TENSOR) return;
    for (int32_t i = 0; i < found->count; i++)
        if (found->at[i] == (int32_t)a->integer) return;
    if (found->at != NULL) found->at[found->count] = (int32_t)a->integer;
    found->count++;
}

static int64_t tensor_args(const host_arg *a)
{
    int64_t n = a->kind == MERA_HOST_TENSOR;
    if (a->kind == MERA_HOST_LIST)
        for (int64_t i = 0; i < a->integer; i++) n += tensor_args(&a->items[i]);
    return n;
}

static mera_status find_reads(host_planner *p)
{
    int64_t most = 0;
    for (int32_t i = 0; i < p->step->arg_count; i++) most += tensor_args(&p->step->args[i]);
    reads found = {.at = arena_array(p->memory, (size_t)most + 1, sizeof *found.at)};
    if (found.at == NULL) return out_of_memory(p->ctx);
    for (int32_t i = 0; i < p->step->arg_count; i++) collect(&p->step->args[i], &found);
    p->step->reads = found.at;
    p->step->read_count = found.count;
    return MERA_OK;
}

mera_status host_plan(mera_context *ctx, arena *memory, const host_call *call, int32_t tensor_count,
                      const host_tensor *tensors, host_step *step)
{
    const host_op *op = host_find(call->target);
    if (op == NULL)
        return fail(ctx, MERA_UNSUPPORTED, "step %s: operator %s does not run on the host without PyTorch", call->name,
                    call->target);
    *step = (host_step){.op = op, .name = arena_string(memory, call->name)};
    if (step->name == NULL) return out_of_memory(ctx);
    host_planner p = {.ctx = ctx,
                      .memory = memory,
                      .op = op,
                      .variant = op->variant,
                      .name = step->name,
                      .tensors = tensors,
                      .step = step};
    TRY(host_bind(&p, call, tensor_count));
    TRY(find_reads(&p));
    return op->plan(&p);
}

bool host_is_alias(const host_step *step)
{
    for (int32_t k = 0; k < step->result_count; k++)
        if (step->alias[k] < 0) return false;
    return true;
}

mera_status host_run(mera_context *ctx, const host_step *step, const void *const *tensors, void *const *results,
                     void *scratch)
{
    if (step->run == NULL) return MERA_OK;
    const host_frame frame = {.ctx = ctx, .step = step, .tensors = tensors, .results = results, .scratch = scratch};
    return step->run(&frame);
}

/* ---- reflection ---- */

int32_t mera_host_op_count(void) { return OPS; }
const char *mera_host_op_name(int32_t op) { return host_op_at(op) ? table[op].name : ""; }
const char *mera_host_op_schema(int32_t op) { return host_op_at(op) ? table[op].schema : ""; }
int32_t mera_host_op_exact(int32_t op) { return host_op_at(op) ? table[op].exact : 0; }
const char *mera_host_op_note(int32_t op) { return host_op_at(op) ? table[op].note : ""; }
