/* transport.c: what all transports have in common: addresses, registers, locks, mapped files. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "transport.h"

static const transport_kind *const kinds[] = {&transport_pcie, &transport_emulated};
enum { KIND_COUNT = sizeof kinds / sizeof *kinds, LOCK_TRIES = 10, LOCK_PAUSE_US = 3000 };

/* ---- addresses ---- */

void address_vec_free(mera_context *ctx, address_vec *addresses)
{
    for (size_t k = 0; k < addresses->count; k++) ctx_free(ctx, addresses->at[k]);
    vec_free(ctx, addresses);
}

mera_status transport_list(mera_context *ctx, const device_options *options, address_vec *found)
{
    for (int k = 0; k < KIND_COUNT; k++) TRY(kinds[k]->list(ctx, options, found));
    return MERA_OK;
}

mera_status transport_open(mera_context *ctx, const device_options *options, const char *address, bool exclusive,
                           transport **out)
{
    const char *colon = strchr(address, ':');
    const transport_kind *kind = NULL;
    for (int k = 0; k < KIND_COUNT && colon; k++)
        if (strlen(kinds[k]->name) == (size_t)(colon - address) &&
            !strncmp(kinds[k]->name, address, (size_t)(colon - address)))
            kind = kinds[k];
    transport *t = ctx_alloc_zeroed(ctx, sizeof *t);
    if (!t) return out_of_memory(ctx);
    if (!kind || strlen(address) >= sizeof t->address) {
        ctx_free(ctx, t);
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "device '%.64s': an address is 'emulated:<number>' or 'pcie:<domain>:<bus>:<device>.<function>'",
                    address);
    }
    t->kind = kind;
    t->bar_fd = -1;
    t->page_bytes = sysconf(_SC_PAGESIZE);
    strcpy(t->address, address);
    const mera_status status = kind->open(ctx, options, exclusive, t);
    if (status != MERA_OK) {
        transport_close(ctx, t);
        return status;
    }
    *out = t;
    return MERA_OK;
}

void transport_close(mera_context *ctx, transport *t)
{
    if (!t) return;
    t->kind->close(t);
    if (t->bar_fd >= 0) close(t->bar_fd); /* gives up the lock */
    ctx_free(ctx, t->frames);
    ctx_free(ctx, t->own);
    ctx_free(ctx, t);
}

/* ---- registers ---- */

uint32_t transport_read(const transport *t, uint32_t offset)
{
    const uint32_t value = t->bar[offset / 4];
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return value;
}

void transport_write(transport *t, uint32_t offset, uint32_t value)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    t->bar[offset / 4] = value;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (t->kind->ring) t->kind->ring(t);
}

uint64_t transport_read64(const transport *t, uint32_t offset_low)
{
    const uint64_t low = transport_read(t, offset_low);
    return low | (uint64_t)transport_read(t, offset_low + 4) << 32;
}

uint64_t transport_bus(const transport *t, int64_t offset, int64_t bytes, int64_t *contiguous)
{
    if (!t->frames) {
        *contiguous = bytes;
        return t->first_frame + (uint64_t)offset;
    }
    int64_t page = offset / t->page_bytes;
    const int64_t inside = offset % t->page_bytes;
    const uint64_t bus = t->frames[page] + (uint64_t)inside;
    *contiguous = t->page_bytes - inside;
    while (*contiguous < bytes && t->frames[page + 1] == t->frames[page] + (uint64_t)t->page_bytes) {
        *contiguous += t->page_bytes;
        page++;
    }
    *contiguous = min_i64(*contiguous, bytes);
    return bus;
}

/* ---- exclusive use: a lock on the file of the registers, which the kernel gives up for a process that ends ---- */

/* The process that holds a lock of the file, 0 if that cannot be known. */
static pid_t lock_holder(int fd)
{
    struct stat file;
    FILE *locks = fstat(fd, &file) == 0 ? fopen("/proc/locks", "re") : NULL;
    if (!locks) return 0;
    char line[256];
    pid_t holder = 0;
    while (!holder && fgets(line, sizeof line, locks)) {
        long pid;
        unsigned device_major, device_minor;
        unsigned long long inode;
        if (sscanf(line, "%*d: FLOCK %*s WRITE %ld %x:%x:%llu", &pid, &device_major, &device_minor, &inode) == 4 &&
            inode == (unsigned long long)file.st_ino && device_major == major(file.st_dev) &&
            device_minor == minor(file.st_dev) && pid > 0)
            holder = (pid_t)pid;
    }
    fclose(locks);
    return holder;
}

bool transport_busy(const transport *t, pid_t *holder)
{
    *holder = 0;
    if (flock(t->bar_fd, LOCK_SH | LOCK_NB) == 0) {
        flock(t->bar_fd, LOCK_UN);
        return false;
    }
    *holder = lock_holder(t->bar_fd);
    return true;
}

mera_status transport_lock(mera_context *ctx, transport *t)
{
    /* Who only looks at the board holds the lock for an instant: try again before calling it busy. */
    for (int k = 0; k < LOCK_TRIES; k++) {
        if (flock(t->bar_fd, LOCK_EX | LOCK_NB) == 0) return MERA_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fail(ctx, MERA_STORAGE, "device %s: it cannot be locked: %s", t->address, strerror(errno));
        sleep_us(LOCK_PAUSE_US);
    }
    const pid_t holder = lock_holder(t->bar_fd);
    if (holder == getpid())
        return fail(ctx, MERA_DEVICE_BUSY, "device %s is in use by this process (pid %ld) already", t->address,
                    (long)holder);
    if (holder) return fail(ctx, MERA_DEVICE_BUSY, "device %s is in use by process %ld", t->address, (long)holder);
    return fail(ctx, MERA_DEVICE_BUSY, "device %s is in use by another process", t->address);
}

/* ---- small things ---- */

bool path_print(char *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(out, PATH_BYTES, format, args);
    va_end(args);
    return length >= 0 && length < PATH_BYTES;
}

bool read_small_file(const char *path, char *out, size_t bytes)
{
    out[0] = '\0';
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const ssize_t length = read(fd, out, bytes - 1);
    close(fd);
    out[length > 0 ? length : 0] = '\0';
    return length >= 0;
}

void *map_shared(int fd, int64_t bytes)
{
    void *memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void sleep_us(int64_t microseconds)
{
    const struct timespec t = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&t, NULL);
}
