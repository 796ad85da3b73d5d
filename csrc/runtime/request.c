/* request.c: the memory of one inference, and the calls on it. See session.h. */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "../placement.h"
#include "error.h"
#include "session.h"

static dna_status request_fail(dna_request *q, dna_status status, const char *format, ...) MERA_PRINTF(3, 4);

static dna_status request_fail(dna_request *q, dna_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(q->error, sizeof q->error, format, args);
    va_end(args);
    return status;
}

/* ---- making ---- */

static mera_status make_memory(dna_request *q)
{
    const dna_deployment *d = q->runner->deployment;
    const size_t regions = (size_t)d->region_count + 1;
    size_t ins = 1, outs = 1;
    for (int32_t k = 0; k < d->region_count; k++) {
        if ((size_t)d->regions[k].input_count > ins) ins = (size_t)d->regions[k].input_count;
        if ((size_t)d->regions[k].result_count > outs) outs = (size_t)d->regions[k].result_count;
    }
    /* Zeroed: outputs are zero before the first run. Pages that no run touches cost nothing. */
    q->block = ctx_alloc_zeroed(q->ctx, (size_t)d->request_bytes + PLACEMENT_ALIGN);
    q->pointers = ctx_alloc_zeroed(q->ctx, ((size_t)d->value_count + 1) * sizeof *q->pointers);
    q->engines = ctx_alloc_zeroed(q->ctx, regions * sizeof *q->engines);
    q->regions = ctx_alloc_zeroed(q->ctx, regions * sizeof *q->regions);
    q->given = ctx_alloc_zeroed(q->ctx, (size_t)d->input_count + 1);
    q->dna_inputs = ctx_alloc_zeroed(q->ctx, ins * sizeof *q->dna_inputs);
    q->dna_input_bytes = ctx_alloc_zeroed(q->ctx, ins * sizeof *q->dna_input_bytes);
    q->dna_outputs = ctx_alloc_zeroed(q->ctx, outs * sizeof *q->dna_outputs);
    if (!q->block || !q->pointers || !q->engines || !q->regions || !q->given || !q->dna_inputs || !q->dna_input_bytes ||
        !q->dna_outputs)
        return out_of_memory(q->ctx);
    q->memory = q->block + (PLACEMENT_ALIGN - (uintptr_t)q->block % PLACEMENT_ALIGN) % PLACEMENT_ALIGN;
    for (int32_t v = 0; v < d->value_count; v++) {
        const value *root = &d->values[d->values[v].root];
        q->pointers[v] = root->place == PLACE_CONSTANT ? root->data : q->memory + root->offset;
    }
    return MERA_OK;
}

static mera_status make_engines(dna_request *q)
{
    const dna_runner *r = q->runner;
    TRY(mera_context_threads(q->ctx, r->options.threads));
    for (int32_t k = 0; k < r->deployment->region_count; k++) {
        request_engine *e = &q->engines[k];
        if (r->target == DNA_TARGET_INTERPRETER_HW)
            TRY(interpreter_create_on(q->ctx, r->deployment->regions[k].graph, r->engines[k].plans, &e->interpreter));
        else if (r->target == DNA_TARGET_SIMULATOR)
            TRY(simulator_share(q->ctx, r->engines[k].timing, &e->simulator));
    }
    return MERA_OK;
}

static void run_job(pool_job *job);

static void destroy(dna_request *q)
{
    mera_context *ctx = q->ctx;
    dna_runner *r = q->runner;
    void *const owned[] = {q->block,      q->pointers,        q->engines,     q->regions, q->given,
                           q->dna_inputs, q->dna_input_bytes, q->dna_outputs, q};
    pthread_cond_destroy(&q->done);
    pthread_mutex_destroy(&q->lock);
    for (size_t k = 0; k < sizeof owned / sizeof *owned; k++) ctx_free(ctx, owned[k]);
    mera_context_destroy(ctx); /* engines with it */
    dna_runner_free(r);
}

static void init_locks(dna_request *q)
{
    pthread_condattr_t attributes;
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&q->done, &attributes);
    pthread_condattr_destroy(&attributes);
}

