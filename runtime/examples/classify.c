/* classify.c: runs a deployment on a picture or array, and prints the best classes and the latency.
 *
 *     classify deploy picture.ppm --labels labels.txt --resize 256 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
 *
 * Exit status: 0 if it ran, 1 if something failed (one sentence on standard error), 2 if it was called wrongly. */
#include <dna_runtime.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "files.h"
#include "preprocess.h"

enum { MAX_DEVICES = 16, MAX_REQUESTS = 64, MAX_REPEAT = 100000000, MAX_TOP = 1000 };

typedef struct arguments {
    const char *folder, *labels;
    char **inputs;
    int input_count;
    long repeat, requests, top, output;
    dna_target target;
    const char *devices[MAX_DEVICES];
    int device_count;
    preprocessing preprocess;
} arguments;

static const char usage[] =
    "usage: classify DEPLOYMENT INPUT... [options]\n"
    "INPUT is a file for each input of the network: .ppm or .pgm (a picture), .npy (an array), else raw bytes.\n"
    "  --target NAME      InterpreterHw, Simulator or IP (default: the one that was exported for)\n"
    "  --device ADDRESS   a device for IP, as \"emulated:0\"; may be given several times\n"
    "  --repeat N         number of inferences (1)\n"
    "  --threads N        requests in flight at the same time, 1 to 64 (1)\n"
    "  --labels FILE      names of the classes, one a line\n"
    "  --top N            classes to print (5)\n"
    "  --output N         the output that holds the scores (0)\n"
    "  --resize N         pictures: shrink the shorter side to N, then cut out the center\n"
    "  --mean A[,B,C]     pictures: a channel's value v of 0 to 255 becomes (v / 255 - mean) / std (0)\n"
    "  --std A[,B,C]      (1)\n"
    "  --layout NAME      pictures: NCHW or NHWC, where the shape leaves it open\n"
    "  --bgr              pictures: blue first\n"
    "  --help, --version\n";

static _Noreturn void wrong_use(const char *what, const char *value)
{
    fprintf(stderr, "classify: %s %s; see classify --help\n", what, value);
    exit(2);
}

/* ---- arguments ---- */

static long number(const char *option, const char *text, long low, long high)
{
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high) {
        fprintf(stderr, "classify: %s must be %ld to %ld, got %s; see classify --help\n", option, low, high, text);
        exit(2);
    }
    return value;
}

/* "0.5" or "0.485,0.456,0.406" */
static void channels(const char *option, const char *text, bool positive, float out[3])
{
    int count = 0;
    for (const char *at = text;;) {
        char *end;
        const float value = strtof(at, &end);
        if (end == at || count == 3 || !isfinite(value) || (positive && value <= 0)) wrong_use(option, text);
        out[count++] = value;
        at = end + 1;
        if (*end == '\0') break;
        if (*end != ',') wrong_use(option, text);
    }
    if (count == 2) wrong_use(option, text);
    if (count == 1) out[1] = out[2] = out[0];
}

static dna_target target_named(const char *name)
{
    for (dna_target t = DNA_TARGET_INTERPRETER_HW; t <= DNA_TARGET_IP; t++)
        if (strcmp(dna_target_name(t), name) == 0) return t;
    wrong_use("unknown target", name);
}

static layout layout_named(const char *name)
{
    if (strcmp(name, "NCHW") == 0) return LAYOUT_NCHW;
    if (strcmp(name, "NHWC") == 0) return LAYOUT_NHWC;
    wrong_use("unknown layout", name);
}

static void add_device(arguments *a, const char *address)
{
    if (a->device_count == MAX_DEVICES) wrong_use("there are too many devices at", address);
    a->devices[a->device_count++] = address;
    a->target = DNA_TARGET_IP;
}

