/* info.c: what can be asked: names, numbers, the interface of a deployment. */
#include <stdio.h>

#include "deployment.h"
#include "error.h"

#define SAME(dna, mera) _Static_assert((int)(dna) == (int)(mera), #dna " is not " #mera)
SAME(DNA_OK, MERA_OK);
SAME(DNA_INVALID_ARGUMENT, MERA_INVALID_ARGUMENT);
SAME(DNA_OUT_OF_MEMORY, MERA_OUT_OF_MEMORY);
SAME(DNA_UNSUPPORTED, MERA_UNSUPPORTED);
SAME(DNA_DOES_NOT_FIT, MERA_DOES_NOT_FIT);
SAME(DNA_CORRUPT, MERA_CORRUPT);
SAME(DNA_DEADLOCK, MERA_DEADLOCK);
SAME(DNA_INTERNAL, MERA_INTERNAL);
SAME(DNA_STATE, MERA_STATE);
SAME(DNA_STORAGE, MERA_STORAGE);
SAME(DNA_DEVICE_ABSENT, MERA_DEVICE_ABSENT);
SAME(DNA_DEVICE_BUSY, MERA_DEVICE_BUSY);
SAME(DNA_DEVICE_FAULT, MERA_DEVICE_FAULT);
SAME(DNA_BOOL, MERA_HOST_BOOL);
SAME(DNA_UINT8, MERA_HOST_UINT8);
SAME(DNA_INT8, MERA_HOST_INT8);
SAME(DNA_INT16, MERA_HOST_INT16);
SAME(DNA_INT32, MERA_HOST_INT32);
SAME(DNA_INT64, MERA_HOST_INT64);
SAME(DNA_FLOAT16, MERA_HOST_FLOAT16);
SAME(DNA_BFLOAT16, MERA_HOST_BFLOAT16);
SAME(DNA_FLOAT32, MERA_HOST_FLOAT32);
SAME(DNA_FLOAT64, MERA_HOST_FLOAT64);
SAME(DNA_MAX_RANK, HOST_MAX_RANK);
#undef SAME

dna_status error_set(dna_error *error, dna_status status, const char *format, ...)
{
    if (!error) return status;
    va_list args;
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    error->status = status;
    return status;
}

/* ---- names ---- */

const char *dna_runtime_version(void) { return mera_core_version(); }

const char *dna_status_name(dna_status status)
{
    static const char *const names[] = {
        "DNA_OK",           "DNA_INVALID_ARGUMENT", "DNA_OUT_OF_MEMORY", "DNA_UNSUPPORTED",
        "DNA_DOES_NOT_FIT", "DNA_CORRUPT",          "DNA_DEADLOCK",      "DNA_INTERNAL",
        "DNA_STATE",        "DNA_STORAGE",          "DNA_DEVICE_ABSENT", "DNA_DEVICE_BUSY",
        "DNA_DEVICE_FAULT",
    };
    return (size_t)status < sizeof names / sizeof *names ? names[status] : "?";
}

const char *dna_dtype_name(dna_dtype dtype)
{
    return (unsigned)dtype <= DNA_FLOAT64 ? host_dtype_name((host_dtype)dtype) : "?";
}

size_t dna_dtype_bytes(dna_dtype dtype) { return (unsigned)dtype <= DNA_FLOAT64 ? host_dtype_size((host_dtype)dtype) : 0; }

const char *dna_target_name(dna_target target)
{
    static const char *const names[] = {"default", "InterpreterHw", "Simulator", "IP"};
    return (size_t)target < sizeof names / sizeof *names ? names[target] : "?";
}

/* ---- interface ---- */

