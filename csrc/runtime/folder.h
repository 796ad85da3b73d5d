/* folder.h: reading files of one folder, which may be anything. */
#ifndef MERA_RUNTIME_FOLDER_H
#define MERA_RUNTIME_FOLDER_H

#include "../core.h"

typedef struct blob {
    uint8_t *at; /* freed by the caller with ctx_free, after a failure, too */
    size_t bytes;
} blob;

/* The folder stays the same one even if another is renamed into its place. MERA_INVALID_ARGUMENT if there is none,
 * MERA_STORAGE if it cannot be read. */
mera_status folder_open(mera_context *ctx, const char *path, int *folder);
void folder_close(int folder);
bool folder_has(int folder, const char *name);
/* The whole file, a regular one. MERA_CORRUPT, MERA_STORAGE, MERA_OUT_OF_MEMORY; the message names the file. */
mera_status folder_read(mera_context *ctx, int folder, const char *name, blob *out);

#endif
