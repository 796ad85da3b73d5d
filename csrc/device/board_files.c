/* board_files.c: where an emulated board can be found: a folder `board-<n>` (see transport_emulated.c), or a folder with
 * what the driver expects of PCI Express: sysfs, /dev, hugetlbfs and pagemap. The latter's DMA memory has gaps after every
 * page, as pages of a real machine may. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <termios.h>
#include <unistd.h>

#include "board_state.h"

#define DEFAULT_DMA ((int64_t)64 << 20)
#define PAGE_PRESENT ((uint64_t)1 << 63)

static mera_status unwritable(mera_context *ctx, const char *path)
{
    return fail(ctx, MERA_STORAGE, "an emulated device cannot write '%s': %s", path, strerror(errno));
}

static mera_status too_many(mera_context *ctx, board_place *p)
{
    p->folder[0] = '\0'; /* the last one looked at is another board's */
    return fail(ctx, MERA_INVALID_ARGUMENT, "there are %d emulated devices already: end some", BOARD_LIMIT);
}

/* A file of so many zeros; its descriptor, -1 if it cannot be made. */
static int make_file(const char *folder, const char *name, int64_t bytes)
{
    char path[PATH_BYTES];
    if (!path_print(path, "%s/%s", folder, name)) return -1;
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0 && ftruncate(fd, bytes) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static bool make_text(const char *folder, const char *name, const char *content, size_t bytes)
{
    const int fd = make_file(folder, name, 0);
    const bool ok = fd >= 0 && write(fd, content, bytes) == (ssize_t)bytes;
    if (fd >= 0) close(fd);
    return ok;
}

static void *map_file(const char *folder, const char *name, int64_t bytes)
{
    const int fd = make_file(folder, name, bytes);
    void *memory = fd >= 0 ? map_shared(fd, bytes) : NULL;
    if (fd >= 0) close(fd);
    return memory;
}

/* The lock that says that the board lives. */
static bool take_life(board_place *p)
{
    p->lock_fd = make_file(p->folder, "board", 0);
    return p->lock_fd >= 0 && flock(p->lock_fd, LOCK_EX) == 0; /* who only looks holds it for an instant */
}

/* Memory of a file that finds no room when it is touched ends the process: so there must be room. */
static mera_status check_room(mera_context *ctx, const char *folder, int64_t bytes)
{
    struct statvfs system;
    if (statvfs(folder, &system) != 0) return unwritable(ctx, folder);
    const double room = (double)system.f_bavail * (double)system.f_frsize;
    if (room >= (double)bytes) return MERA_OK;
    return fail(ctx, MERA_STORAGE,
                "an emulated device needs %lld bytes for DMA in '%s', where %.0f are free: ask for less, or "
                "take another folder",
                (long long)bytes, folder, room);
}

/* ---- emulated ---- */

static mera_status create_emulated(mera_context *ctx, const board_options *o, board_place *p)
{
    char root[PATH_BYTES];
    TRY(runtime_folder(ctx, o->runtime_folder, true, root));
    p->folder_lock_fd = runtime_folder_lock(root);
    if (p->folder_lock_fd < 0) return unwritable(ctx, root);
    int n = 0;
    while (n < BOARD_LIMIT && path_print(p->folder, "%s/board-%d", root, n) && mkdir(p->folder, 0700) != 0) {
        if (errno != EEXIST) return unwritable(ctx, p->folder);
        n++;
    }
    if (n == BOARD_LIMIT) return too_many(ctx, p);
    snprintf(p->address, sizeof p->address, "emulated:%d", n);
    TRY(check_room(ctx, p->folder, p->dma_bytes + BOARD_FILE_BYTES));
    uint8_t *bar = map_file(p->folder, "bar", BOARD_FILE_BYTES);
    p->bar = (volatile uint32_t *)bar;
    p->bar_bytes = BOARD_FILE_BYTES;
    p->dma = map_file(p->folder, "dma", p->dma_bytes);
    if (!bar || !p->dma || !take_life(p)) return unwritable(ctx, p->folder);
    p->wires = (board_wires *)(bar + DNA_ID_BAR_BYTES);
    p->wires->dma_bytes = (uint64_t)p->dma_bytes;
    return MERA_OK;
}

/* ---- as if on PCI Express ---- */

static bool make_folders(char *path)
{
    for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        const bool ok = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!ok) return false;
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

/* A pseudo-terminal as a UIO device: 4 bytes to be read an interrupt. Without one, the driver polls. */
static void make_uio(board_place *p, const char *root, int n)
{
    char folder[PATH_BYTES], other[64];
    struct termios raw;
    const int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return;
    if (grantpt(fd) != 0 || unlockpt(fd) != 0 || ptsname_r(fd, other, sizeof other) != 0 || tcgetattr(fd, &raw) != 0 ||
        !path_print(folder, "%s/uio/uio%d", p->folder, n) || !make_folders(folder) ||
        !path_print(p->uio_link, "%s/dev/uio%d", root, n)) {
        close(fd);
        return;
    }
    cfmakeraw(&raw);
    unlink(p->uio_link);
    if (tcsetattr(fd, TCSANOW, &raw) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && symlink(other, p->uio_link) == 0)
        p->interrupt_fd = fd;
    else
        close(fd);
}

/* What the driver will read of the addresses of its DMA memory: each two pages exchanged, so that none follows another. */
static bool make_pagemap(const board_place *p, const char *root, uint32_t bdf)
{
    char path[PATH_BYTES];
    const uint64_t pages = (uint64_t)(p->dma_bytes / p->page_bytes), first = BUS_BASE / (uint64_t)p->page_bytes;
    uint64_t entries[512];
    const off_t start = (off_t)(dma_hint(bdf) / (uint64_t)p->page_bytes * sizeof *entries);
    const int fd = path_print(path, "%s/pagemap", root) ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    bool ok = fd >= 0;
    for (uint64_t page = 0; page < pages && ok; page += 512) {
        const uint64_t n = pages - page < 512 ? pages - page : 512;
        for (uint64_t k = 0; k < n; k++) entries[k] = PAGE_PRESENT | (first + ((page + k) ^ 1));
        const size_t bytes = (size_t)n * sizeof *entries;
        ok = pwrite(fd, entries, bytes, start + (off_t)(page * sizeof *entries)) == (ssize_t)bytes;
    }
    if (fd >= 0) close(fd);
    return ok;
}

static bool make_device(const board_place *p)
{
    char content[256];
    const uint8_t config[256] = {0};
    int length = snprintf(content, sizeof content, "0x%04x\n", DNA_ID_VENDOR);
    bool ok = make_text(p->folder, "vendor", content, (size_t)length);
    length = snprintf(content, sizeof content, "0x%04x\n", DNA_ID_DEVICE);
    ok = ok && make_text(p->folder, "device", content, (size_t)length);
    length = snprintf(content, sizeof content, "0x%016llx 0x%016llx 0x%016llx\n", 0xf0000000ull,
                      0xf0000000ull + DNA_ID_BAR_BYTES - 1, 0x40200ull);
    ok = ok && make_text(p->folder, "resource", content, (size_t)length);
    return ok && make_text(p->folder, "enable", "0\n", 2) &&
           make_text(p->folder, "config", (const char *)config, sizeof config);
}

/* Whether a board that lives has the folder already. */
static bool taken(const char *folder)
{
    char path[PATH_BYTES];
    const int fd = path_print(path, "%s/board", folder) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return false;
    const bool locked = flock(fd, LOCK_SH | LOCK_NB) != 0;
    close(fd);
    return locked;
}

static mera_status create_pcie(mera_context *ctx, const board_options *o, board_place *p)
{
    char path[PATH_BYTES];
    uint32_t bdf = 0;
    if (!path_print(path, "%s/sys/bus/pci/devices", o->pcie_root) || !make_folders(path)) return unwritable(ctx, path);
    p->folder_lock_fd = runtime_folder_lock(o->pcie_root);
    if (p->folder_lock_fd < 0) return unwritable(ctx, o->pcie_root);
    int n = 0;
    do {
        n++;
        if (n > BOARD_LIMIT) return too_many(ctx, p);
        snprintf(p->address, sizeof p->address, "pcie:0000:%02x:00.0", (unsigned)n);
        if (!path_print(p->folder, "%s/sys/bus/pci/devices/0000:%02x:00.0", o->pcie_root, (unsigned)n))
            return unwritable(ctx, path);
    } while (taken(p->folder));
    bool ok = make_folders(p->folder) && take_life(p) && parse_bdf(p->address + strlen("pcie:"), &bdf);
    ok = ok && path_print(path, "%s/dev", o->pcie_root) && make_folders(path);
    ok = ok && path_print(path, "%s/hugepages", o->pcie_root) && make_folders(path);
    ok = ok && path_print(p->dma_file, "%s/mera_torch-%s", path, p->address + strlen("pcie:"));
    p->bar = ok ? map_file(p->folder, "resource0", DNA_ID_BAR_BYTES) : NULL;
    p->bar_bytes = DNA_ID_BAR_BYTES;
    if (!p->bar || !make_pagemap(p, o->pcie_root, bdf)) return unwritable(ctx, p->folder);
    p->swapped = true;
    make_uio(p, o->pcie_root, n);
    return make_device(p) ? MERA_OK : unwritable(ctx, p->folder);
}

/* ---- both ---- */

mera_status board_place_create(mera_context *ctx, const board_options *o, board_place *p)
{
    p->page_bytes = sysconf(_SC_PAGESIZE);
    p->dma_bytes = ceil_div(o->dma_bytes ? o->dma_bytes : DEFAULT_DMA, 16 * p->page_bytes) * 16 * p->page_bytes;
    return o->pcie_root ? create_pcie(ctx, o, p) : create_emulated(ctx, o, p);
}

void board_place_announce(board_place *p)
{
    close(p->folder_lock_fd);
    p->folder_lock_fd = -1;
}

void board_place_destroy(board_place *p)
{
    static const char *const files[] = {"bar",      "dma",    "resource0", "vendor", "device",
                                        "resource", "enable", "config",    "board"};
    char path[PATH_BYTES];
    if (p->folder[0] && (p->lock_fd >= 0 || p->folder_lock_fd >= 0)) { /* it is this board's own */
        for (size_t k = 0; k < sizeof files / sizeof *files; k++)
            if (path_print(path, "%s/%s", p->folder, files[k])) unlink(path);
        if (p->uio_link[0]) {
            unlink(p->uio_link);
            if (path_print(path, "%s/uio/%s", p->folder, strrchr(p->uio_link, '/') + 1)) rmdir(path);
            if (path_print(path, "%s/uio", p->folder)) rmdir(path);
        }
        rmdir(p->folder);
    }
    if (p->lock_fd >= 0) close(p->lock_fd);
    if (p->bar) munmap((void *)(uintptr_t)p->bar, (size_t)p->bar_bytes);
    if (p->dma) munmap(p->dma, (size_t)p->dma_bytes);
    if (p->interrupt_fd >= 0) close(p->interrupt_fd);
    if (p->folder_lock_fd >= 0) close(p->folder_lock_fd);
}

bool board_map_dma(board_place *p)
{
    if (!p->dma_file[0]) return p->dma != NULL;
    if (p->dma) munmap(p->dma, (size_t)p->dma_bytes);
    p->dma = NULL;
    struct stat file;
    const int fd = open(p->dma_file, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    if (fstat(fd, &file) == 0 && S_ISREG(file.st_mode) && file.st_size > 0) {
        p->dma_bytes = file.st_size;
        p->dma = map_shared(fd, p->dma_bytes);
    }
    close(fd);
    return p->dma != NULL;
}

void board_interrupt(board_place *p, uint32_t count)
{
    if (p->wires) {
        __atomic_fetch_add(&p->wires->interrupt, 1, __ATOMIC_SEQ_CST);
        futex_wake(&p->wires->interrupt);
    } else if (p->interrupt_fd >= 0 && write(p->interrupt_fd, &count, sizeof count) < 0) {
        /* Nobody listens: the driver polls as well. */
    }
}

void board_sleep(board_place *p, uint32_t bell, int64_t microseconds)
{
    uint8_t asked[64]; /* the driver's "let the next interrupt through" */
    while (p->interrupt_fd >= 0 && read(p->interrupt_fd, asked, sizeof asked) == (ssize_t)sizeof asked) continue;
    if (p->wires)
        futex_wait(&p->wires->bell, bell, microseconds);
    else
        sleep_us(microseconds);
}
