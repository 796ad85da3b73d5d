/* files.h: what the examples read: .npy arrays, PPM and PGM pictures, raw bytes, lists of labels. Plain C, no library.
 *
 * A function that fails returns false and leaves one sentence in error, which has FILES_ERROR bytes. */
#ifndef FILES_H
#define FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FILES_ERROR = 512, ARRAY_MAX_RANK = 8 };

/* A dense array in C order, little-endian. */
typedef struct array {
    char kind;         /* 'f', 'i', 'u' or 'b', as numpy's */
    int32_t item_size; /* bytes: 1, 2, 4 or 8 */
    int32_t rank;
    int64_t shape[ARRAY_MAX_RANK];
    size_t bytes;
    void *data; /* free() it */
} array;

/* Eight bits a channel, rows from the top, channels interleaved. */
typedef struct picture {
    int32_t width, height, channels; /* channels: 1 or 3 */
    uint8_t *pixels;                 /* free() it */
} picture;

/* Writes the sentence, as printf does, and is false: return files_failed(error, ...). */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool files_failed(char *error, const char *format, ...);

bool read_file(const char *path, uint8_t **data, size_t *bytes, char *error);
bool read_npy(const char *path, array *out, char *error);
bool write_npy(const char *path, const array *in, char *error);
bool read_pnm(const char *path, picture *out, char *error); /* P5 or P6, at most 255 a channel */

/* Text file -> its lines without their ends. *lines and *text are to be freed. */
bool read_lines(const char *path, char **text, char ***lines, size_t *count, char *error);

#endif
