/* errors.c: errors CASE SCRATCH: every wrong call is refused with a status and a sentence, and nothing is broken by it.
 * SCRATCH is a folder that may be written to. */
#include "case.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

static void refused(dna_status status, dna_status want, const char *message, const char *what)
{
    CHECK(status == want, "%s: %s (%s), not %s", what, dna_status_name(status), message, dna_status_name(want));
    CHECK(message[0] != '\0', "%s: there is no message", what);
}

/* ---- loading ---- */

static void load_refused(const char *folder, dna_status want, const char *what)
{
    dna_deployment *deployment = NULL;
    dna_error error;
    const dna_status status = dna_deployment_load(folder, &deployment, &error);
    CHECK(status == error.status && !deployment, "%s: %s", what, error.message);
    refused(status, want, error.message, what);
    CHECK(dna_deployment_load(folder, &deployment, NULL) == want && !deployment, "%s: without an error", what);
}

static void write_file(const char *to, const uint8_t *data, size_t bytes)
{
    FILE *file = fopen(to, "wb");
    CHECK(file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0, "%s cannot be written", to);
}

typedef struct copied_file {
    char from[CASE_PATH], to[CASE_PATH];
    uint8_t *data;
    size_t bytes;
} copied_file;

enum { MAX_FILES = 32 };

static int copy_folder(const test_case *c, const char *scratch, copied_file *files)
{
    DIR *folder = opendir(c->deployment_path);
    CHECK(folder, "%s cannot be read", c->deployment_path);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        CHECK(count < MAX_FILES, "too many files");
        copied_file *f = &files[count++];
        char error[FILES_ERROR];
        CHECK((size_t)snprintf(f->from, sizeof f->from, "%s/%s", c->deployment_path, entry->d_name) < sizeof f->from,
              "path");
        CHECK((size_t)snprintf(f->to, sizeof f->to, "%s/%s", scratch, entry->d_name) < sizeof f->to, "path");
        CHECK(read_file(f->from, &f->data, &f->bytes, error), "%s", error);
        write_file(f->to, f->data, f->bytes);
    }
    closedir(folder);
    return count;
}

/* Whether the manifest seals the file: its name is a key there. */
static bool is_sealed(const copied_file *f, const copied_file *files, int count)
{
    const char *name = strrchr(f->to, '/') + 1;
    const size_t length = strlen(name);
    for (int i = 0; i < count; i++) {
        if (!strstr(files[i].to, "/deployment.json")) continue;
        for (size_t k = 0; k + length + 3 <= files[i].bytes; k++) {
            const char *at = (const char *)files[i].data + k;
            if (at[0] == '"' && memcmp(at + 1, name, length) == 0 && at[length + 1] == '"' && at[length + 2] == ':')
                return true;
        }
    }
    return false;
}

static bool is_manifest(const copied_file *f) { return strstr(f->to, "/deployment.json") != NULL; }

/* Each file in turn missing, empty, cut short, and with a byte altered at several places. */
static void damaged_files(const test_case *c, const char *scratch)
{
    static copied_file files[MAX_FILES];
    const int count = copy_folder(c, scratch, files);
    dna_deployment *whole = NULL;
    CHECK(dna_deployment_load(scratch, &whole, NULL) == DNA_OK, "the copy does not load");
    dna_deployment_free(whole);
    int damaged = 0;
    for (int i = 0; i < count; i++) {
        const copied_file *f = &files[i];
        if (!is_manifest(f) && !is_sealed(f, files, count)) continue;
        damaged++;
        CHECK(unlink(f->to) == 0, "%s", f->to);
        load_refused(scratch, is_manifest(f) ? DNA_INVALID_ARGUMENT : DNA_CORRUPT, f->to);
        write_file(f->to, f->data, 0);
        load_refused(scratch, DNA_CORRUPT, f->to);
        write_file(f->to, f->data, f->bytes / 2);
        load_refused(scratch, DNA_CORRUPT, f->to);
        for (size_t k = 0; k < 16; k++) {
            const size_t at = k * (f->bytes - 2) / 15; /* the manifest ends with a line's end that is not sealed */
            f->data[at] ^= 0x15;
            write_file(f->to, f->data, f->bytes);
            load_refused(scratch, DNA_CORRUPT, f->to);
            f->data[at] ^= 0x15;
        }
        write_file(f->to, f->data, f->bytes);
    }
    CHECK(damaged >= 5, "only %d files are sealed", damaged); /* manifest, constants, graph, program, explanation */
    CHECK(dna_deployment_load(scratch, &whole, NULL) == DNA_OK, "the copy does not load again");
    dna_deployment_free(whole);
    for (int i = 0; i < count; i++) {
        unlink(files[i].to);
        free(files[i].data);
    }
    load_refused(scratch, DNA_INVALID_ARGUMENT, "an empty folder");
}

