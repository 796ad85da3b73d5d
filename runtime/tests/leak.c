/* leak.c: leak CASE RUNS: memory does not grow over many runs, nor over many deployments, runners and requests. */
#include "case.h"

#include <unistd.h>

static long resident_kb(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long pages = 0, resident = 0;
    CHECK(file && fscanf(file, "%ld %ld", &pages, &resident) == 2, "/proc/self/statm cannot be read");
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void run_often(const test_case *c, dna_target target, int runs)
{
    dna_runner *runner = case_runner(c, target, 2);
    dna_request *request = case_request(c, runner);
    long before = 0;
    for (int i = 0; i < runs; i++) {
        if (i == runs / 5) before = resident_kb(); /* by then every buffer is touched */
        const dna_status status = i % 2 ? dna_request_run(request) : dna_request_start(request, NULL, NULL);
        CHECK(status == DNA_OK && dna_request_wait(request, -1) == DNA_OK, "%s", dna_request_error(request));
    }
    case_check_outputs(c, request);
    const long grown = resident_kb() - before;
    CHECK(grown <= 256, "%d runs on %s took %ld KB more", runs, dna_target_name(target), grown);
    printf("%s: %d runs, %ld KB more\n", dna_target_name(target), runs, grown);
    dna_request_free(request);
    dna_runner_free(runner);
}

static void load_often(const test_case *c, int loads)
{
    long before = 0;
    for (int i = 0; i < loads; i++) {
        if (i == loads / 2) before = resident_kb();
        dna_deployment *deployment = NULL;
        dna_runner *runner = NULL;
        dna_error error;
        CHECK(dna_deployment_load(c->deployment_path, &deployment, &error) == DNA_OK, "%s", error.message);
        CHECK(dna_runner_create(deployment, NULL, &runner, &error) == DNA_OK, "%s", error.message);
        dna_request *request = case_request(c, runner);
        CHECK(dna_request_run(request) == DNA_OK, "%s", dna_request_error(request));
        dna_deployment_free(deployment);
        dna_runner_free(runner);
        dna_request_free(request);
    }
    const long grown = resident_kb() - before;
    CHECK(grown <= 512, "%d loads took %ld KB more", loads, grown);
    printf("%d loads, %ld KB more\n", loads, grown);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3, "usage: leak CASE RUNS");
    const int runs = atoi(argv[2]);
    CHECK(runs >= 10, "at least 10 runs");
    test_case c;
    case_load(&c, argv[1]);
    run_often(&c, DNA_TARGET_SIMULATOR, runs);
    run_often(&c, DNA_TARGET_INTERPRETER_HW, runs);
    load_often(&c, runs / 5 + 4);
    case_free(&c);
    return 0;
}
