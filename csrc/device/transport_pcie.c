/* transport_pcie.c: boards on PCI Express, through sysfs alone: BAR 0 is mapped from the file resource0, physical addresses
 * of huge pages come from pagemap, interrupts from a UIO device if a UIO driver is bound to the board; else it polls. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "transport.h"

#define HUGETLBFS 0x958458f6 /* statfs's f_type */
#define DEFAULT_DMA_BYTES ((int64_t)64 << 20)
#define PAGE_PRESENT ((uint64_t)1 << 63)
#define PAGE_FRAME (((uint64_t)1 << 55) - 1)
#define COMMAND_OFFSET 4 /* in configuration space */
#define COMMAND_MEMORY_MASTER 6
enum { POLL_FIRST_US = 10, POLL_MOST_US = 500 };

typedef struct pcie {
    char folder[PATH_BYTES], dma_file[PATH_BYTES];
    int uio_fd;
} pcie;

static const char *or_default(const char *given, const char *otherwise) { return given ? given : otherwise; }

bool parse_bdf(const char *text, uint32_t *bdf)
{
    unsigned domain, bus, device, function;
    char behind;
    if (sscanf(text, "%4x:%2x:%2x.%1x%c", &domain, &bus, &device, &function, &behind) != 4) return false;
    *bdf = (domain & 0xffff) << 16 | bus << 8 | (device & 31) << 3 | (function & 7);
    return true;
}

/* ---- discovery ---- */

static bool read_number(const char *folder, const char *file, uint32_t *value)
{
    char path[PATH_BYTES], content[64], *end;
    if (!path_print(path, "%s/%s", folder, file) || !read_small_file(path, content, sizeof content)) return false;
    const unsigned long long number = strtoull(content, &end, 0);
    *value = (uint32_t)number;
    return end != content && number <= UINT32_MAX;
}

