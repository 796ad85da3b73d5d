/* transport_emulated.c: boards that are processes of this user. A board is a folder `board-<n>`:
 *
 *   bar      the registers, and behind them the wires: a bell and an interrupt line. Locked by the process that uses it
 *   dma      host memory for DMA; it begins at BUS_BASE on the bus
 *   board    locked by the process that serves the board, for as long as it lives
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "transport.h"

enum { SPINS = 200 }; /* looks at the interrupt line before the thread sleeps: some microseconds */

typedef struct emulated {
    char folder[PATH_BYTES];
    board_wires *wires;
    int board_fd; /* of the file `board` */
} emulated;

/* ---- folders ---- */

mera_status runtime_folder(mera_context *ctx, const char *given, bool make, char out[PATH_BYTES])
{
    const char *runtime = getenv("XDG_RUNTIME_DIR"), *temporary = getenv("TMPDIR");
    const bool session = runtime && *runtime && access(runtime, W_OK) == 0;
    const bool fits =
        given     ? path_print(out, "%s", given)
        : session ? path_print(out, "%s/mera_torch", runtime)
                  : path_print(out, "%s/mera_torch-%ld", temporary && *temporary ? temporary : "/tmp", (long)geteuid());
    if (!fits) return fail(ctx, MERA_INVALID_ARGUMENT, "the folder of emulated devices has too long a path");
    if (make && mkdir(out, 0700) != 0 && errno != EEXIST)
        return fail(ctx, MERA_STORAGE, "the folder of emulated devices, '%s', cannot be made: %s", out, strerror(errno));
    struct stat folder;
    if (lstat(out, &folder) != 0) {
        if (!make) return MERA_OK;
        return fail(ctx, MERA_STORAGE, "the folder of emulated devices, '%s', cannot be read: %s", out, strerror(errno));
    }
    /* Who could write there could pose as a device, and read what is computed. */
    if (!S_ISDIR(folder.st_mode) || folder.st_uid != geteuid() || (folder.st_mode & 077) != 0)
        return fail(ctx, MERA_STORAGE, "'%s' must be a folder of this user, with access for nobody else (mode 0700)", out);
    return MERA_OK;
}

static void remove_board(const char *folder)
{
    static const char *const files[] = {"bar", "dma", "board"};
    char path[PATH_BYTES];
    for (size_t k = 0; k < sizeof files / sizeof *files; k++)
        if (path_print(path, "%s/%s", folder, files[k])) unlink(path);
    rmdir(folder);
}

/* Whether somebody else holds the lock of the file `board`. */
static bool locked(int fd)
{
    if (flock(fd, LOCK_SH | LOCK_NB) != 0) return errno == EWOULDBLOCK;
    flock(fd, LOCK_UN);
    return false;
}

/* Whether the process that serves the board lives. */
static bool lives(const char *folder)
{
    char path[PATH_BYTES];
    if (!path_print(path, "%s/board", folder)) return false;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool found = locked(fd);
    close(fd);
    return found;
}

int runtime_folder_lock(const char *folder)
{
    char path[PATH_BYTES];
    struct stat entry;
    if (!path_print(path, "%s/lock", folder)) return -1;
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return -1;
    while (flock(fd, LOCK_EX) != 0)
        if (errno != EINTR) {
            close(fd);
            return -1;
        }
    for (int n = 0; n < BOARD_LIMIT; n++)
        if (path_print(path, "%s/board-%d", folder, n) && lstat(path, &entry) == 0 && !lives(path)) remove_board(path);
    return fd;
}

static mera_status list(mera_context *ctx, const device_options *options, address_vec *found)
{
    char folder[PATH_BYTES], path[PATH_BYTES];
    TRY(runtime_folder(ctx, options->runtime_folder, false, folder));
    const int lock = runtime_folder_lock(folder); /* for its clean-up alone */
    if (lock >= 0) close(lock);
    for (int n = 0; n < BOARD_LIMIT; n++) {
        if (!path_print(path, "%s/board-%d", folder, n) || !lives(path)) continue;
        char *address = ctx_alloc(ctx, 32);
        if (!address) return out_of_memory(ctx);
        snprintf(address, 32, "emulated:%d", n);
        if (!vec_push(ctx, found, address)) {
            ctx_free(ctx, address);
            return out_of_memory(ctx);
        }
    }
    return MERA_OK;
}

/* ---- a board ---- */

