/* same_bytes.c: same_bytes TARGET CASE...: the outputs are those that Python computed, in each way of running. */
#include "case.h"

static void through_handles(const test_case *c, dna_runner *runner)
{
    dna_request *request = NULL;
    dna_error error;
    CHECK(dna_request_create(runner, &request, &error) == DNA_OK, "%s", error.message);
    for (int32_t i = 0; i < c->input_count; i++) {
        size_t bytes = 0;
        void *memory = dna_request_input_handle(request, i, &bytes);
        CHECK(memory && bytes == c->inputs[i].bytes, "input %d has %zu bytes", i, bytes);
        CHECK((uintptr_t)memory % 64 == 0, "input %d is at %p", i, memory);
        memcpy(memory, c->inputs[i].data, bytes);
    }
    CHECK(dna_request_run(request) == DNA_OK, "%s", dna_request_error(request));
    case_check_outputs(c, request);
    dna_request_free(request);
}

static void through_copies(const test_case *c, dna_runner *runner)
{
    dna_request *request = case_request(c, runner);
    for (int run = 0; run < 2; run++) { /* a second run starts from what the first one left */
        CHECK(dna_request_start(request, NULL, NULL) == DNA_OK, "%s", dna_request_error(request));
        CHECK(dna_request_wait(request, -1) == DNA_OK, "%s", dna_request_error(request));
        case_check_outputs(c, request);
    }
    for (int32_t i = 0; i < c->output_count; i++) {
        void *copy = malloc(c->outputs[i].bytes);
        CHECK(copy, "out of memory");
        CHECK(dna_request_get_output(request, i, copy, c->outputs[i].bytes) == DNA_OK, "%s", dna_request_error(request));
        CHECK(memcmp(copy, dna_request_output_handle(request, i, NULL), c->outputs[i].bytes) == 0, "output %d", i);
        free(copy);
    }
    dna_request_free(request);
}

int main(int argc, char **argv)
{
    CHECK(argc > 2, "usage: same_bytes TARGET CASE...");
    const dna_target target = case_target(argv[1]);
    for (int i = 2; i < argc; i++) {
        test_case c;
        case_load(&c, argv[i]);
        dna_runner *runner = case_runner(&c, target, 0);
        through_handles(&c, runner);
        through_copies(&c, runner);
        dna_runner_free(runner);
        case_free(&c);
        printf("%s: same bytes%s\n", argv[i], c.tolerance > 0 ? ", or within tolerance" : "");
    }
    return 0;
}