dna_status request_open(dna_runner *runner, int64_t fail_after, dna_request **out, dna_error *error)
{
    if (!runner || !out) return error_set(error, DNA_INVALID_ARGUMENT, "the runner or the request to fill is NULL");
    *out = NULL;
    mera_context *ctx = mera_context_create(fail_after);
    dna_request *q = ctx ? ctx_alloc_zeroed(ctx, sizeof *q) : NULL;
    if (!q) {
        mera_context_destroy(ctx);
        return error_set(error, DNA_OUT_OF_MEMORY, "out of memory: no request");
    }
    q->ctx = ctx;
    q->runner = runner;
    q->job.run = run_job;
    if (runner->device_count > 0) q->device = (int32_t)(atomic_fetch_add(&runner->turn, 1) % (unsigned)runner->device_count);
    runner_keep(runner);
    init_locks(q);
    mera_status status = make_memory(q);
    if (status == MERA_OK) status = make_engines(q);
    if (status == MERA_OK) {
        *out = q;
        return error_set(error, DNA_OK, "%s", "");
    }
    error_set(error, (dna_status)status, "%s", mera_last_error(ctx));
    destroy(q);
    return (dna_status)status;
}

dna_status dna_request_create(dna_runner *runner, dna_request **request, dna_error *error)
{
    return request_open(runner, -1, request, error);
}

void dna_request_free(dna_request *q)
{
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    while (q->running) pthread_cond_wait(&q->done, &q->lock);
    pthread_mutex_unlock(&q->lock);
    destroy(q);
}

const char *dna_request_error(const dna_request *q) { return q ? q->error : "there is no request"; }

/* ---- inputs and outputs ---- */

void *dna_request_input_handle(dna_request *q, int32_t index, size_t *bytes)
{
    if (!q || index < 0 || index >= q->runner->deployment->input_count) return NULL;
    const dna_deployment *d = q->runner->deployment;
    const int32_t v = tensor_input(d, index)->value;
    q->given[index] = true;
    if (bytes) *bytes = value_bytes(d, v);
    return q->memory + d->values[v].offset;
}

const void *dna_request_output_handle(const dna_request *q, int32_t index, size_t *bytes)
{
    if (!q || index < 0 || index >= q->runner->deployment->output_count) return NULL;
    const model_output *out = &q->runner->deployment->outputs[index];
    if (bytes) *bytes = value_bytes(q->runner->deployment, out->value);
    return q->memory + out->offset;
}

static bool is_running(const dna_request *q)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&q->lock;
    pthread_mutex_lock(lock);
    const bool running = q->running;
    pthread_mutex_unlock(lock);
    return running;
}

static dna_status check_copy(dna_request *q, const char *what, const char *name, int32_t index, size_t want,
                             const void *data, size_t bytes)
{
    if (is_running(q))
        return request_fail(q, DNA_STATE, "%s %d ('%.100s'): the request is running; wait for it", what, index, name);
    if (!data) return request_fail(q, DNA_INVALID_ARGUMENT, "%s %d ('%.100s'): the data is NULL", what, index, name);
    if (bytes != want)
        return request_fail(q, DNA_INVALID_ARGUMENT, "%s %d ('%.100s') has %zu bytes, got %zu", what, index, name, want,
                            bytes);
    return DNA_OK;
}

dna_status dna_request_set_input(dna_request *q, int32_t index, const void *data, size_t bytes)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    const dna_deployment *d = q->runner->deployment;
    if (index < 0 || index >= d->input_count)
        return request_fail(q, DNA_INVALID_ARGUMENT, "there is no input %d, the model has %d", index, d->input_count);
    const model_input *in = tensor_input(d, index);
    const dna_status status = check_copy(q, "input", in->name, index, value_bytes(d, in->value), data, bytes);
    if (status != DNA_OK) return status;
    memcpy(dna_request_input_handle(q, index, NULL), data, bytes);
    return DNA_OK;
}

dna_status dna_request_get_output(dna_request *q, int32_t index, void *data, size_t bytes)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    const dna_deployment *d = q->runner->deployment;
    if (index < 0 || index >= d->output_count)
        return request_fail(q, DNA_INVALID_ARGUMENT, "there is no output %d, the model has %d", index, d->output_count);
    const model_output *out = &d->outputs[index];
    const dna_status status = check_copy(q, "output", out->name, index, value_bytes(d, out->value), data, bytes);
    if (status != DNA_OK) return status;
    if (!q->ever_succeeded)
        return request_fail(q, DNA_STATE, "output %d ('%.100s'): no run has succeeded yet; run the request first", index,
                            out->name);
    memcpy(data, q->memory + out->offset, bytes);
    return DNA_OK;
}

/* ---- running ---- */

