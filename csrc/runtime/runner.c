/* runner.c: a deployment on a target: what requests share. See session.h. */
#include "error.h"
#include "session.h"

enum { DEFAULT_TIMEOUT_MS = 10000, MAX_DEVICES = 256 };

static mera_status check_options(mera_context *ctx, const dna_deployment *d, const dna_runner_options *given,
                                 dna_runner_options *o)
{
    *o = given ? *given : (dna_runner_options){0};
    if (o->target == DNA_TARGET_DEFAULT) o->target = d->target;
    if (o->requests == 0) o->requests = 1;
    if (o->timeout_ms == 0) o->timeout_ms = DEFAULT_TIMEOUT_MS;
    if ((unsigned)o->target > DNA_TARGET_IP)
        return fail(ctx, MERA_INVALID_ARGUMENT, "there is no target %d", (int)o->target);
    if (o->requests < 1 || o->requests > POOL_MOST_THREADS)
        return fail(ctx, MERA_INVALID_ARGUMENT, "requests must be 0 to %d, got %d", POOL_MOST_THREADS, o->requests);
    if (o->timeout_ms < 0) return fail(ctx, MERA_INVALID_ARGUMENT, "timeout_ms must be 0 or more, got %d", o->timeout_ms);
    if (o->threads == 0) o->threads = ctx_threads(ctx) / o->requests > 0 ? ctx_threads(ctx) / o->requests : 1;
    return mera_context_threads(ctx, o->threads);
}

static mera_status make_engine(dna_runner *r, int32_t k)
{
    shared_engine *e = &r->engines[k];
    switch (r->target) {
    case DNA_TARGET_INTERPRETER_HW:
        return interpreter_create_on(r->ctx, r->deployment->regions[k].graph, NULL, &e->plans);
    case DNA_TARGET_SIMULATOR:
        return deployment_timing(r->deployment, r->ctx, k, &e->timing);
    default:
        return deployment_program(r->deployment, r->ctx, k, &e->program);
    }
}

/* ---- devices ---- */

static mera_status open_device(dna_runner *r, const char *address)
{
    const int32_t regions = r->deployment->region_count, number = r->device_count;
    const device_options options = {.timeout_ms = r->options.timeout_ms};
    TRY(device_open(r->ctx, address, &options, &r->devices[number]));
    r->device_count++;
    for (int32_t k = 0; k < regions; k++)
        TRY(device_load(r->ctx, r->devices[number], r->engines[k].program, &r->slots[number * regions + k]));
    return MERA_OK;
}

static mera_status open_devices(dna_runner *r, const dna_runner_options *given)
{
    const int32_t count = given && given->device_count ? given->device_count : 1;
    if (count < 1 || count > MAX_DEVICES)
        return fail(r->ctx, MERA_INVALID_ARGUMENT, "device_count must be 0 to %d, got %d", MAX_DEVICES, count);
    r->devices = ctx_alloc_zeroed(r->ctx, (size_t)count * sizeof *r->devices);
    r->slots = ctx_alloc_zeroed(r->ctx, (size_t)count * ((size_t)r->deployment->region_count + 1) * sizeof *r->slots);
    if (!r->devices || !r->slots) return out_of_memory(r->ctx);
    if (!given || !given->device_count) return open_device(r, NULL);
    for (int32_t k = 0; k < count; k++) {
        if (!given->devices || !given->devices[k])
            return fail(r->ctx, MERA_INVALID_ARGUMENT, "device_count is %d, and the address of device %d is NULL", count, k);
        TRY(open_device(r, given->devices[k]));
    }
    return MERA_OK;
}

static void close_devices(dna_runner *r)
{
    for (int32_t k = 0; k < r->device_count; k++) device_close(r->devices[k]);
    ctx_free(r->ctx, r->devices);
    ctx_free(r->ctx, r->slots);
}

/* ---- all ---- */

static mera_status create(dna_runner *r, const dna_runner_options *options)
{
    const dna_deployment *d = r->deployment;
    if (d->needs_torch) return fail(r->ctx, MERA_UNSUPPORTED, "%s", d->needs_torch);
    r->engines = ctx_alloc_zeroed(r->ctx, ((size_t)d->region_count + 1) * sizeof *r->engines);
    if (!r->engines) return out_of_memory(r->ctx);
    TRY(check_options(r->ctx, d, options, &r->options));
    r->target = r->options.target;
    r->options.devices = NULL; /* the caller's */
    for (int32_t k = 0; k < d->region_count; k++) TRY(make_engine(r, k));
    return r->target == DNA_TARGET_IP && !r->executor ? open_devices(r, options) : MERA_OK;
}

static void destroy(dna_runner *r)
{
    mera_context *ctx = r->ctx;
    pool_free(&r->pool);
    close_devices(r);
    ctx_free(ctx, r->engines);
    dna_deployment *d = r->deployment;
    ctx_free(ctx, r);
    mera_context_destroy(ctx); /* engines with it; they read graphs and programs of the deployment */
    dna_deployment_free(d);
}

dna_status runner_open(dna_deployment *d, const dna_runner_options *options, runner_executor executor, void *user,
                       int64_t fail_after, dna_runner **out, dna_error *error)
{
    if (!d || !out) return error_set(error, DNA_INVALID_ARGUMENT, "the deployment or the runner to fill is NULL");
    *out = NULL;
    mera_context *ctx = mera_context_create(fail_after);
    dna_runner *r = ctx ? ctx_alloc_zeroed(ctx, sizeof *r) : NULL;
    if (!r) {
        mera_context_destroy(ctx);
        return error_set(error, DNA_OUT_OF_MEMORY, "out of memory: no runner");
    }
    r->ctx = ctx;
    r->deployment = d;
    r->executor = executor;
    r->user = user;
    deployment_keep(d);
    atomic_init(&r->users, 1);
    const mera_status status = create(r, options);
    pool_init(&r->pool, status == MERA_OK ? r->options.requests : 1);
    if (status == MERA_OK) {
        *out = r;
        return error_set(error, DNA_OK, "%s", "");
    }
    error_set(error, (dna_status)status, "%s", mera_last_error(ctx));
    destroy(r);
    return (dna_status)status;
}

dna_status dna_runner_create(dna_deployment *d, const dna_runner_options *options, dna_runner **runner, dna_error *error)
{
    return runner_open(d, options, NULL, NULL, -1, runner, error);
}

void runner_keep(dna_runner *r) { atomic_fetch_add(&r->users, 1); }

void dna_runner_free(dna_runner *r)
{
    if (r && atomic_fetch_sub(&r->users, 1) == 1) destroy(r);
}

dna_target dna_runner_target(const dna_runner *r) { return r ? r->target : DNA_TARGET_DEFAULT; }
int64_t dna_runner_request_bytes(const dna_runner *r) { return r ? r->deployment->request_bytes : 0; }