static void describe(const dna_deployment *d, const char *name, int32_t number, const port *border, dna_tensor_info *info)
{
    const host_tensor *t = &d->types[number];
    *info =
        (dna_tensor_info){.name = name, .dtype = (dna_dtype)t->dtype, .rank = t->rank, .elements = (size_t)host_elements(t)};
    memcpy(info->shape, t->shape, (size_t)t->rank * sizeof *t->shape);
    info->bytes = host_bytes(t);
    info->quantized = border != NULL;
    info->scale = border ? border->scale : 0;
    info->zero_point = border ? border->zero_point : 0;
}

/* The port that reads the value first. */
static const port *border_of_input(const dna_deployment *d, int32_t number)
{
    for (int32_t s = 0; s < d->step_count; s++)
        for (int32_t k = 0; d->steps[s].region >= 0 && k < d->regions[d->steps[s].region].input_count; k++)
            if (d->values[d->steps[s].inputs[k]].root == number) return &d->regions[d->steps[s].region].inputs[k];
    return NULL;
}

/* The port that gives the value. */
static const port *border_of_output(const dna_deployment *d, int32_t number)
{
    const int32_t root = d->values[number].root;
    for (int32_t s = 0; s < d->step_count; s++) {
        const step *st = &d->steps[s];
        if (st->region < 0 || root < st->first_value) continue;
        if (root < st->first_value + d->regions[st->region].output_count)
            return &d->regions[st->region].outputs[root - st->first_value];
    }
    return NULL;
}

int32_t dna_deployment_input_count(const dna_deployment *d) { return d ? d->input_count : 0; }
int32_t dna_deployment_output_count(const dna_deployment *d) { return d ? d->output_count : 0; }

dna_status dna_deployment_input(const dna_deployment *d, int32_t index, dna_tensor_info *info)
{
    if (!d || !info || index < 0 || index >= d->input_count) return DNA_INVALID_ARGUMENT;
    const model_input *in = &d->inputs[d->tensor_inputs[index]];
    describe(d, in->name, in->value, border_of_input(d, in->value), info);
    return DNA_OK;
}

dna_status dna_deployment_output(const dna_deployment *d, int32_t index, dna_tensor_info *info)
{
    if (!d || !info || index < 0 || index >= d->output_count) return DNA_INVALID_ARGUMENT;
    const model_output *out = &d->outputs[index];
    if (out->value < 0) return DNA_UNSUPPORTED;
    describe(d, out->name, out->value, border_of_output(d, out->value), info);
    return DNA_OK;
}

int32_t dna_deployment_find_input(const dna_deployment *d, const char *name)
{
    for (int32_t k = 0; d && name && k < d->input_count; k++)
        if (strcmp(d->inputs[d->tensor_inputs[k]].name, name) == 0) return k;
    for (int32_t k = 0; d && name && k < d->input_count; k++) {
        const char *source = d->inputs[d->tensor_inputs[k]].source;
        if (source && strcmp(source, name) == 0) return k;
    }
    return -1;
}

int32_t dna_deployment_find_output(const dna_deployment *d, const char *name)
{
    for (int32_t k = 0; d && name && k < d->output_count; k++)
        if (strcmp(d->outputs[k].name, name) == 0) return k;
    return -1;
}

const char *dna_deployment_platform(const dna_deployment *d) { return d ? d->platform.name : ""; }
double dna_deployment_clock_mhz(const dna_deployment *d) { return d ? d->platform.clock_mhz : 0; }
dna_target dna_deployment_target(const dna_deployment *d) { return d ? d->target : DNA_TARGET_DEFAULT; }
int32_t dna_deployment_version(const dna_deployment *d) { return d ? d->version : 0; }
const char *dna_deployment_core(const dna_deployment *d) { return d ? d->core : ""; }
int32_t dna_deployment_region_count(const dna_deployment *d) { return d ? d->region_count : 0; }
int32_t dna_deployment_host_step_count(const dna_deployment *d) { return d ? d->host_step_count : 0; }
const char *dna_deployment_needs_torch(const dna_deployment *d) { return d ? d->needs_torch : NULL; }
const char *dna_deployment_explanation(const dna_deployment *d) { return d ? d->explanation : ""; }