/* ---- runners ---- */

static void runner_refused(const test_case *c, dna_runner_options options, dna_status want, const char *what)
{
    dna_runner *runner = NULL;
    dna_error error;
    refused(dna_runner_create(c->deployment, &options, &runner, &error), want, error.message, what);
    CHECK(!runner, "%s: there is a runner", what);
}

static void wrong_runners(const test_case *c)
{
    const char *nowhere[] = {"emulated:4711"}, *nonsense[] = {"nonsense"};
    runner_refused(c, (dna_runner_options){.target = (dna_target)17}, DNA_INVALID_ARGUMENT, "an unknown target");
    runner_refused(c, (dna_runner_options){.requests = -1}, DNA_INVALID_ARGUMENT, "requests = -1");
    runner_refused(c, (dna_runner_options){.requests = 65}, DNA_INVALID_ARGUMENT, "requests = 65");
    runner_refused(c, (dna_runner_options){.threads = -1}, DNA_INVALID_ARGUMENT, "threads = -1");
    runner_refused(c, (dna_runner_options){.target = DNA_TARGET_IP, .timeout_ms = -1}, DNA_INVALID_ARGUMENT, "timeout");
    runner_refused(c, (dna_runner_options){.target = DNA_TARGET_IP, .device_count = 1, .devices = nowhere},
                   DNA_DEVICE_ABSENT, "a device that is not there");
    runner_refused(c, (dna_runner_options){.target = DNA_TARGET_IP, .device_count = 1, .devices = nonsense},
                   DNA_INVALID_ARGUMENT, "an address that is none");
}

static void wrong_indices(const test_case *c)
{
    dna_tensor_info info;
    for (int32_t index = -1; index <= c->input_count; index += c->input_count + 1)
        CHECK(dna_deployment_input(c->deployment, index, &info) == DNA_INVALID_ARGUMENT, "input %d", (int)index);
    for (int32_t index = -1; index <= c->output_count; index += c->output_count + 1)
        CHECK(dna_deployment_output(c->deployment, index, &info) == DNA_INVALID_ARGUMENT, "output %d", (int)index);
    CHECK(dna_deployment_find_input(c->deployment, "no such name") == -1, "an input without a name");
    CHECK(dna_deployment_find_output(c->deployment, "") == -1, "an output without a name");
    for (int32_t i = 0; i < c->input_count; i++) {
        CHECK(dna_deployment_input(c->deployment, i, &info) == DNA_OK, "input %d", (int)i);
        CHECK(dna_deployment_find_input(c->deployment, info.name) == i, "input %s", info.name);
    }
}

/* ---- requests ---- */

static void calls_out_of_order(const test_case *c, dna_runner *runner)
{
    dna_request *request = NULL;
    dna_metrics metrics;
    CHECK(dna_request_create(runner, &request, NULL) == DNA_OK, "no request");
    CHECK(dna_request_error(request)[0] == '\0', "a new request has an error");
    refused(dna_request_run(request), DNA_STATE, dna_request_error(request), "a run without inputs");
    refused(dna_request_start(request, NULL, NULL), DNA_STATE, dna_request_error(request), "a start without inputs");
    refused(dna_request_wait(request, 0), DNA_STATE, dna_request_error(request), "a wait for nothing");
    refused(dna_request_metrics(request, &metrics), DNA_STATE, dna_request_error(request), "metrics of nothing");
    void *copy = malloc(c->outputs[0].bytes);
    CHECK(copy, "out of memory");
    refused(dna_request_get_output(request, 0, copy, c->outputs[0].bytes), DNA_STATE, dna_request_error(request),
            "an output of nothing");
    free(copy);
    case_set_inputs(c, request);
    CHECK(dna_request_run(request) == DNA_OK, "%s", dna_request_error(request));
    case_check_outputs(c, request);
    dna_request_free(request);
}

