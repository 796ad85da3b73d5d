/* host_step.c: one step on the host as an object of mera.h: planned once, run often. */
#include "host.h"

struct mera_host_step {
    mera_object object;
    arena memory;
    host_step step;
    int32_t tensor_count;
    host_tensor *tensors;
    void *scratch;
};

static void destroy(mera_object *self)
{
    mera_host_step *step = (mera_host_step *)self;
    mera_context *ctx = step->object.ctx;
    arena_free(&step->memory);
    ctx_free(ctx, step);
}

void mera_host_step_destroy(mera_host_step *step)
{
    if (step == NULL) return;
    object_detach(&step->object);
    destroy(&step->object);
}

static mera_status plan(mera_context *ctx, mera_host_step *s, const host_call *call, int32_t tensor_count,
                        const mera_host_tensor *tensors)
{
    s->tensors = arena_array(&s->memory, (size_t)tensor_count + 1, sizeof *s->tensors);
    if (s->tensors == NULL) return out_of_memory(ctx);
    for (int32_t i = 0; i < tensor_count; i++)
        TRY(host_tensor_init(ctx, &s->tensors[i], tensors[i].dtype, tensors[i].rank, tensors[i].shape));
    s->tensor_count = tensor_count;
    TRY(host_plan(ctx, &s->memory, call, tensor_count, s->tensors, &s->step));
    s->scratch = arena_array(&s->memory, s->step.scratch_bytes + 1, 1);
    return s->scratch == NULL ? out_of_memory(ctx) : MERA_OK;
}

mera_status mera_host_step_create(mera_context *ctx, const char *target, int32_t arg_count, const mera_host_arg *args,
                                  int32_t kwarg_count, const char *const *kwarg_names, const mera_host_arg *kwargs,
                                  int32_t tensor_count, const mera_host_tensor *tensors, mera_host_step **step)
{
    const host_call call = {.name = "0",
                            .target = target,
                            .arg_count = arg_count,
                            .args = args,
                            .kwarg_count = kwarg_count,
                            .kwarg_names = kwarg_names,
                            .kwargs = kwargs};
    *step = NULL;
    if (arg_count < 0 || kwarg_count < 0 || tensor_count < 0)
        return fail(ctx, MERA_INVALID_ARGUMENT, "a number of arguments or tensors is negative");
    mera_host_step *s = ctx_alloc_zeroed(ctx, sizeof *s);
    if (s == NULL) return out_of_memory(ctx);
    arena_init(&s->memory, ctx);
    const mera_status status = plan(ctx, s, &call, tensor_count, tensors);
    if (status != MERA_OK) {
        arena_free(&s->memory);
        ctx_free(ctx, s);
        return status;
    }
    object_attach(ctx, &s->object, destroy);
    *step = s;
    return MERA_OK;
}

int32_t mera_host_step_many(const mera_host_step *step) { return step->step.many; }
int32_t mera_host_step_result_count(const mera_host_step *step) { return step->step.result_count; }

const mera_host_tensor *mera_host_step_result(const mera_host_step *step, int32_t index)
{
    return index >= 0 && index < step->step.result_count ? &step->step.results[index] : NULL;
}

int32_t mera_host_step_alias(const mera_host_step *step, int32_t index)
{
    return index >= 0 && index < step->step.result_count ? step->step.alias[index] : -1;
}

mera_status mera_host_step_run(mera_host_step *step, const void *const *tensors, void *const *results)
{
    const host_step *s = &step->step;
    TRY(host_run(step->object.ctx, s, tensors, results, step->scratch));
    for (int32_t k = 0; k < s->result_count; k++)
        if (s->alias[k] >= 0 && host_elements(&s->results[k]) > 0)
            memcpy(results[k], tensors[s->alias[k]], host_bytes(&s->results[k]));
    return MERA_OK;
}