/* Takes the request for a run. */
static dna_status begin(dna_request *q)
{
    const dna_deployment *d = q->runner->deployment;
    for (int32_t k = 0; k < d->input_count; k++)
        if (!q->given[k])
            return request_fail(q, DNA_STATE, "input %d ('%.100s') was not set; set it before the run", k,
                                tensor_input(d, k)->name);
    pthread_mutex_lock(&q->lock);
    const bool busy = q->running;
    q->running = true;
    pthread_mutex_unlock(&q->lock);
    return busy ? request_fail(q, DNA_STATE, "the request is running; wait for it") : DNA_OK;
}

static void end(dna_request *q, dna_status status, bool ran)
{
    pthread_mutex_lock(&q->lock);
    q->running = false;
    q->status = status;
    q->ever_ran = q->ever_ran || ran;
    q->ever_succeeded = q->ever_succeeded || (ran && status == DNA_OK);
    pthread_cond_broadcast(&q->done);
    pthread_mutex_unlock(&q->lock);
}

static void run_job(pool_job *job)
{
    dna_request *q = (dna_request *)job;
    const dna_status status = (dna_status)request_execute(q);
    if (q->callback) q->callback(q->user, q, status);
    end(q, status, true);
}

dna_status dna_request_run(dna_request *q)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    dna_status status = begin(q);
    if (status != DNA_OK) return status;
    status = (dna_status)request_execute(q);
    end(q, status, true);
    return status == DNA_OK ? DNA_OK : request_fail(q, status, "%s", mera_last_error(q->ctx));
}

dna_status dna_request_start(dna_request *q, dna_callback callback, void *user)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    const dna_status status = begin(q);
    if (status != DNA_OK) return status;
    q->callback = callback;
    q->user = user;
    const int error = pool_submit(&q->runner->pool, &q->job);
    if (error == 0) return DNA_OK;
    end(q, q->status, false);
    return request_fail(q, DNA_OUT_OF_MEMORY, "no thread can be made for the run: %s", strerror(error));
}

int32_t dna_request_done(const dna_request *q) { return !q || !is_running(q); }

static struct timespec deadline(int64_t timeout_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const int64_t most = (int64_t)1000 * 60 * 60 * 24 * 365;
    const int64_t ms = min_i64(timeout_ms, most), nanoseconds = t.tv_nsec + ms % 1000 * 1000000;
    t.tv_sec += (time_t)(ms / 1000 + nanoseconds / 1000000000);
    t.tv_nsec = (long)(nanoseconds % 1000000000);
    return t;
}

dna_status dna_request_wait(dna_request *q, int64_t timeout_ms)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    const struct timespec until = deadline(timeout_ms < 0 ? 0 : timeout_ms);
    int error = 0;
    pthread_mutex_lock(&q->lock);
    while (q->running && error != ETIMEDOUT)
        error = timeout_ms < 0 ? pthread_cond_wait(&q->done, &q->lock) : pthread_cond_timedwait(&q->done, &q->lock, &until);
    const bool running = q->running, ever_ran = q->ever_ran;
    const dna_status status = q->status;
    pthread_mutex_unlock(&q->lock);
    if (running) return request_fail(q, DNA_STATE, "the run is not over after %lld ms", (long long)timeout_ms);
    if (!ever_ran) return request_fail(q, DNA_STATE, "there is nothing to wait for: the request was never run");
    return status == DNA_OK ? DNA_OK : request_fail(q, status, "%s", mera_last_error(q->ctx));
}

/* ---- metrics ---- */

static dna_status check_metrics(dna_request *q, const dna_metrics *metrics)
{
    if (!metrics) return request_fail(q, DNA_INVALID_ARGUMENT, "the metrics to fill are NULL");
    if (is_running(q)) return request_fail(q, DNA_STATE, "metrics: the request is running; wait for it");
    if (!q->ever_succeeded) return request_fail(q, DNA_STATE, "metrics: no run has succeeded yet; run the request first");
    return DNA_OK;
}

dna_status dna_request_metrics(dna_request *q, dna_metrics *metrics)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    const dna_status status = check_metrics(q, metrics);
    if (status == DNA_OK) *metrics = q->total;
    return status;
}

dna_status dna_request_region_metrics(dna_request *q, int32_t region, dna_metrics *metrics)
{
    if (!q) return DNA_INVALID_ARGUMENT;
    const dna_status status = check_metrics(q, metrics);
    if (status != DNA_OK) return status;
    if (region < 0 || region >= q->runner->deployment->region_count)
        return request_fail(q, DNA_INVALID_ARGUMENT, "there is no region %d", region);
    *metrics = q->regions[region];
    return DNA_OK;
}
