/* preprocess.c: see preprocess.h. */
#include "preprocess.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void describe(const int64_t *shape, int32_t rank, char *text, size_t space)
{
    size_t used = (size_t)snprintf(text, space, "[");
    for (int32_t d = 0; d < rank && used < space; d++)
        used += (size_t)snprintf(text + used, space - used, "%s%lld", d ? ", " : "", (long long)shape[d]);
    if (used < space) snprintf(text + used, space - used, "]");
}

/* ---- arrays and bytes ---- */

static bool same_dtype(const array *a, dna_dtype dtype)
{
    static const char kinds[] = {[DNA_FLOAT32] = 'f', [DNA_INT8] = 'i',  [DNA_UINT8] = 'u', [DNA_INT16] = 'i',
                                 [DNA_INT32] = 'i',   [DNA_INT64] = 'i', [DNA_BOOL] = 'b',  [DNA_FLOAT64] = 'f',
                                 [DNA_FLOAT16] = 'f', [DNA_BFLOAT16] = 0 /* numpy has none */};
    return (size_t)dtype < sizeof kinds && a->kind == kinds[dtype] && (size_t)a->item_size == dna_dtype_bytes(dtype);
}

static bool load_array(const char *path, const dna_tensor_info *info, void *memory, char *error)
{
    array a;
    if (!read_npy(path, &a, error)) return false;
    const bool same_shape = a.rank == info->rank && memcmp(a.shape, info->shape, (size_t)a.rank * sizeof *a.shape) == 0 &&
                            a.bytes == info->bytes;
    const bool good = same_shape && same_dtype(&a, info->dtype);
    if (good) {
        memcpy(memory, a.data, a.bytes);
    } else {
        char want[128], got[128];
        describe(info->shape, info->rank, want, sizeof want);
        describe(a.shape, a.rank, got, sizeof got);
        files_failed(error, "%s: input '%s' is %s%s, the file holds %c%d%s", path, info->name, dna_dtype_name(info->dtype),
                     want, a.kind, (int)a.item_size * 8, got);
    }
    free(a.data);
    return good;
}

static bool load_bytes(const char *path, const dna_tensor_info *info, void *memory, char *error)
{
    uint8_t *data;
    size_t bytes;
    if (!read_file(path, &data, &bytes, error)) return false;
    const bool good = bytes == info->bytes;
    if (good)
        memcpy(memory, data, bytes);
    else
        files_failed(error, "%s: input '%s' has %zu bytes, the file %zu", path, info->name, info->bytes, bytes);
    free(data);
    return good;
}

/* ---- pictures ---- */

typedef struct image_shape {
    int64_t height, width, channels;
    bool channels_last;
} image_shape;

static bool is_channels(int64_t n) { return n == 1 || n == 3; }

static bool image_shape_of(const dna_tensor_info *info, layout wanted, image_shape *out, char *error)
{
    char shape[128];
    describe(info->shape, info->rank, shape, sizeof shape);
    if ((info->rank != 3 && info->rank != 4) || (info->rank == 4 && info->shape[0] != 1))
        return files_failed(error, "input '%s' has shape %s, which takes no single picture", info->name, shape);
    const int64_t *s = info->shape + (info->rank == 4 ? 1 : 0);
    const bool first = wanted != LAYOUT_NHWC && is_channels(s[0]), last = wanted != LAYOUT_NCHW && is_channels(s[2]);
    if (!first && !last)
        return files_failed(error, "input '%s' has shape %s, which has no 1 or 3 channels%s", info->name, shape,
                            wanted == LAYOUT_FROM_SHAPE ? "" : " in that layout");
    if (first && last)
        return files_failed(error, "input '%s' has shape %s: say with --layout where its channels are", info->name, shape);
    *out = first ? (image_shape){s[1], s[2], s[0], false} : (image_shape){s[0], s[1], s[2], true};
    return true;
}

/* One line of `in` elements -> `out` elements `from` to `from + count` of a line resized to `size`, by a triangle filter
 * that widens when it shrinks; elements lie `step` and `out_step` floats apart. */
static void resize_line(const float *line, int64_t in, int64_t step, int64_t size, int64_t from, int64_t count, float *out,
                        int64_t out_step)
{
    const double ratio = (double)in / (double)size, support = ratio > 1 ? ratio : 1;
    for (int64_t i = 0; i < count; i++) {
        const double center = ((double)(from + i) + 0.5) * ratio;
        int64_t first = (int64_t)floor(center - support), last = (int64_t)ceil(center + support);
        if (first < 0) first = 0;
        if (last > in) last = in;
        double sum = 0, weights = 0;
        for (int64_t k = first; k < last; k++) {
            const double weight = fmax(0, 1 - fabs(((double)k + 0.5 - center) / support));
            sum += weight * (double)line[k * step];
            weights += weight;
        }
        out[i * out_step] = (float)(sum / weights);
    }
}

