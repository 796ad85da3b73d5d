/* runtime.c: the C runtime under sanitizers; see tools/sanitize.sh.
 *
 *   runtime run FOLDER...                     every target, many threads, started requests: equal bytes everywhere
 *   runtime errors FOLDER                     calls out of order and out of range
 *   runtime allocations FOLDER...             every allocation fails once
 *   runtime fuzz SEED FIRST RUNS WORK FOLDER... altered files, loaded and run; WORK is a folder for them */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../runtime/inner.h"
#include "../runtime/sha256.h"

enum { THREADS = 4, ROUNDS = 3, MOST_FILES = 64 };
#define MOST_RUN_BYTES ((int64_t)64 << 20)

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t below(uint64_t *state, uint64_t limit) { return limit ? next_random(state) % limit : 0; }

static void die(const char *what, const char *detail)
{
    fprintf(stderr, "runtime: %s: %s\n", what, detail);
    exit(1);
}

static void must(dna_status status, const char *what, const char *message)
{
    if (status != DNA_OK) die(what, message);
}

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) die("harness", "out of memory");
    return memory;
}

/* ---- inference ---- */

static void fill_inputs(const dna_deployment *d, dna_request *q, uint64_t seed)
{
    for (int32_t k = 0; k < dna_deployment_input_count(d); k++) {
        dna_tensor_info info;
        size_t bytes;
        must(dna_deployment_input(d, k, &info), "input", "");
        uint8_t *at = dna_request_input_handle(q, k, &bytes);
        if (!at || bytes != info.bytes) die("input", "its handle does not match its description");
        if (info.dtype == DNA_FLOAT32)
            for (size_t i = 0; i < info.elements; i++)
                ((float *)at)[i] = (float)((int64_t)below(&seed, 2001) - 1000) / 400.0f;
        else if (info.dtype == DNA_FLOAT64)
            for (size_t i = 0; i < info.elements; i++) ((double *)at)[i] = (double)below(&seed, 100) / 50.0;
        else
            for (size_t i = 0; i < bytes; i++)
                at[i] = (uint8_t)(info.dtype == DNA_INT8 || info.dtype == DNA_UINT8 ? next_random(&seed) : 0);
    }
}

/* All outputs, one behind the other; the caller frees them. */
static uint8_t *outputs_of(const dna_deployment *d, dna_request *q, size_t *total)
{
    *total = 0;
    for (int32_t k = 0; k < dna_deployment_output_count(d); k++) {
        size_t bytes = 0;
        if (!dna_request_output_handle(q, k, &bytes)) die("output", "it has no handle");
        *total += bytes;
    }
    uint8_t *all = allocate(*total), *at = all;
    for (int32_t k = 0; k < dna_deployment_output_count(d); k++) {
        size_t bytes;
        const void *from = dna_request_output_handle(q, k, &bytes);
        if (bytes) memcpy(at, from, bytes);
        at += bytes;
    }
    return all;
}

static void expect(const dna_deployment *d, dna_request *q, const uint8_t *wanted, size_t bytes, const char *what)
{
    size_t found_bytes;
    uint8_t *found = outputs_of(d, q, &found_bytes);
    if (found_bytes != bytes || memcmp(found, wanted, bytes) != 0) die(what, "its outputs are not those of InterpreterHw");
    free(found);
}

typedef struct job {
    dna_runner *runner;
    const dna_deployment *deployment;
    uint64_t seed;
    const uint8_t *wanted;
    size_t bytes;
} job;

static void *run_thread(void *user)
{
    const job *j = user;
    dna_request *q;
    dna_error error;
    must(dna_request_create(j->runner, &q, &error), "request", error.message);
    fill_inputs(j->deployment, q, j->seed);
    for (int round = 0; round < ROUNDS; round++) must(dna_request_run(q), "run", dna_request_error(q));
    expect(j->deployment, q, j->wanted, j->bytes, "a thread");
    dna_request_free(q);
    return NULL;
}

static void count_call(void *user, dna_request *q, dna_status status)
{
    (void)q;
    must(status, "callback", "the run failed");
    __atomic_fetch_add((int *)user, 1, __ATOMIC_SEQ_CST);
}