static void wrong_sizes(const test_case *c, dna_runner *runner)
{
    dna_request *request = case_request(c, runner);
    const array *x = &c->inputs[0], *y = &c->outputs[0];
    uint8_t *memory = malloc(x->bytes + y->bytes + 1);
    CHECK(memory, "out of memory");
    const struct {
        int32_t index;
        size_t bytes;
    } wrong[] = {{-1, x->bytes}, {c->input_count, x->bytes}, {0, 0}, {0, x->bytes - 1}, {0, x->bytes + 1}, {INT32_MAX, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refused(dna_request_set_input(request, wrong[i].index, memory, wrong[i].bytes), DNA_INVALID_ARGUMENT,
                dna_request_error(request), "set_input");
    refused(dna_request_set_input(request, 0, NULL, x->bytes), DNA_INVALID_ARGUMENT, dna_request_error(request), "NULL");
    CHECK(!dna_request_input_handle(request, -1, NULL) && !dna_request_input_handle(request, c->input_count, NULL),
          "handle");
    CHECK(!dna_request_output_handle(request, -1, NULL) && !dna_request_output_handle(request, c->output_count, NULL),
          "handle");
    CHECK(dna_request_run(request) == DNA_OK, "%s", dna_request_error(request));
    refused(dna_request_get_output(request, 0, memory, y->bytes - 1), DNA_INVALID_ARGUMENT, dna_request_error(request),
            "get");
    refused(dna_request_get_output(request, c->output_count, memory, y->bytes), DNA_INVALID_ARGUMENT,
            dna_request_error(request), "get");
    refused(dna_request_get_output(request, 0, NULL, y->bytes), DNA_INVALID_ARGUMENT, dna_request_error(request),
            "get NULL");
    dna_metrics metrics;
    const int32_t regions = dna_deployment_region_count(c->deployment);
    refused(dna_request_region_metrics(request, regions, &metrics), DNA_INVALID_ARGUMENT, dna_request_error(request),
            "region");
    case_check_outputs(c, request);
    free(memory);
    dna_request_free(request);
}

/* A callback that holds its request in flight until it is let go. */
typedef struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool open;
} gate;

static void wait_at(void *user, dna_request *request, dna_status status)
{
    gate *g = user;
    (void)request;
    CHECK(status == DNA_OK, "%s", dna_status_name(status));
    pthread_mutex_lock(&g->mutex);
    while (!g->open) pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
}

static void open_gate(gate *g)
{
    pthread_mutex_lock(&g->mutex);
    g->open = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

static void calls_in_flight(const test_case *c, dna_runner *runner)
{
    dna_request *request = case_request(c, runner);
    gate g = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    CHECK(dna_request_start(request, wait_at, &g) == DNA_OK, "%s", dna_request_error(request));
    CHECK(!dna_request_done(request), "done while the callback waits");
    refused(dna_request_wait(request, 0), DNA_STATE, dna_request_error(request), "a wait of 0 ms");
    refused(dna_request_wait(request, 30), DNA_STATE, dna_request_error(request), "a wait of 30 ms");
    CHECK(!dna_request_done(request), "done after a wait that ran out");
    refused(dna_request_start(request, NULL, NULL), DNA_STATE, dna_request_error(request), "a second start");
    refused(dna_request_run(request), DNA_STATE, dna_request_error(request), "a run in flight");
    refused(dna_request_set_input(request, 0, c->inputs[0].data, c->inputs[0].bytes), DNA_STATE, dna_request_error(request),
            "set_input in flight");
    void *copy = malloc(c->outputs[0].bytes);
    CHECK(copy, "out of memory");
    refused(dna_request_get_output(request, 0, copy, c->outputs[0].bytes), DNA_STATE, dna_request_error(request),
            "get_output in flight");
    free(copy);
    open_gate(&g);
    CHECK(dna_request_wait(request, 60000) == DNA_OK, "%s", dna_request_error(request));
    CHECK(dna_request_wait(request, -1) == DNA_OK && dna_request_done(request), "a second wait");
    case_check_outputs(c, request);
    dna_request_free(request);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3, "usage: errors CASE SCRATCH");
    test_case c;
    case_load(&c, argv[1]);
    CHECK(mkdir(argv[2], 0777) == 0 || access(argv[2], W_OK) == 0, "%s cannot be written", argv[2]);
    dna_deployment_free(NULL);
    dna_runner_free(NULL);
    dna_request_free(NULL);
    load_refused("/nowhere/at/all", DNA_INVALID_ARGUMENT, "a folder that is not there");
    load_refused("", DNA_INVALID_ARGUMENT, "an empty path");
    load_refused(NULL, DNA_INVALID_ARGUMENT, "no path");
    load_refused(argv[0], DNA_INVALID_ARGUMENT, "a file");
    damaged_files(&c, argv[2]);
    wrong_runners(&c);
    wrong_indices(&c);
    dna_runner *runner = case_runner(&c, DNA_TARGET_DEFAULT, 2);
    calls_out_of_order(&c, runner);
    wrong_sizes(&c, runner);
    calls_in_flight(&c, runner);
    dna_runner_free(runner);
    case_free(&c);
    return 0;
}
