/* files.c: see files.h. Every size that a file states is checked before it is used. */
#include "files.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SIDE = 65535, NPY_ALIGN = 64 };
static const size_t max_bytes = (size_t)1 << 31;

bool files_failed(char *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, FILES_ERROR, format, args);
    va_end(args);
    return false;
}

static bool read_stream(FILE *file, const char *path, uint8_t **data, size_t *bytes, char *error)
{
    size_t space = 1 << 16, count = 0;
    uint8_t *at = malloc(space);
    while (at) {
        count += fread(at + count, 1, space - count, file);
        if (count < space) break;
        if (space >= max_bytes) {
            free(at);
            return files_failed(error, "%s: the file has more than %zu bytes", path, max_bytes);
        }
        uint8_t *grown = realloc(at, 2 * space);
        if (!grown) free(at);
        at = grown;
        space *= 2;
    }
    if (!at) return files_failed(error, "%s: out of memory", path);
    if (ferror(file)) {
        free(at);
        return files_failed(error, "%s: %s", path, strerror(errno));
    }
    *data = at;
    *bytes = count;
    return true;
}

bool read_file(const char *path, uint8_t **data, size_t *bytes, char *error)
{
    FILE *file = fopen(path, "rb");
    if (!file) return files_failed(error, "%s: %s", path, strerror(errno));
    const bool good = read_stream(file, path, data, bytes, error);
    fclose(file);
    return good;
}

/* ---- npy ---- */

/* The text behind "'key':" in the header's dictionary, or NULL. */
static const char *npy_value(const char *header, const char *key)
{
    const char *at = strstr(header, key);
    if (!at) return NULL;
    at += strlen(key);
    while (*at == ' ') at++;
    if (*at++ != ':') return NULL;
    while (*at == ' ') at++;
    return at;
}

/* "(1, 3, 224, 224)" -> shape and the number of elements. */
static bool npy_shape(const char *at, array *out, size_t *elements)
{
    if (*at++ != '(') return false;
    *elements = 1;
    for (out->rank = 0;;) {
        while (*at == ' ' || *at == ',') at++;
        if (*at == ')') return true;
        if (!isdigit((unsigned char)*at) || out->rank == ARRAY_MAX_RANK) return false;
        char *end;
        errno = 0;
        const long long size = strtoll(at, &end, 10);
        if (errno || size < 0 || (unsigned long long)size > max_bytes) return false;
        if (size && *elements > max_bytes / (size_t)size) return false;
        *elements *= (size_t)size;
        out->shape[out->rank++] = size;
        at = end;
    }
}

/* "'<f4'" -> kind and size of an element. Big-endian numbers are refused. */
static bool npy_descr(const char *at, array *out)
{
    if ((at[0] != '\'' && at[0] != '"') || !strchr("<|=", at[1]) || !strchr("fiub", at[2])) return false;
    out->kind = at[2];
    out->item_size = at[3] - '0';
    if (at[4] != at[0]) return false;
    return out->item_size == 1 || out->item_size == 2 || out->item_size == 4 || out->item_size == 8;
}

static bool parse_npy(const char *path, const uint8_t *data, size_t bytes, array *out, char *error)
{
    if (bytes < 10 || memcmp(data, "\x93NUMPY", 6) != 0) return files_failed(error, "%s: this is no .npy file", path);
    const size_t lead = data[6] == 1 ? 10 : 12;
    if (data[6] < 1 || data[6] > 3 || bytes < lead)
        return files_failed(error, "%s: version %d of the .npy format is unknown", path, data[6]);
    size_t length = data[8] | (size_t)data[9] << 8;
    if (lead == 12) length |= (size_t)data[10] << 16 | (size_t)data[11] << 24;
    if (length > bytes - lead || length > 65536) return files_failed(error, "%s: the header is truncated", path);
    char *header = malloc(length + 1);
    if (!header) return files_failed(error, "%s: out of memory", path);
    memcpy(header, data + lead, length);
    header[length] = '\0';
    const char *descr = npy_value(header, "'descr'"), *order = npy_value(header, "'fortran_order'"),
               *shape = npy_value(header, "'shape'");
    size_t elements = 0;
    const char *wrong = NULL;
    if (!descr || !order || !shape || !npy_shape(shape, out, &elements))
        wrong = "the header is malformed";
    else if (!npy_descr(descr, out))
        wrong = "the elements must be little-endian integers, floats or booleans";
    else if (strncmp(order, "False", 5) != 0)
        wrong = "the array is in Fortran order; save numpy.ascontiguousarray(x)";
    else if (elements > max_bytes / (size_t)out->item_size || elements * (size_t)out->item_size != bytes - lead - length)
        wrong = "the file has another size than its shape says";
    free(header);
    if (wrong) return files_failed(error, "%s: %s", path, wrong);
    out->bytes = elements * (size_t)out->item_size;
    out->data = malloc(out->bytes ? out->bytes : 1);
    if (!out->data) return files_failed(error, "%s: out of memory", path);
    memcpy(out->data, data + lead + length, out->bytes);
    return true;
}

