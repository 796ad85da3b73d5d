/* inputs.c: inputs SCRATCH: the readers of the examples: what good files become, and that bad ones are refused. */
#include <math.h>
#include <sys/stat.h>

#include "../examples/preprocess.h"
#include "case.h"

static char path[CASE_PATH];

static const char *write_file(const char *folder, const char *name, const void *data, size_t bytes)
{
    CHECK((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) < sizeof path, "the path is too long");
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0, "%s cannot be written", path);
    return path;
}

static dna_tensor_info tensor(dna_dtype dtype, int64_t n, int64_t a, int64_t b, int64_t c)
{
    const size_t elements = (size_t)(n * a * b * c);
    return (dna_tensor_info){"x", dtype, 4, {n, a, b, c}, elements, elements * dna_dtype_bytes(dtype), 0, 0, 0};
}

static const preprocessing plain = {.std = {1, 1, 1}};

static void takes(const char *file, dna_tensor_info info, preprocessing how, void *memory)
{
    char error[FILES_ERROR] = "";
    CHECK(load_input(file, &info, &how, memory, error), "%s", error);
}

static void refuses(const char *file, dna_tensor_info info, preprocessing how, const char *what)
{
    char error[FILES_ERROR] = "";
    uint8_t memory[4096];
    CHECK(info.bytes <= sizeof memory, "%s: the tensor is too big", what);
    CHECK(!load_input(file, &info, &how, memory, error), "%s was taken", what);
    CHECK(error[0], "%s was refused without a sentence", what);
}

static void pictures(const char *folder)
{
    /* 3 x 2 pixels; the first header has comments. */
    static const char colour[] = "P6 # a comment\n3\n# another\n2 255\n"
                                 "\x00\x01\x02\x10\x11\x12\x20\x21\x22\x30\x31\x32\x40\x41\x42\xfd\xfe\xff";
    const char *file = write_file(folder, "colour.ppm", colour, sizeof colour - 1);
    float first[18], last[18];
    uint8_t bytes[18];
    int8_t ints[18];
    takes(file, tensor(DNA_FLOAT32, 1, 3, 2, 3), (preprocessing){.std = {1, 1, 1}, .layout = LAYOUT_NCHW}, first);
    takes(file, tensor(DNA_FLOAT32, 1, 2, 3, 3), (preprocessing){.mean = {0.5f}, .std = {0.25f, 1, 1}, .bgr = true}, last);
    takes(file, tensor(DNA_UINT8, 1, 2, 3, 3), plain, bytes);
    takes(file, tensor(DNA_INT8, 1, 2, 3, 3), plain, ints);
    for (int p = 0; p < 6; p++)
        for (int k = 0; k < 3; k++) {
            const int value = (uint8_t)colour[sizeof colour - 19 + 3 * p + k];
            CHECK(first[k * 6 + p] == (float)value / 255.0f, "NCHW %d %d", p, k);
            const float want = ((float)value / 255.0f - (k == 2 ? 0.5f : 0)) / (k == 2 ? 0.25f : 1);
            CHECK(last[3 * p + 2 - k] == want, "NHWC %d %d", p, k);
            CHECK(bytes[3 * p + k] == value && ints[3 * p + k] == value - 128, "bytes %d %d", p, k);
        }
    dna_tensor_info quantized = tensor(DNA_INT8, 1, 2, 3, 3);
    quantized.quantized = 1, quantized.scale = 1.0f / 128, quantized.zero_point = -3;
    takes(file, quantized, plain, ints);
    CHECK(ints[17] == 125 && ints[0] == -3, "quantized: %d, %d", ints[17], ints[0]);

    refuses(file, tensor(DNA_FLOAT32, 1, 3, 2, 3), plain, "channels first or last");
    refuses(file, tensor(DNA_FLOAT32, 1, 3, 4, 4), plain, "another size");
    refuses(file, tensor(DNA_FLOAT32, 2, 3, 2, 2), plain, "a batch of 2");
    refuses(file, tensor(DNA_FLOAT32, 1, 5, 2, 4), plain, "five channels");
    refuses(file, tensor(DNA_INT64, 1, 2, 3, 3), plain, "int64");
    refuses(file, tensor(DNA_FLOAT32, 1, 3, 8, 8), (preprocessing){.std = {1, 1, 1}, .resize = 7}, "less than is taken");
    refuses("nowhere.ppm", tensor(DNA_FLOAT32, 1, 2, 3, 3), plain, "a file that is not there");
    static const char *const bad[] = {"",
                                      "P6",
                                      "P6 3 2 255",
                                      "P6 3 2 255\nshort",
                                      "P6 0 2 255\n",
                                      "P6 3 2 65535\n123456789",
                                      "P3 3 2 255\n1 2 3",
                                      "P6 99999 99999 255\nx",
                                      "P6 -3 2 255\nxxxxxxxxxxxxxxxxxx",
                                      "P6 99999999999999999999 2 255\nx",
                                      "P6 # no end"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(write_file(folder, "bad.ppm", bad[i], strlen(bad[i])), tensor(DNA_FLOAT32, 1, 2, 3, 3), plain, bad[i]);
}

/* A grey ramp keeps its slope when it is resized, and the center is what is cut out. */
static void resizing(const char *folder)
{
    enum { W = 48, H = 24 };
    uint8_t ramp[64 + W * H];
    int used = sprintf((char *)ramp, "P5 %d %d 255\n", W, H);
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) ramp[used++] = (uint8_t)(2 * x + 3 * y);
    const char *file = write_file(folder, "ramp.pgm", ramp, (size_t)used);
    for (int resize = 12; resize <= 48; resize *= 2) {
        float out[3][8][10];
        takes(file, tensor(DNA_FLOAT32, 1, 3, 8, 10), (preprocessing){.std = {1, 1, 1}, .resize = resize}, out);
        const double ratio = (double)H / resize;
        for (int y = 0; y < 8; y++)
            for (int x = 0; x < 10; x++) {
                const double px = ((double)(2 * resize - 10) / 2 + x + 0.5) * ratio - 0.5;
                const double py = ((double)(resize - 8) / 2 + y + 0.5) * ratio - 0.5;
                const double want = (2 * px + 3 * py) / 255;
                CHECK(fabs((double)out[0][y][x] - want) < 1e-5, "%d: %d %d: %g, not %g", resize, y, x, (double)out[0][y][x],
                      want);
                CHECK(out[1][y][x] == out[0][y][x] && out[2][y][x] == out[0][y][x], "grey becomes three channels");
            }
    }
}