static arguments parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"target", required_argument, NULL, 't'},
        {"device", required_argument, NULL, 'd'},
        {"repeat", required_argument, NULL, 'n'},
        {"threads", required_argument, NULL, 'j'},
        {"labels", required_argument, NULL, 'l'},
        {"top", required_argument, NULL, 'k'},
        {"output", required_argument, NULL, 'o'},
        {"resize", required_argument, NULL, 'r'},
        {"mean", required_argument, NULL, 'm'},
        {"std", required_argument, NULL, 's'},
        {"layout", required_argument, NULL, 'y'},
        {"bgr", no_argument, NULL, 'b'},
        {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a = {.repeat = 1, .requests = 1, .top = 5, .preprocess = {.std = {1, 1, 1}}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 't':
            a.target = target_named(optarg);
            break;
        case 'd':
            add_device(&a, optarg);
            break;
        case 'n':
            a.repeat = number("--repeat", optarg, 1, MAX_REPEAT);
            break;
        case 'j':
            a.requests = number("--threads", optarg, 1, MAX_REQUESTS);
            break;
        case 'l':
            a.labels = optarg;
            break;
        case 'k':
            a.top = number("--top", optarg, 1, MAX_TOP);
            break;
        case 'o':
            a.output = number("--output", optarg, 0, INT32_MAX);
            break;
        case 'r':
            a.preprocess.resize = (int32_t)number("--resize", optarg, 1, 65535);
            break;
        case 'm':
            channels("--mean cannot be", optarg, false, a.preprocess.mean);
            break;
        case 's':
            channels("--std cannot be", optarg, true, a.preprocess.std);
            break;
        case 'y':
            a.preprocess.layout = layout_named(optarg);
            break;
        case 'b':
            a.preprocess.bgr = true;
            break;
        case 'v':
            printf("classify %s\n", dna_runtime_version());
            exit(0);
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            exit(2); /* getopt said why */
        }
    }
    if (argc - optind < 2) {
        fputs(usage, stderr);
        exit(2);
    }
    if (a.device_count && a.target != DNA_TARGET_IP)
        wrong_use("--device goes with --target IP, not", dna_target_name(a.target));
    a.folder = argv[optind];
    a.inputs = argv + optind + 1;
    a.input_count = argc - optind - 1;
    return a;
}

/* ---- running ---- */

/* All that is to be freed, so that each failure is one return. */
typedef struct session {
    dna_deployment *deployment;
    dna_runner *runner;
    dna_request *requests[MAX_REQUESTS];
    double *wall_ms; /* one an inference */
    double total_ms;
    char *label_text, **labels;
    size_t label_count;
} session;

static bool failed(const char *message)
{
    fprintf(stderr, "classify: %s\n", message);
    return false;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* The files are read once; the other requests get copies. */
static bool fill_inputs(const arguments *a, const session *s)
{
    char error[FILES_ERROR];
    for (int i = 0; i < a->input_count; i++) {
        dna_tensor_info info;
        if (dna_deployment_input(s->deployment, i, &info) != DNA_OK) return failed("the network has no such input");
        void *first = dna_request_input_handle(s->requests[0], i, NULL);
        if (!load_input(a->inputs[i], &info, &a->preprocess, first, error)) return failed(error);
        for (long r = 1; r < a->requests; r++)
            if (dna_request_set_input(s->requests[r], i, first, info.bytes) != DNA_OK)
                return failed(dna_request_error(s->requests[r]));
    }
    return true;
}

static bool prepare(const arguments *a, session *s)
{
    dna_error error;
    if (dna_deployment_load(a->folder, &s->deployment, &error) != DNA_OK) return failed(error.message);
    const int32_t inputs = dna_deployment_input_count(s->deployment), outputs = dna_deployment_output_count(s->deployment);
    char sentence[128];
    snprintf(sentence, sizeof sentence, "the network has %d inputs, got %d files", (int)inputs, a->input_count);
    if (inputs != a->input_count) return failed(sentence);
    snprintf(sentence, sizeof sentence, "--output %ld: the network has outputs 0 to %d", a->output, (int)outputs - 1);
    if (a->output >= outputs) return failed(sentence);
    const dna_runner_options options = {
        .target = a->target, .requests = (int32_t)a->requests, .device_count = a->device_count, .devices = a->devices};
    if (dna_runner_create(s->deployment, &options, &s->runner, &error) != DNA_OK) return failed(error.message);
    for (long r = 0; r < a->requests; r++)
        if (dna_request_create(s->runner, &s->requests[r], &error) != DNA_OK) return failed(error.message);
    char why[FILES_ERROR];
    if (a->labels && !read_lines(a->labels, &s->label_text, &s->labels, &s->label_count, why)) return failed(why);
    s->wall_ms = calloc((size_t)a->repeat, sizeof *s->wall_ms);
    if (!s->wall_ms) return failed("out of memory");
    return fill_inputs(a, s);
}

static bool collect(dna_request *request, double *wall_ms)
{
    dna_metrics metrics;
    if (dna_request_wait(request, -1) != DNA_OK || dna_request_metrics(request, &metrics) != DNA_OK)
        return failed(dna_request_error(request));
    *wall_ms = metrics.wall_ms;
    return true;
}

/* Keeps every request in flight: each is started again as soon as its turn to be waited for is over. */
static bool run(const arguments *a, session *s)
{
    const double start = now_ms();
    for (long done = 0, started = 0; done < a->repeat; done++) {
        for (; started < a->repeat && started < done + a->requests; started++) {
            dna_request *request = s->requests[started % a->requests];
            if (dna_request_start(request, NULL, NULL) != DNA_OK) return failed(dna_request_error(request));
        }
        if (!collect(s->requests[done % a->requests], &s->wall_ms[done])) return false;
    }
    s->total_ms = now_ms() - start;
    return true;
}

/* ---- results ---- */

static double float16_value(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                                       : ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
}

static double element(dna_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case DNA_FLOAT32:
        return (double)((const float *)data)[i];
    case DNA_FLOAT64:
        return ((const double *)data)[i];
    case DNA_INT8:
        return ((const int8_t *)data)[i];
    case DNA_UINT8:
    case DNA_BOOL:
        return ((const uint8_t *)data)[i];
    case DNA_INT16:
        return ((const int16_t *)data)[i];
    case DNA_INT32:
        return ((const int32_t *)data)[i];
    case DNA_INT64:
        return (double)((const int64_t *)data)[i];
    case DNA_FLOAT16:
        return float16_value(((const uint16_t *)data)[i]);
    case DNA_BFLOAT16: {
        const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return (double)value;
    }
    }
    return NAN;
}

