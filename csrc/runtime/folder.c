/* folder.c: see folder.h. */
#include "folder.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_FILE_BYTES ((int64_t)1 << 34)

mera_status folder_open(mera_context *ctx, const char *path, int *folder)
{
    *folder = open(path, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (*folder >= 0) return MERA_OK;
    if (errno == ENOENT || errno == ENOTDIR) return fail(ctx, MERA_INVALID_ARGUMENT, "there is no such folder");
    return fail(ctx, MERA_STORAGE, "it cannot be read: %s", strerror(errno));
}

void folder_close(int folder) { close(folder); }

bool folder_has(int folder, const char *name)
{
    struct stat about;
    return fstatat(folder, name, &about, 0) == 0;
}

static mera_status read_all(mera_context *ctx, const char *name, int file, blob *out)
{
    struct stat about;
    if (fstat(file, &about) != 0) return fail(ctx, MERA_STORAGE, "%.100s cannot be read: %s", name, strerror(errno));
    if (!S_ISREG(about.st_mode)) return fail(ctx, MERA_CORRUPT, "%.100s is no regular file", name);
    if (about.st_size > MOST_FILE_BYTES || (uint64_t)about.st_size > SIZE_MAX / 2)
        return fail(ctx, MERA_CORRUPT, "%.100s has %lld bytes, too many to be a deployment's", name,
                    (long long)about.st_size);
    out->bytes = (size_t)about.st_size;
    out->at = ctx_alloc(ctx, out->bytes);
    if (!out->at) return out_of_memory(ctx);
    for (size_t at = 0; at < out->bytes;) {
        const ssize_t got = read(file, out->at + at, out->bytes - at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail(ctx, MERA_STORAGE, "%.100s cannot be read: %s", name, strerror(errno));
        if (got == 0) return fail(ctx, MERA_CORRUPT, "%.100s became shorter while it was read", name);
        at += (size_t)got;
    }
    return MERA_OK;
}

mera_status folder_read(mera_context *ctx, int folder, const char *name, blob *out)
{
    *out = (blob){NULL, 0};
    /* O_NONBLOCK: a pipe in the file's place must not make the caller wait. */
    const int file = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0 && (errno == EACCES || errno == EPERM || errno == EIO || errno == EMFILE || errno == ENFILE))
        return fail(ctx, MERA_STORAGE, "%.100s cannot be read: %s", name, strerror(errno));
    if (file < 0) return fail(ctx, MERA_CORRUPT, "%.100s cannot be read: %s", name, strerror(errno));
    const mera_status status = read_all(ctx, name, file, out);
    close(file);
    return status;
}