static void run_together(dna_runner *runner, const dna_deployment *d, uint8_t *const *wanted, size_t bytes)
{
    pthread_t threads[THREADS];
    job jobs[THREADS];
    dna_request *requests[THREADS];
    dna_error error;
    int called = 0;
    for (int t = 0; t < THREADS; t++) {
        jobs[t] = (job){runner, d, (uint64_t)t, wanted[t], bytes};
        if (pthread_create(&threads[t], NULL, run_thread, &jobs[t]) != 0) die("harness", "no thread");
    }
    for (int t = 0; t < THREADS; t++) {
        must(dna_request_create(runner, &requests[t], &error), "request", error.message);
        fill_inputs(d, requests[t], (uint64_t)t);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int t = 0; t < THREADS; t++)
            must(dna_request_start(requests[t], count_call, &called), "start", dna_request_error(requests[t]));
        for (int t = 0; t < THREADS; t++) must(dna_request_wait(requests[t], -1), "wait", dna_request_error(requests[t]));
    }
    if (__atomic_load_n(&called, __ATOMIC_SEQ_CST) != THREADS * ROUNDS) die("callback", "it was not called once a run");
    for (int t = 0; t < THREADS; t++) expect(d, requests[t], wanted[t], bytes, "a started request");
    for (int t = 0; t < THREADS; t++) {
        if (t % 2) must(dna_request_start(requests[t], NULL, NULL), "start", ""); /* freed while it runs */
        dna_request_free(requests[t]);
    }
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
}

static void run_folder(const char *path)
{
    dna_deployment *d;
    dna_error error;
    uint8_t *wanted[THREADS];
    size_t bytes = 0;
    must(dna_deployment_load(path, &d, &error), path, error.message);
    for (int target = DNA_TARGET_INTERPRETER_HW; target <= DNA_TARGET_SIMULATOR; target++) {
        const dna_runner_options options = {.target = (dna_target)target, .requests = 2, .threads = 1};
        dna_runner *runner;
        dna_request *q;
        must(dna_runner_create(d, &options, &runner, &error), path, error.message);
        must(dna_request_create(runner, &q, &error), path, error.message);
        for (int t = 0; t < THREADS; t++) {
            fill_inputs(d, q, (uint64_t)t);
            must(dna_request_run(q), path, dna_request_error(q));
            if (target == DNA_TARGET_INTERPRETER_HW)
                wanted[t] = outputs_of(d, q, &bytes);
            else
                expect(d, q, wanted[t], bytes, path);
        }
        dna_request_free(q);
        run_together(runner, d, wanted, bytes);
        dna_runner_free(runner);
    }
    for (int t = 0; t < THREADS; t++) free(wanted[t]);
    dna_deployment_free(d);
    printf("%s: InterpreterHw = Simulator, %d threads, %d started requests\n", path, THREADS, THREADS * ROUNDS);
}

/* ---- errors ---- */

static void want(dna_status found, dna_status wanted, const char *what)
{
    if (found != wanted) {
        char text[128];
        snprintf(text, sizeof text, "%s instead of %s", dna_status_name(found), dna_status_name(wanted));
        die(what, text);
    }
}

