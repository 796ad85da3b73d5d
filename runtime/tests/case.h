/* case.h: what the tests share: a case's folder (see tests/c_deployments.py), its inputs and outputs, and checks. */
#ifndef CASE_H
#define CASE_H

#include <dna_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../examples/files.h"

enum { CASE_MAX = 16, CASE_PATH = 4096 };

/* Ends the test with a message if the condition does not hold. */
#define CHECK(condition, ...)                                                                                               \
    do {                                                                                                                    \
        if (!(condition)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                                 \
            fprintf(stderr, __VA_ARGS__);                                                                                   \
            fputc('\n', stderr);                                                                                            \
            exit(1);                                                                                                        \
        }                                                                                                                   \
    } while (0)

typedef struct test_case {
    char folder[CASE_PATH], deployment_path[CASE_PATH];
    dna_deployment *deployment;
    int32_t input_count, output_count;
    array inputs[CASE_MAX], outputs[CASE_MAX];
    double tolerance;
} test_case;

void case_load(test_case *c, const char *folder);
void case_free(test_case *c);
dna_target case_target(const char *name);
/* A runner that takes `requests` at a time. */
dna_runner *case_runner(const test_case *c, dna_target target, int32_t requests);
dna_request *case_request(const test_case *c, dna_runner *runner); /* its inputs set */
void case_set_inputs(const test_case *c, dna_request *request);
/* Ends the test if an output is not what Python computed. */
void case_check_outputs(const test_case *c, dna_request *request);

#endif