/* The `top` best of classes `from` to `from + count`, by repeated search: top is small. */
static void print_best(const arguments *a, const session *s, const dna_tensor_info *info, const void *data, size_t from,
                       size_t count)
{
    double before = INFINITY;
    size_t before_at = 0;
    for (long rank = 1; rank <= a->top && (size_t)rank <= count; rank++) {
        size_t best_at = count;
        double best = -INFINITY;
        for (size_t i = 0; i < count; i++) {
            const double score = element(info->dtype, data, from + i);
            const bool next = rank == 1 || score < before || (score == before && i > before_at);
            if (next && !isnan(score) && (score > best || best_at == count)) best = score, best_at = i;
        }
        if (best_at == count) return; /* what is left is not a number */
        printf("%2ld  %10.4f  %6zu  %s\n", rank, best, best_at, best_at < s->label_count ? s->labels[best_at] : "");
        before = best, before_at = best_at;
    }
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool report(const arguments *a, const session *s)
{
    dna_tensor_info info;
    const int32_t output = (int32_t)a->output;
    dna_metrics metrics;
    if (dna_deployment_output(s->deployment, output, &info) != DNA_OK ||
        dna_request_metrics(s->requests[0], &metrics) != DNA_OK)
        return failed(dna_request_error(s->requests[0]));
    const void *data = dna_request_output_handle(s->requests[0], output, NULL);
    const size_t batch = info.rank > 1 && info.shape[0] > 0 ? (size_t)info.shape[0] : 1, classes = info.elements / batch;
    for (size_t n = 0; n < batch; n++) {
        if (batch > 1) printf("batch %zu\n", n);
        print_best(a, s, &info, data, n * classes, classes);
    }
    double *wall = s->wall_ms;
    const size_t count = (size_t)a->repeat;
    qsort(wall, count, sizeof *wall, by_size);
    const double median = (wall[(count - 1) / 2] + wall[count / 2]) / 2;
    printf("target            %s on %s\n", dna_target_name(dna_runner_target(s->runner)),
           dna_deployment_platform(s->deployment));
    printf("inferences        %zu, %ld in flight, %.1f a second\n", count, a->requests, 1e3 * (double)count / s->total_ms);
    printf("wall latency      %.3f ms median, %.3f min, %.3f max\n", median, wall[0], wall[count - 1]);
    if (metrics.cycles > 0)
        printf("device latency    %.3f ms, %lld cycles at %g MHz\n", metrics.device_ms, (long long)metrics.cycles,
               dna_deployment_clock_mhz(s->deployment));
    return true;
}

static void clean_up(session *s)
{
    for (int r = 0; r < MAX_REQUESTS; r++) dna_request_free(s->requests[r]);
    dna_runner_free(s->runner);
    dna_deployment_free(s->deployment);
    free(s->wall_ms);
    free(s->labels);
    free(s->label_text);
}

int main(int argc, char **argv)
{
    const arguments a = parse(argc, argv);
    session s = {0};
    const bool good = prepare(&a, &s) && run(&a, &s) && report(&a, &s);
    clean_up(&s);
    return good && fflush(stdout) == 0 ? 0 : 1;
}