static void errors_folder(const char *path)
{
    dna_deployment *d = NULL;
    dna_runner *r = NULL;
    dna_request *q = NULL;
    dna_error error;
    dna_tensor_info info;
    dna_metrics metrics;
    char byte = 0;
    want(dna_deployment_load(NULL, &d, &error), DNA_INVALID_ARGUMENT, "no path");
    want(dna_deployment_load("/nowhere at all", &d, &error), DNA_INVALID_ARGUMENT, "no folder");
    want(dna_deployment_load("/", &d, NULL), DNA_INVALID_ARGUMENT, "no deployment");
    must(dna_deployment_load(path, &d, &error), path, error.message);
    want(dna_deployment_input(d, -1, &info), DNA_INVALID_ARGUMENT, "input -1");
    want(dna_deployment_output(d, 1000, &info), DNA_INVALID_ARGUMENT, "output 1000");
    want(dna_runner_create(d, &(dna_runner_options){.requests = 65}, &r, &error), DNA_INVALID_ARGUMENT, "65 requests");
    want(dna_runner_create(d, &(dna_runner_options){.target = (dna_target)9}, &r, &error), DNA_INVALID_ARGUMENT, "target 9");
    want(dna_runner_create(d, &(dna_runner_options){.threads = -1}, &r, &error), DNA_INVALID_ARGUMENT, "-1 threads");
    must(dna_runner_create(d, NULL, &r, &error), path, error.message);
    dna_deployment_free(d); /* the runner keeps it */
    must(dna_request_create(r, &q, &error), path, error.message);
    dna_runner_free(r);
    want(dna_request_run(q), DNA_STATE, "run before inputs");
    want(dna_request_start(q, NULL, NULL), DNA_STATE, "start before inputs");
    want(dna_request_wait(q, -1), DNA_STATE, "wait before start");
    want(dna_request_metrics(q, &metrics), DNA_STATE, "metrics before run");
    want(dna_request_set_input(q, 0, &byte, 1), DNA_INVALID_ARGUMENT, "wrong bytes");
    want(dna_request_set_input(q, 99, &byte, 1), DNA_INVALID_ARGUMENT, "input 99");
    fill_inputs(d, q, 1);
    size_t bytes;
    if (dna_request_output_handle(q, 99, &bytes) || dna_request_input_handle(q, -1, NULL)) die("handle", "of no index");
    dna_request_output_handle(q, 0, &bytes);
    uint8_t *out = allocate(bytes);
    want(dna_request_get_output(q, 0, out, bytes), DNA_STATE, "output before run");
    must(dna_request_start(q, NULL, NULL), "start", dna_request_error(q));
    while (dna_request_wait(q, 1) == DNA_STATE) want(dna_request_done(q), 0, "done");
    want(dna_request_get_output(q, 0, out, bytes + 1), DNA_INVALID_ARGUMENT, "wrong bytes");
    must(dna_request_get_output(q, 0, out, bytes), "output", dna_request_error(q));
    must(dna_request_metrics(q, &metrics), "metrics", dna_request_error(q));
    want(dna_request_region_metrics(q, 9999, &metrics), DNA_INVALID_ARGUMENT, "region 9999");
    free(out);
    dna_request_free(q);
    dna_request_free(NULL), dna_runner_free(NULL), dna_deployment_free(NULL);
    printf("%s: errors\n", path);
}

/* ---- allocations ---- */

/* Everything that allocates, with one context that fails at allocation n; how far it came. */
static dna_status whole_life(const char *path, const int64_t fail_after[3], dna_error *error)
{
    dna_deployment *d = NULL;
    dna_runner *r = NULL;
    dna_request *q = NULL;
    dna_status status = deployment_open(path, fail_after[0], 0, &d, error);
    if (status == DNA_OK) status = runner_open(d, NULL, NULL, NULL, fail_after[1], &r, error);
    if (status == DNA_OK) status = request_open(r, fail_after[2], &q, error);
    if (status == DNA_OK) {
        fill_inputs(d, q, 1);
        status = dna_request_run(q);
        if (status != DNA_OK) snprintf(error->message, sizeof error->message, "%s", dna_request_error(q));
    }
    dna_deployment_free(d);
    dna_request_free(q);
    dna_runner_free(r);
    return status;
}

static void allocations_folder(const char *path)
{
    int64_t total = 0;
    for (int which = 0; which < 3; which++) {
        dna_status status = DNA_OUT_OF_MEMORY;
        for (int64_t n = 0; status == DNA_OUT_OF_MEMORY; n++, total++) {
            int64_t fail_after[3] = {-1, -1, -1};
            dna_error error = {DNA_OK, ""};
            fail_after[which] = n;
            status = whole_life(path, fail_after, &error);
            if (status != DNA_OK && status != DNA_OUT_OF_MEMORY) die(path, error.message);
            if (status != DNA_OK && !error.message[0]) die(path, "a failure without a message");
        }
    }
    printf("%s: %" PRId64 " allocations failed one by one\n", path, total - 3);
}

/* ---- fuzz ---- */

typedef struct file {
    char name[256];
    uint8_t *at;
    size_t bytes;
} file;

typedef struct folder {
    file files[MOST_FILES];
    int count, manifest;
} folder;

static file read_whole(const char *path, const char *name)
{
    char full[4096];
    file f = {.at = NULL};
    snprintf(f.name, sizeof f.name, "%s", name);
    snprintf(full, sizeof full, "%s/%s", path, name);
    FILE *in = fopen(full, "rb");
    if (!in || fseek(in, 0, SEEK_END) != 0) die("cannot read", full);
    f.bytes = (size_t)ftell(in);
    rewind(in);
    f.at = allocate(f.bytes + 1);
    if (fread(f.at, 1, f.bytes, in) != f.bytes) die("cannot read", full);
    fclose(in);
    f.at[f.bytes] = 0;
    return f;
}