static mera_status absent(mera_context *ctx, const transport *t)
{
    return fail(ctx, MERA_DEVICE_ABSENT, "there is no device %s; 'mera device' starts one", t->address);
}

static mera_status malformed(mera_context *ctx, const transport *t, const char *file)
{
    return fail(ctx, MERA_DEVICE_FAULT, "device %s: its file '%s' is not what a board has", t->address, file);
}

static int open_file(const emulated *e, const char *name, int flags, int64_t *bytes)
{
    char path[PATH_BYTES];
    struct stat file;
    if (!path_print(path, "%s/%s", e->folder, name)) return -1;
    const int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return -1;
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) {
        close(fd);
        return -1;
    }
    *bytes = file.st_size;
    return fd;
}

static mera_status open_board(mera_context *ctx, const device_options *options, bool exclusive, transport *t)
{
    const char *digits = strchr(t->address, ':') + 1;
    char *end;
    const long number = strtol(digits, &end, 10);
    if (*digits < '0' || *digits > '9' || *end || number >= BOARD_LIMIT) return absent(ctx, t);
    emulated *e = t->own = ctx_alloc_zeroed(ctx, sizeof *e);
    if (!e) return out_of_memory(ctx);
    e->board_fd = -1;
    char folder[PATH_BYTES];
    int64_t bytes = 0;
    TRY(runtime_folder(ctx, options->runtime_folder, false, folder));
    if (!path_print(e->folder, "%s/board-%ld", folder, number)) return absent(ctx, t);
    e->board_fd = open_file(e, "board", O_RDONLY, &bytes);
    if (e->board_fd < 0 || !locked(e->board_fd)) return absent(ctx, t);
    t->bar_fd = open_file(e, "bar", O_RDWR, &bytes);
    if (t->bar_fd < 0) return absent(ctx, t);
    if (bytes != BOARD_FILE_BYTES) return malformed(ctx, t, "bar");
    uint8_t *bar = map_shared(t->bar_fd, BOARD_FILE_BYTES);
    if (!bar) return malformed(ctx, t, "bar");
    t->bar = (volatile uint32_t *)bar;
    e->wires = (board_wires *)(bar + DNA_ID_BAR_BYTES);
    t->interrupts = true;
    if (!exclusive) return MERA_OK;
    TRY(transport_lock(ctx, t));
    const int dma = open_file(e, "dma", O_RDWR, &bytes);
    if (dma < 0) return malformed(ctx, t, "dma");
    const bool sane = bytes >= 16 * t->page_bytes && bytes % t->page_bytes == 0;
    t->dma = sane ? map_shared(dma, bytes) : NULL;
    close(dma);
    if (!t->dma) return malformed(ctx, t, "dma");
    t->dma_bytes = bytes;
    t->first_frame = BUS_BASE;
    return MERA_OK;
}

static void close_board(transport *t)
{
    emulated *e = t->own;
    if (t->bar) munmap((void *)(uintptr_t)t->bar, BOARD_FILE_BYTES);
    if (t->dma) munmap(t->dma, (size_t)t->dma_bytes);
    if (e && e->board_fd >= 0) close(e->board_fd);
}

/* ---- wires ---- */

void futex_wait(uint32_t *word, uint32_t seen, int64_t microseconds)
{
    const struct timespec t = {microseconds / 1000000, microseconds % 1000000 * 1000};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0);
}

void futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }

static void ring(transport *t)
{
    emulated *e = t->own;
    __atomic_fetch_add(&e->wires->bell, 1, __ATOMIC_SEQ_CST);
    futex_wake(&e->wires->bell);
}

static uint32_t ticket(transport *t)
{
    const emulated *e = t->own;
    return __atomic_load_n(&e->wires->interrupt, __ATOMIC_SEQ_CST);
}

static void wait_for_interrupt(transport *t, uint32_t seen, int64_t microseconds)
{
    emulated *e = t->own;
    for (int k = 0; k < SPINS; k++)
        if (ticket(t) != seen) return;
    futex_wait(&e->wires->interrupt, seen, microseconds);
}

static bool alive(transport *t) { return locked(((const emulated *)t->own)->board_fd); }

const transport_kind transport_emulated = {
    .name = "emulated",
    .list = list,
    .open = open_board,
    .close = close_board,
    .ring = ring,
    .ticket = ticket,
    .wait = wait_for_interrupt,
    .alive = alive,
};