bool read_npy(const char *path, array *out, char *error)
{
    uint8_t *data;
    size_t bytes;
    if (!read_file(path, &data, &bytes, error)) return false;
    *out = (array){0};
    const bool good = parse_npy(path, data, bytes, out, error);
    free(data);
    return good;
}

bool write_npy(const char *path, const array *in, char *error)
{
    char header[512];
    int used = snprintf(header, sizeof header, "{'descr': '%c%c%d', 'fortran_order': False, 'shape': (",
                        in->item_size == 1 ? '|' : '<', in->kind, (int)in->item_size);
    for (int32_t d = 0; d < in->rank; d++)
        used += snprintf(header + used, sizeof header - (size_t)used, "%lld, ", (long long)in->shape[d]);
    used += snprintf(header + used, sizeof header - (size_t)used, "), }");
    /* The data begin at a multiple of 64, after spaces and a line's end. */
    while ((10 + used + 1) % NPY_ALIGN) header[used++] = ' ';
    header[used++] = '\n';
    const uint8_t lead[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (uint8_t)(used & 255), (uint8_t)(used >> 8)};
    FILE *file = fopen(path, "wb");
    if (!file) return files_failed(error, "%s: %s", path, strerror(errno));
    const bool written = fwrite(lead, 1, sizeof lead, file) == sizeof lead &&
                         fwrite(header, 1, (size_t)used, file) == (size_t)used &&
                         fwrite(in->data, 1, in->bytes, file) == in->bytes;
    if (fclose(file) != 0 || !written) return files_failed(error, "%s: %s", path, strerror(errno));
    return true;
}

/* ---- PPM and PGM ---- */

/* The next number of a header, which has comments from # to the line's end; -1 if there is none up to `most`. */
static int32_t pnm_number(const uint8_t *data, size_t bytes, size_t *at, int32_t most)
{
    while (*at < bytes && (isspace(data[*at]) || data[*at] == '#')) {
        if (data[*at] == '#')
            while (*at < bytes && data[*at] != '\n') ++*at;
        else
            ++*at;
    }
    int32_t value = 0;
    const size_t start = *at;
    for (; *at < bytes && isdigit(data[*at]); ++*at) {
        value = 10 * value + (data[*at] - '0');
        if (value > most) return -1;
    }
    return *at > start ? value : -1;
}

bool read_pnm(const char *path, picture *out, char *error)
{
    uint8_t *data;
    size_t bytes;
    if (!read_file(path, &data, &bytes, error)) return false;
    const char *wrong = NULL;
    size_t at = 2, size = 0;
    *out = (picture){0};
    if (bytes < 2 || data[0] != 'P' || (data[1] != '5' && data[1] != '6')) {
        wrong = "this is no binary PPM or PGM picture (P6 or P5)";
    } else {
        out->channels = data[1] == '6' ? 3 : 1;
        out->width = pnm_number(data, bytes, &at, MAX_SIDE);
        out->height = pnm_number(data, bytes, &at, MAX_SIDE);
        const int32_t most = pnm_number(data, bytes, &at, MAX_SIDE);
        size = out->width > 0 && out->height > 0 ? (size_t)out->width * (size_t)out->height * (size_t)out->channels : 0;
        if (size == 0)
            wrong = "width and height must be 1 to 65535";
        else if (most != 255)
            wrong = "the greatest value must be 255";
        else if (at >= bytes || !isspace(data[at]) || bytes - at - 1 < size)
            wrong = "the picture is truncated";
    }
    if (!wrong && !(out->pixels = malloc(size))) wrong = "out of memory";
    if (!wrong) memcpy(out->pixels, data + at + 1, size);
    free(data);
    return wrong ? files_failed(error, "%s: %s", path, wrong) : true;
}

/* ---- lines ---- */

bool read_lines(const char *path, char **text, char ***lines, size_t *count, char *error)
{
    uint8_t *data;
    size_t bytes;
    if (!read_file(path, &data, &bytes, error)) return false;
    size_t most = 1;
    for (size_t i = 0; i < bytes; i++) most += data[i] == '\n';
    char *copy = malloc(bytes + 1), **found = malloc(most * sizeof *found);
    if (!copy || !found) {
        free(data);
        free(copy);
        free(found);
        return files_failed(error, "%s: out of memory", path);
    }
    memcpy(copy, data, bytes);
    copy[bytes] = '\0';
    free(data);
    size_t n = 0;
    for (char *at = copy; at < copy + bytes;) {
        char *end = memchr(at, '\n', (size_t)(copy + bytes - at));
        if (!end) end = copy + bytes;
        *end = '\0';
        if (end > at && end[-1] == '\r') end[-1] = '\0';
        found[n++] = at;
        at = end + 1;
    }
    *text = copy;
    *lines = found;
    *count = n;
    return true;
}