static folder read_folder(const char *path)
{
    folder all = {.count = 0, .manifest = -1};
    DIR *dir = opendir(path);
    if (!dir) die("cannot read", path);
    for (struct dirent *entry; (entry = readdir(dir)) && all.count < MOST_FILES;) {
        if (entry->d_name[0] == '.') continue;
        if (strcmp(entry->d_name, "deployment.json") == 0) all.manifest = all.count;
        all.files[all.count++] = read_whole(path, entry->d_name);
    }
    closedir(dir);
    if (all.manifest < 0) die(path, "it has no deployment.json");
    return all;
}

static void write_whole(const char *path, const file *f)
{
    char full[4096];
    snprintf(full, sizeof full, "%s/%s", path, f->name);
    FILE *out = fopen(full, "wb");
    if (!out || fwrite(f->at, 1, f->bytes, out) != f->bytes || fclose(out) != 0) die("cannot write", full);
}

static void splice(file *f, size_t at, size_t cut, const uint8_t *with, size_t bytes)
{
    uint8_t *joined = allocate(f->bytes - cut + bytes + 1);
    memcpy(joined, f->at, at);
    if (bytes) memcpy(joined + at, with, bytes);
    memcpy(joined + at + bytes, f->at + at + cut, f->bytes - at - cut);
    f->bytes += bytes - cut;
    joined[f->bytes] = 0;
    free(f->at);
    f->at = joined;
}

/* Puts another value into a number or a word of JSON near a random place. */
static void mutate_json(file *f, uint64_t *random)
{
    static const char *const values[] = {"0",
                                         "-1",
                                         "1",
                                         "2",
                                         "7",
                                         "2147483647",
                                         "2147483648",
                                         "-9223372036854775808",
                                         "9223372036854775807",
                                         "1e308",
                                         "1e-320",
                                         "0.5",
                                         "[]",
                                         "{}",
                                         "null",
                                         "true",
                                         "\"x\"",
                                         "[[]]",
                                         "[0,0]",
                                         "{\"ref\": \"input_1\"}",
                                         "{\"float\": \"nan\"}",
                                         "{\"torch\": \"int64\"}",
                                         "\"aten.cat.default\"",
                                         "\"getitem\"",
                                         "\"region_0\"",
                                         "4096"};
    size_t at = below(random, f->bytes);
    while (at < f->bytes && !strchr("0123456789-\"", f->at[at])) at++;
    if (at >= f->bytes) return;
    size_t end = at + 1;
    if (f->at[at] == '"')
        while (end < f->bytes && f->at[end++] != '"') {
        }
    else
        while (end < f->bytes && strchr("0123456789.e-+", f->at[end])) end++;
    const char *value = values[below(random, sizeof values / sizeof *values)];
    splice(f, at, end - at, (const uint8_t *)value, strlen(value));
}

static void mutate_bytes(file *f, const file *other, uint64_t *random)
{
    const size_t at = below(random, f->bytes), left = f->bytes - at, piece = below(random, 1 + below(random, 200));
    switch (below(random, 5)) {
    case 0:
        f->at[at] ^= (uint8_t)(1u << below(random, 8));
        break;
    case 1:
        splice(f, at, left, NULL, 0);
        break;
    case 2:
        splice(f, at, piece < left ? piece : left, NULL, 0);
        break;
    case 3: {
        const size_t from = below(random, other->bytes), most = other->bytes - from;
        splice(f, at, 0, other->at + from, piece < most ? piece : most);
        break;
    }
    default:
        f->at[at] = (uint8_t)next_random(random);
        break;
    }
}

/* The digest that stands for that file in the manifest becomes right again. */
static void reseal(file *manifest, const file *f)
{
    char key[300];
    snprintf(key, sizeof key, "\"%s\": \"", f->name);
    char *at = strstr((char *)manifest->at, key);
    char hex[SHA256_HEX + 1];
    if (!at || strlen(at) < strlen(key) + SHA256_HEX) return;
    sha256_hex(f->at, f->bytes, hex);
    memcpy(at + strlen(key), hex, SHA256_HEX);
}

static void reseal_manifest(file *m)
{
    const size_t head = strlen("{\"sha256\": \"") + SHA256_HEX + strlen("\", \"deployment\": ");
    char hex[SHA256_HEX + 1];
    if (m->bytes < head + 2) return;
    size_t end = m->bytes;
    while (end > 0 && m->at[end - 1] != '}') end--;
    if (end < head + 1) return;
    sha256_hex(m->at + head, end - 1 - head, hex);
    memcpy(m->at + strlen("{\"sha256\": \""), hex, SHA256_HEX);
}