static void arrays(const char *folder)
{
    const float values[6] = {1, 2, 3, 4, 5, 6.5f};
    const array a = {'f', 4, 2, {2, 3}, sizeof values, (void *)values};
    char error[FILES_ERROR];
    CHECK((size_t)snprintf(path, sizeof path, "%s/a.npy", folder) < sizeof path, "path");
    CHECK(write_npy(path, &a, error), "%s", error);
    dna_tensor_info info = {"x", DNA_FLOAT32, 2, {2, 3}, 6, 24, 0, 0, 0};
    float read[6];
    takes(path, info, plain, read);
    CHECK(memcmp(read, values, sizeof read) == 0, "other values");
    info.shape[0] = 3, info.shape[1] = 2;
    refuses(path, info, plain, "another shape");
    info.shape[0] = 2, info.shape[1] = 3, info.dtype = DNA_INT32;
    refuses(path, info, plain, "another dtype");
    info.dtype = DNA_FLOAT32;
    static const char *const headers[] = {"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }",
                                          "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
                                          "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }",
                                          "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }",
                                          "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }",
                                          "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
                                          "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3",
                                          "{'descr': '<f4', 'fortran_order': False}",
                                          "{'descr': 'O', 'fortran_order': False, 'shape': (2, 3), }",
                                          "{'descr':",
                                          "{'descr': '",
                                          ""};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        uint8_t file[256] = "\x93NUMPY\x01";
        const size_t length = strlen(headers[i]);
        file[8] = (uint8_t)length;
        memcpy(file + 10, headers[i], length);
        memcpy(file + 10 + length, values, sizeof values);
        refuses(write_file(folder, "bad.npy", file, 10 + length + sizeof values), info, plain, headers[i]);
    }
    static const uint8_t long_header[] = "\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'";
    refuses(write_file(folder, "bad.npy", long_header, sizeof long_header), info, plain, "a header longer than the file");
    refuses(write_file(folder, "bad.npy", long_header, 7), info, plain, "a header cut short");
    takes(write_file(folder, "raw.bin", values, sizeof values), info, plain, read);
    CHECK(memcmp(read, values, sizeof read) == 0, "other values");
    refuses(write_file(folder, "raw.bin", values, sizeof values - 1), info, plain, "too few bytes");
}

static void labels(const char *folder)
{
    static const char text[] = "tench\r\ngoldfish, a fish\n\nlast";
    char *copy, **lines, error[FILES_ERROR];
    size_t count;
    CHECK(read_lines(write_file(folder, "labels.txt", text, sizeof text - 1), &copy, &lines, &count, error), "%s", error);
    CHECK(count == 4, "%zu lines", count);
    CHECK(!strcmp(lines[0], "tench") && !strcmp(lines[1], "goldfish, a fish") && !lines[2][0] && !strcmp(lines[3], "last"),
          "other lines");
    free(copy);
    free(lines);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2, "usage: inputs SCRATCH");
    mkdir(argv[1], 0777);
    pictures(argv[1]);
    resizing(argv[1]);
    arrays(argv[1]);
    labels(argv[1]);
    return 0;
}