/* The picture's values as floats of 0 to 255, HWC, in the size wanted. NULL: see error. */
static float *fit(const char *path, const picture *p, const image_shape *want, int32_t resize, char *error)
{
    const int64_t w = p->width, h = p->height, c = p->channels, shorter = w < h ? w : h;
    int64_t rw = w, rh = h;
    if (resize) {
        rw = (w * resize + shorter / 2) / shorter;
        rh = (h * resize + shorter / 2) / shorter;
    }
    if (resize ? rw < want->width || rh < want->height : w != want->width || h != want->height) {
        files_failed(error, "%s: the picture has %lld x %lld pixels%s, the network takes %lld x %lld%s", path, (long long)rw,
                     (long long)rh, resize ? " after --resize" : "", (long long)want->width, (long long)want->height,
                     resize ? "" : "; use --resize");
        return NULL;
    }
    const size_t source = (size_t)(w * h * c), between = (size_t)(want->width * h * c),
                 result = (size_t)(want->width * want->height * c);
    float *values = malloc(source * sizeof *values), *rows = malloc(between * sizeof *rows),
          *out = malloc(result * sizeof *out);
    if (values && rows && out) {
        for (size_t i = 0; i < source; i++) values[i] = p->pixels[i];
        const int64_t x0 = (rw - want->width) / 2, y0 = (rh - want->height) / 2;
        for (int64_t y = 0; y < h; y++)
            for (int64_t j = 0; j < c; j++)
                resize_line(values + y * w * c + j, w, c, rw, x0, want->width, rows + y * want->width * c + j, c);
        const int64_t row = want->width * c;
        for (int64_t i = 0; i < row; i++) resize_line(rows + i, h, row, rh, y0, want->height, out + i, row);
    } else {
        files_failed(error, "%s: out of memory", path);
        free(out);
        out = NULL;
    }
    free(values);
    free(rows);
    return out;
}

/* Channel k of a pixel for a network of `channels`; luma after ITU-R BT.601. */
static float channel_of(const float *pixel, int32_t has, int64_t channels, int64_t k, bool bgr)
{
    if (has == 1) return pixel[0];
    if (channels == 1) return 0.299f * pixel[0] + 0.587f * pixel[1] + 0.114f * pixel[2];
    return pixel[bgr ? 2 - k : k];
}

static float bounded(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

/* What the network's element is for a picture's value of 0 to 255. */
static void put(const dna_tensor_info *info, void *memory, int64_t at, float value, float mean, float std)
{
    const float real = (value / 255.0f - mean) / std;
    if (info->dtype == DNA_FLOAT32)
        ((float *)memory)[at] = real;
    else if (info->dtype == DNA_UINT8)
        ((uint8_t *)memory)[at] = (uint8_t)bounded(rintf(value), 0, 255);
    else if (info->quantized)
        ((int8_t *)memory)[at] = (int8_t)bounded(rintf(real / info->scale) + (float)info->zero_point, -128, 127);
    else
        ((int8_t *)memory)[at] = (int8_t)bounded(rintf(value) - 128, -128, 127);
}

static bool load_picture(const char *path, const dna_tensor_info *info, const preprocessing *how, void *memory, char *error)
{
    if (info->dtype != DNA_FLOAT32 && info->dtype != DNA_UINT8 && info->dtype != DNA_INT8)
        return files_failed(error, "%s: input '%s' is %s, and pictures become float32, uint8 or int8", path, info->name,
                            dna_dtype_name(info->dtype));
    image_shape want = {0};
    picture p;
    if (!image_shape_of(info, how->layout, &want, error) || !read_pnm(path, &p, error)) return false;
    float *values = fit(path, &p, &want, how->resize, error);
    const int32_t has = p.channels;
    free(p.pixels);
    if (!values) return false;
    for (int64_t y = 0; y < want.height; y++)
        for (int64_t x = 0; x < want.width; x++)
            for (int64_t k = 0; k < want.channels; k++) {
                const int64_t pixel = y * want.width + x;
                const int64_t at = want.channels_last ? pixel * want.channels + k : k * want.height * want.width + pixel;
                const float value = channel_of(values + pixel * has, has, want.channels, k, how->bgr);
                put(info, memory, at, value, how->mean[k], how->std[k]);
            }
    free(values);
    return true;
}

static bool ends(const char *path, const char *with)
{
    const size_t length = strlen(path), end = strlen(with);
    return length >= end && strcmp(path + length - end, with) == 0;
}

bool load_input(const char *path, const dna_tensor_info *info, const preprocessing *how, void *memory, char *error)
{
    if (ends(path, ".npy")) return load_array(path, info, memory, error);
    if (ends(path, ".ppm") || ends(path, ".pgm")) return load_picture(path, info, how, memory, error);
    return load_bytes(path, info, memory, error);
}