static int try_folder(const char *path)
{
    dna_deployment *d = NULL;
    dna_error error = {DNA_OK, ""};
    const dna_status status = dna_deployment_load(path, &d, &error);
    if (status != DNA_OK) {
        if (status == DNA_INTERNAL || !error.message[0]) die("a failure without a sentence", error.message);
        return (int)status;
    }
    dna_tensor_info info;
    for (int32_t k = 0; k < dna_deployment_output_count(d); k++) (void)dna_deployment_output(d, k, &info);
    for (int target = DNA_TARGET_INTERPRETER_HW; target <= DNA_TARGET_SIMULATOR; target++) {
        dna_runner *r = NULL;
        dna_request *q = NULL;
        if (dna_runner_create(d, &(dna_runner_options){.target = (dna_target)target, .threads = 1}, &r, &error) == DNA_OK &&
            dna_runner_request_bytes(r) < MOST_RUN_BYTES && dna_request_create(r, &q, &error) == DNA_OK) {
            fill_inputs(d, q, 1);
            if (dna_request_run(q) != DNA_OK && !dna_request_error(q)[0]) die(path, "a failure without a message");
        }
        dna_request_free(q);
        dna_runner_free(r);
    }
    dna_deployment_free(d);
    return 0;
}

static int fuzz_one(const folder *from, const char *work, uint64_t random)
{
    const int which = below(&random, 2) ? from->manifest : (int)below(&random, (uint64_t)from->count);
    file f = from->files[which], m = from->files[from->manifest];
    f.at = allocate(f.bytes + 1), m.at = allocate(m.bytes + 1);
    memcpy(f.at, from->files[which].at, f.bytes + 1);
    memcpy(m.at, from->files[from->manifest].at, m.bytes + 1);
    const file *other = &from->files[below(&random, (uint64_t)from->count)];
    for (uint64_t n = 1 + below(&random, 3); n && f.bytes; n--) {
        if (which == from->manifest && below(&random, 4))
            mutate_json(&f, &random);
        else
            mutate_bytes(&f, other->bytes ? other : &f, &random);
    }
    if (which == from->manifest) {
        reseal_manifest(&f);
        write_whole(work, &f);
    } else {
        reseal(&m, &f);
        reseal_manifest(&m);
        write_whole(work, &f);
        write_whole(work, &m);
    }
    const int status = try_folder(work);
    write_whole(work, &from->files[which]);
    write_whole(work, &from->files[from->manifest]);
    free(f.at);
    free(m.at);
    return status;
}

static void fuzz(uint64_t seed, uint64_t first, uint64_t runs, const char *work, int count, char **paths)
{
    uint64_t accepted = 0;
    for (int p = 0; p < count; p++) {
        char place[4096];
        snprintf(place, sizeof place, "%s/%d", work, p);
        if (mkdir(place, 0700) != 0 && errno != EEXIST) die("cannot make", place);
        folder from = read_folder(paths[p]);
        for (int k = 0; k < from.count; k++) write_whole(place, &from.files[k]);
        if (try_folder(place) != 0) die(place, "the folder itself cannot be read");
        for (uint64_t n = first; n < first + runs; n++)
            accepted += fuzz_one(&from, place, seed * 1000003 + n * 7919 + (uint64_t)p) == 0;
        for (int k = 0; k < from.count; k++) free(from.files[k].at);
    }
    printf("%" PRIu64 " altered folders of each of %d, %" PRIu64 " of all were run\n", runs, count, accepted);
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strcmp(argv[1], "run") == 0)
        for (int k = 2; k < argc; k++) run_folder(argv[k]);
    else if (argc == 3 && strcmp(argv[1], "errors") == 0)
        errors_folder(argv[2]);
    else if (argc >= 3 && strcmp(argv[1], "allocations") == 0)
        for (int k = 2; k < argc; k++) allocations_folder(argv[k]);
    else if (argc >= 7 && strcmp(argv[1], "fuzz") == 0)
        fuzz(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), argv[5], argc - 6,
             argv + 6);
    else
        die("usage", "run FOLDER... | errors FOLDER | allocations FOLDER... | fuzz SEED FIRST RUNS WORK FOLDER...");
    return 0;
}
