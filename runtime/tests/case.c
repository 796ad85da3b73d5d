/* case.c: see case.h. */
#include "case.h"

#include <math.h>

static void load_arrays(const char *folder, const char *what, int32_t count, array *out)
{
    for (int32_t i = 0; i < count; i++) {
        char path[CASE_PATH + 32], error[FILES_ERROR];
        snprintf(path, sizeof path, "%s/%s_%d.npy", folder, what, (int)i);
        CHECK(read_npy(path, &out[i], error), "%s", error);
    }
}

void case_load(test_case *c, const char *folder)
{
    *c = (test_case){0};
    const int length = snprintf(c->folder, sizeof c->folder, "%s", folder);
    CHECK(length > 0 && length < CASE_PATH - 32, "the path is too long");
    memcpy(c->deployment_path, c->folder, (size_t)length);
    memcpy(c->deployment_path + length, "/deploy", sizeof "/deploy");
    dna_error error;
    CHECK(dna_deployment_load(c->deployment_path, &c->deployment, &error) == DNA_OK, "%s", error.message);
    c->input_count = dna_deployment_input_count(c->deployment);
    c->output_count = dna_deployment_output_count(c->deployment);
    CHECK(c->input_count <= CASE_MAX && c->output_count <= CASE_MAX, "%d inputs, %d outputs", c->input_count,
          c->output_count);
    load_arrays(folder, "input", c->input_count, c->inputs);
    load_arrays(folder, "output", c->output_count, c->outputs);
    char path[CASE_PATH + 32], **lines, *text, why[FILES_ERROR];
    size_t count;
    snprintf(path, sizeof path, "%s/tolerance", folder);
    CHECK(read_lines(path, &text, &lines, &count, why), "%s", why);
    CHECK(count == 1, "%s has %zu lines", path, count);
    c->tolerance = strtod(lines[0], NULL);
    free(lines);
    free(text);
}

void case_free(test_case *c)
{
    for (int32_t i = 0; i < c->input_count; i++) free(c->inputs[i].data);
    for (int32_t i = 0; i < c->output_count; i++) free(c->outputs[i].data);
    dna_deployment_free(c->deployment);
}

dna_target case_target(const char *name)
{
    for (dna_target t = DNA_TARGET_INTERPRETER_HW; t <= DNA_TARGET_IP; t++)
        if (strcmp(dna_target_name(t), name) == 0) return t;
    CHECK(false, "unknown target %s", name);
}

dna_runner *case_runner(const test_case *c, dna_target target, int32_t requests)
{
    const dna_runner_options options = {.target = target, .requests = requests};
    dna_runner *runner = NULL;
    dna_error error;
    CHECK(dna_runner_create(c->deployment, &options, &runner, &error) == DNA_OK, "%s", error.message);
    return runner;
}

void case_set_inputs(const test_case *c, dna_request *request)
{
    for (int32_t i = 0; i < c->input_count; i++) {
        const dna_status status = dna_request_set_input(request, i, c->inputs[i].data, c->inputs[i].bytes);
        CHECK(status == DNA_OK, "%s", dna_request_error(request));
    }
}

dna_request *case_request(const test_case *c, dna_runner *runner)
{
    dna_request *request = NULL;
    dna_error error;
    CHECK(dna_request_create(runner, &request, &error) == DNA_OK, "%s", error.message);
    case_set_inputs(c, request);
    return request;
}

/* The greatest difference of two float32 arrays, relative to the greatest of `want`. */
static double difference(const float *got, const float *want, size_t count)
{
    double most = 0, greatest = 0;
    for (size_t i = 0; i < count; i++) {
        const double apart = fabs((double)got[i] - (double)want[i]);
        most = apart > most || isnan(apart) ? apart : most;
        greatest = fmax(greatest, fabs((double)want[i]));
    }
    return greatest > 0 ? most / greatest : most;
}

void case_check_outputs(const test_case *c, dna_request *request)
{
    for (int32_t i = 0; i < c->output_count; i++) {
        dna_tensor_info info;
        size_t bytes = 0;
        const array *want = &c->outputs[i];
        CHECK(dna_deployment_output(c->deployment, i, &info) == DNA_OK, "output %d", i);
        CHECK(info.rank == want->rank && memcmp(info.shape, want->shape, (size_t)want->rank * sizeof *want->shape) == 0,
              "output %d has another shape", i);
        const void *got = dna_request_output_handle(request, i, &bytes);
        CHECK(bytes == want->bytes && bytes == info.bytes, "output %d has %zu bytes, not %zu", i, bytes, want->bytes);
        if (memcmp(got, want->data, bytes) == 0) continue;
        CHECK(c->tolerance > 0 && info.dtype == DNA_FLOAT32, "output %d has other bytes than Python's", i);
        const double apart = difference(got, want->data, info.elements);
        CHECK(apart <= c->tolerance, "output %d is %g away from Python's, more than %g", i, apart, c->tolerance);
    }
}