static bool is_ours(const device_options *options, const char *folder, uint32_t *vendor, uint32_t *device)
{
    return read_number(folder, "vendor", vendor) && read_number(folder, "device", device) &&
           *vendor == (options->vendor_id ? options->vendor_id : (uint32_t)DNA_ID_VENDOR) &&
           *device == (options->device_id ? options->device_id : (uint32_t)DNA_ID_DEVICE);
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static mera_status add_if_ours(mera_context *ctx, const device_options *options, const char *folder, const char *name,
                               address_vec *found)
{
    char path[PATH_BYTES];
    uint32_t vendor, device, bdf;
    if (!parse_bdf(name, &bdf) || !path_print(path, "%s/%s", folder, name) || !is_ours(options, path, &vendor, &device))
        return MERA_OK;
    const size_t bytes = strlen(name) + sizeof "pcie:";
    char *address = ctx_alloc(ctx, bytes);
    if (!address) return out_of_memory(ctx);
    snprintf(address, bytes, "pcie:%s", name);
    if (vec_push(ctx, found, address)) return MERA_OK;
    ctx_free(ctx, address);
    return out_of_memory(ctx);
}

static mera_status list(mera_context *ctx, const device_options *options, address_vec *found)
{
    char folder[PATH_BYTES];
    if (!path_print(folder, "%s/bus/pci/devices", or_default(options->sysfs, "/sys")))
        return fail(ctx, MERA_INVALID_ARGUMENT, "the path of sysfs is too long");
    DIR *devices = opendir(folder);
    if (!devices) return MERA_OK; /* a machine without PCI */
    const size_t before = found->count;
    mera_status status = MERA_OK;
    const struct dirent *entry;
    while (status == MERA_OK && (entry = readdir(devices))) status = add_if_ours(ctx, options, folder, entry->d_name, found);
    closedir(devices);
    if (found->count > before) qsort(found->at + before, found->count - before, sizeof *found->at, by_text);
    return status;
}

/* ---- registers ---- */

static mera_status map_registers(mera_context *ctx, transport *t, const pcie *p)
{
    char path[PATH_BYTES], content[256];
    unsigned long long first = 0, last = 0, flags = 0;
    const unsigned long long is_memory = 0x200; /* IORESOURCE_MEM */
    if (!path_print(path, "%s/resource", p->folder) || !read_small_file(path, content, sizeof content) ||
        sscanf(content, "%llx %llx %llx", &first, &last, &flags) != 3 || !(flags & is_memory) || last < first ||
        last - first + 1 < DNA_ID_BAR_BYTES)
        return fail(ctx, MERA_DEVICE_FAULT, "device %s: its BAR 0 is no memory of at least %d bytes ('%s')", t->address,
                    DNA_ID_BAR_BYTES, path);
    if (!path_print(path, "%s/resource0", p->folder))
        return fail(ctx, MERA_INVALID_ARGUMENT, "the path of sysfs is too long");
    t->bar_fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
    if (t->bar_fd < 0)
        return fail(ctx, MERA_STORAGE, "device %s: '%s' cannot be opened: %s; that takes root, or a rule of udev",
                    t->address, path, strerror(errno));
    struct stat file;
    if (fstat(t->bar_fd, &file) != 0 || file.st_size < DNA_ID_BAR_BYTES)
        return fail(ctx, MERA_DEVICE_FAULT, "device %s: '%s' is shorter than %d bytes", t->address, path, DNA_ID_BAR_BYTES);
    t->bar = map_shared(t->bar_fd, DNA_ID_BAR_BYTES);
    if (t->bar) return MERA_OK;
    return fail(ctx, MERA_STORAGE, "device %s: '%s' cannot be mapped: %s", t->address, path, strerror(errno));
}

/* Lets the board answer to its addresses and reach memory by itself. */
static mera_status enable(mera_context *ctx, const transport *t, const pcie *p)
{
    char path[PATH_BYTES], content[8];
    bool ok = path_print(path, "%s/enable", p->folder) && read_small_file(path, content, sizeof content);
    if (ok && content[0] == '0') {
        const int fd = open(path, O_WRONLY | O_CLOEXEC);
        ok = fd >= 0 && write(fd, "1", 1) == 1;
        if (fd >= 0) close(fd);
    }
    if (!ok) return fail(ctx, MERA_STORAGE, "device %s: it cannot be enabled through '%s'", t->address, path);
    uint8_t command[2];
    ok = path_print(path, "%s/config", p->folder);
    const int fd = ok ? open(path, O_RDWR | O_CLOEXEC) : -1;
    ok = fd >= 0 && pread(fd, command, sizeof command, COMMAND_OFFSET) == (ssize_t)sizeof command;
    if (ok && (command[0] & COMMAND_MEMORY_MASTER) != COMMAND_MEMORY_MASTER) {
        command[0] |= COMMAND_MEMORY_MASTER;
        ok = pwrite(fd, command, sizeof command, COMMAND_OFFSET) == (ssize_t)sizeof command;
    }
    if (fd >= 0) close(fd);
    if (ok) return MERA_OK;
    return fail(ctx, MERA_STORAGE, "device %s: it cannot be made bus master through '%s'", t->address, path);
}

/* ---- memory for DMA ---- */

/* Pages of a file in the folder given; the file's name is the board's, which is ours alone. */
static mera_status map_file_pages(mera_context *ctx, const device_options *options, transport *t, int64_t bytes, void *hint)
{
    char *path = ((pcie *)t->own)->dma_file;
    struct statfs system;
    if (!path_print(path, "%s/mera_torch-%s", options->hugepages, t->address + strlen("pcie:")))
        return fail(ctx, MERA_INVALID_ARGUMENT, "the path of huge pages is too long");
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return fail(ctx, MERA_STORAGE, "DMA memory '%s' cannot be opened: %s", path, strerror(errno));
    const bool known = fstatfs(fd, &system) == 0, huge = known && (uint64_t)system.f_type == HUGETLBFS;
    if (!huge && !options->pagemap) { /* whoever gives a pagemap of their own answers for what it says */
        close(fd);
        return fail(ctx, MERA_INVALID_ARGUMENT,
                    "DMA memory '%s' is not on hugetlbfs: its pages could move while the device writes to them", path);
    }
    const int64_t grain = known && system.f_bsize > 0 ? (int64_t)system.f_bsize : t->page_bytes;
    t->dma_bytes = ceil_div(bytes, max_i64(grain, t->page_bytes)) * max_i64(grain, t->page_bytes);
    void *memory = MAP_FAILED;
    if (ftruncate(fd, t->dma_bytes) == 0)
        memory = mmap(hint, (size_t)t->dma_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    const int error = errno;
    close(fd);
    if (memory == MAP_FAILED)
        return fail(ctx, MERA_OUT_OF_MEMORY, "DMA memory: %lld bytes of '%s' cannot be had: %s", (long long)t->dma_bytes,
                    path, strerror(error));
    t->dma = memory;
    return MERA_OK;
}

static mera_status map_anonymous_pages(mera_context *ctx, transport *t, int64_t bytes, void *hint)
{
    const int64_t huge = (int64_t)2 << 20;
    t->dma_bytes = ceil_div(bytes, huge) * huge;
    void *memory = mmap(hint, (size_t)t->dma_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE | MAP_LOCKED, -1, 0);
    if (memory == MAP_FAILED)
        return fail(ctx, MERA_OUT_OF_MEMORY,
                    "DMA memory: %lld bytes of huge pages cannot be had: %s; reserve %lld of them in "
                    "/proc/sys/vm/nr_hugepages, or give a folder on hugetlbfs",
                    (long long)t->dma_bytes, strerror(errno), (long long)(t->dma_bytes / huge));
    t->dma = memory;
    return MERA_OK;
}

/* The bus address of every page of DMA memory: without an IOMMU, its physical one. */
static mera_status find_frames(mera_context *ctx, const device_options *options, transport *t)
{
    const char *path = or_default(options->pagemap, "/proc/self/pagemap");
    const size_t pages = (size_t)(t->dma_bytes / t->page_bytes), bytes = pages * sizeof *t->frames;
    t->frames = ctx_alloc(ctx, bytes);
    if (!t->frames) return out_of_memory(ctx);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const off_t first = (off_t)((uintptr_t)t->dma / (uintptr_t)t->page_bytes * sizeof *t->frames);
    size_t done = 0;
    while (fd >= 0 && done < bytes) {
        const ssize_t got = pread(fd, (uint8_t *)t->frames + done, bytes - done, first + (off_t)done);
        if (got <= 0) break;
        done += (size_t)got;
    }
    if (fd >= 0) close(fd);
    if (done < bytes) return fail(ctx, MERA_STORAGE, "physical addresses of DMA memory cannot be read from '%s'", path);
    for (size_t k = 0; k < pages; k++) {
        if (!(t->frames[k] & PAGE_PRESENT) || !(t->frames[k] & PAGE_FRAME))
            return fail(ctx, MERA_STORAGE, "'%s' does not tell physical addresses: that takes the capability SYS_ADMIN",
                        path);
        t->frames[k] = (t->frames[k] & PAGE_FRAME) * (uint64_t)t->page_bytes;
    }
    return MERA_OK;
}

/* ---- interrupts ---- */

static int open_uio(const device_options *options, const pcie *p)
{
    char path[PATH_BYTES];
    int fd = -1;
    DIR *uio = path_print(path, "%s/uio", p->folder) ? opendir(path) : NULL;
    const struct dirent *entry;
    while (uio && fd < 0 && (entry = readdir(uio)))
        if (!strncmp(entry->d_name, "uio", 3) && path_print(path, "%s/%s", or_default(options->dev, "/dev"), entry->d_name))
            fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (uio) closedir(uio);
    return fd;
}

/* What the device has done so far. */
static uint32_t ticket(transport *t)
{
    return transport_read(t, REG_COMPLETE_TAIL) << 16 ^ transport_read(t, REG_SUBMIT_HEAD);
}

/* A UIO device becomes readable with an interrupt, and is written to to let the next one through. */
static void wait_uio(transport *t, int fd, uint32_t seen, int64_t microseconds)
{
    uint32_t count, on = 1;
    ssize_t done = write(fd, &on, sizeof on);
    if (ticket(t) != seen) return;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (poll(&wait, 1, (int)min_i64(microseconds / 1000 + 1, INT32_MAX)) > 0 && (wait.revents & POLLIN))
        done = read(fd, &count, sizeof count);
    (void)done;
}

/* Looks at the registers, ever less often. */
static void wait_poll(transport *t, uint32_t seen, int64_t microseconds)
{
    const int64_t end = now_us() + microseconds;
    int64_t pause = POLL_FIRST_US;
    while (ticket(t) == seen && now_us() < end) {
        sleep_us(pause);
        pause = min_i64(2 * pause, POLL_MOST_US);
    }
}

static void wait_for_interrupt(transport *t, uint32_t seen, int64_t microseconds)
{
    const pcie *p = t->own;
    if (p->uio_fd >= 0)
        wait_uio(t, p->uio_fd, seen, microseconds);
    else
        wait_poll(t, seen, microseconds);
}

/* ---- a board ---- */

static mera_status open_board(mera_context *ctx, const device_options *options, bool exclusive, transport *t)
{
    const char *name = t->address + strlen("pcie:");
    uint32_t bdf;
    pcie *p = t->own = ctx_alloc_zeroed(ctx, sizeof *p);
    if (!p) return out_of_memory(ctx);
    p->uio_fd = -1;
    if (!parse_bdf(name, &bdf) ||
        !path_print(p->folder, "%s/bus/pci/devices/%s", or_default(options->sysfs, "/sys"), name) ||
        access(p->folder, F_OK) != 0)
        return fail(ctx, MERA_DEVICE_ABSENT, "there is no device %s", t->address);
    if (!is_ours(options, p->folder, &t->vendor_id, &t->device_id))
        return fail(ctx, MERA_DEVICE_ABSENT, "device %s is no DNA board: vendor 0x%04x, device 0x%04x", t->address,
                    (unsigned)t->vendor_id, (unsigned)t->device_id);
    TRY(map_registers(ctx, t, p));
    if (!exclusive) return MERA_OK;
    TRY(transport_lock(ctx, t));
    TRY(enable(ctx, t, p));
    const int64_t bytes = options->dma_bytes ? options->dma_bytes : DEFAULT_DMA_BYTES;
    void *hint = (void *)(uintptr_t)dma_hint(bdf);
    TRY(options->hugepages ? map_file_pages(ctx, options, t, bytes, hint) : map_anonymous_pages(ctx, t, bytes, hint));
    TRY(find_frames(ctx, options, t));
    p->uio_fd = open_uio(options, p);
    t->interrupts = p->uio_fd >= 0;
    return MERA_OK;
}

static void close_board(transport *t)
{
    const pcie *p = t->own;
    if (t->bar) munmap((void *)(uintptr_t)t->bar, DNA_ID_BAR_BYTES);
    if (t->dma) munmap(t->dma, (size_t)t->dma_bytes);
    if (p && p->uio_fd >= 0) close(p->uio_fd);
    if (p && p->dma_file[0]) unlink(p->dma_file);
}

/* What has left the bus reads as ones. */
static bool alive(transport *t) { return transport_read(t, REG_MAGIC) != UINT32_MAX; }

const transport_kind transport_pcie = {
    .name = "pcie",
    .list = list,
    .open = open_board,
    .close = close_board,
    .ticket = ticket,
    .wait = wait_for_interrupt,
    .alive = alive,
};
