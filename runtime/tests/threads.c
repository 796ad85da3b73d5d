/* threads.c: threads CASE [RUNS]: one deployment and one runner used by many threads at once; several requests in flight
 * from one thread; callbacks. For ThreadSanitizer as well. */
#include "case.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 6, IN_FLIGHT = 5 };

typedef struct worker {
    const test_case *c;
    dna_runner *runner;
    int runs;
    bool asynchronous;
    pthread_t thread;
} worker;

static void *work(void *user)
{
    const worker *w = user;
    dna_request *request = case_request(w->c, w->runner);
    for (int i = 0; i < w->runs; i++) {
        const dna_status status = w->asynchronous ? dna_request_start(request, NULL, NULL) : dna_request_run(request);
        CHECK(status == DNA_OK, "%s", dna_request_error(request));
        CHECK(dna_request_wait(request, -1) == DNA_OK, "%s", dna_request_error(request));
        case_check_outputs(w->c, request);
    }
    dna_request_free(request);
    return NULL;
}

static void many_threads(const test_case *c, dna_target target, int runs)
{
    worker workers[THREADS];
    dna_runner *runner = case_runner(c, target, 3); /* fewer than threads, so that some wait */
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.c = c, .runner = runner, .runs = runs, .asynchronous = i % 2};
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "no thread");
    }
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(workers[i].thread, NULL) == 0, "no join");
    dna_runner_free(runner);
}

/* Runners made, used and freed by several threads on one deployment. */
static void *own_runner(void *user)
{
    const worker *w = user;
    for (int i = 0; i < w->runs; i++) {
        dna_runner *runner = case_runner(w->c, i % 2 ? DNA_TARGET_INTERPRETER_HW : DNA_TARGET_SIMULATOR, 2);
        dna_request *request = case_request(w->c, runner);
        dna_runner_free(runner); /* the request keeps what it needs */
        CHECK(dna_request_start(request, NULL, NULL) == DNA_OK, "%s", dna_request_error(request));
        CHECK(dna_request_wait(request, -1) == DNA_OK, "%s", dna_request_error(request));
        case_check_outputs(w->c, request);
        dna_request_free(request);
    }
    return NULL;
}

static void many_runners(const test_case *c, int runs)
{
    worker workers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.c = c, .runs = runs};
        CHECK(pthread_create(&workers[i].thread, NULL, own_runner, &workers[i]) == 0, "no thread");
    }
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(workers[i].thread, NULL) == 0, "no join");
}

static void count(void *user, dna_request *request, dna_status status)
{
    (void)request;
    if (status == DNA_OK) atomic_fetch_add((atomic_int *)user, 1);
}

static void in_flight(const test_case *c, dna_target target, int runs)
{
    dna_runner *runner = case_runner(c, target, 2);
    dna_request *requests[IN_FLIGHT];
    atomic_int called = 0;
    for (int i = 0; i < IN_FLIGHT; i++) requests[i] = case_request(c, runner);
    for (int run = 0; run < runs; run++) {
        for (int i = 0; i < IN_FLIGHT; i++)
            CHECK(dna_request_start(requests[i], count, &called) == DNA_OK, "%s", dna_request_error(requests[i]));
        for (int i = 0; i < IN_FLIGHT; i++) {
            CHECK(dna_request_wait(requests[i], -1) == DNA_OK, "%s", dna_request_error(requests[i]));
            CHECK(dna_request_done(requests[i]), "request %d is not done after a wait", i);
            case_check_outputs(c, requests[i]);
        }
        CHECK(atomic_load(&called) == (run + 1) * IN_FLIGHT, "%d callbacks after run %d", atomic_load(&called), run);
    }
    /* Freed while they run: freeing waits. */
    for (int i = 0; i < IN_FLIGHT; i++)
        CHECK(dna_request_start(requests[i], count, &called) == DNA_OK, "%s", dna_request_error(requests[i]));
    dna_runner_free(runner);
    for (int i = 0; i < IN_FLIGHT; i++) dna_request_free(requests[i]);
    CHECK(atomic_load(&called) == (runs + 1) * IN_FLIGHT, "%d callbacks", atomic_load(&called));
}

int main(int argc, char **argv)
{
    CHECK(argc > 1, "usage: threads CASE [RUNS]");
    const int runs = argc > 2 ? atoi(argv[2]) : 10;
    test_case c;
    case_load(&c, argv[1]);
    for (dna_target t = DNA_TARGET_INTERPRETER_HW; t <= DNA_TARGET_SIMULATOR; t++) {
        many_threads(&c, t, runs);
        in_flight(&c, t, runs);
    }
    many_runners(&c, runs / 2 + 1);
    case_free(&c);
    return 0;
}
