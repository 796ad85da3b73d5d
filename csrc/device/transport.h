/* transport.h: how the driver reaches a board: its registers, memory that both see, interrupts, exclusive use. */
#ifndef MERA_DEVICE_TRANSPORT_H
#define MERA_DEVICE_TRANSPORT_H

#include <sys/types.h>

#include "driver.h"
#include "regs.h"

typedef struct transport transport;
struct transport {
    const struct transport_kind *kind;
    char address[64];
    int bar_fd;
    volatile uint32_t *bar;
    uint8_t *dma; /* host memory that the device reaches; NULL if the board is only looked at */
    int64_t dma_bytes;
    uint64_t *frames; /* bus address of each page of it; NULL: it begins at first_frame and has no gaps */
    uint64_t first_frame;
    int64_t page_bytes;
    uint32_t vendor_id, device_id; /* as the bus gives them; 0: as the registers say */
    bool interrupts;
    void *own; /* the kind's */
};

typedef VEC(char *) address_vec;

typedef struct transport_kind {
    const char *name;
    /* Appends the address of every board; the texts are ctx_alloc'ed. */
    mera_status (*list)(mera_context *ctx, const device_options *options, address_vec *found);
    /* Maps the registers; if exclusive, locks the board and maps memory for DMA. */
    mera_status (*open)(mera_context *ctx, const device_options *options, bool exclusive, transport *t);
    void (*close)(transport *t);
    void (*ring)(transport *t); /* after registers were written; NULL if the write itself is enough */
    /* A number that changes with every interrupt; waiting returns at once if it is not `seen` any more. */
    uint32_t (*ticket)(transport *t);
    void (*wait)(transport *t, uint32_t seen, int64_t microseconds);
    bool (*alive)(transport *t);
} transport_kind;

extern const transport_kind transport_emulated, transport_pcie;

mera_status transport_list(mera_context *ctx, const device_options *options, address_vec *found);
void address_vec_free(mera_context *ctx, address_vec *addresses);
/* MERA_DEVICE_BUSY if exclusive and another has it. Close with transport_close. */
mera_status transport_open(mera_context *ctx, const device_options *options, const char *address, bool exclusive,
                           transport **out);
void transport_close(mera_context *ctx, transport *t);
/* Whether some process holds the board, and which (0: not known). */
bool transport_busy(const transport *t, pid_t *holder);

uint32_t transport_read(const transport *t, uint32_t offset);
void transport_write(transport *t, uint32_t offset, uint32_t value);
uint64_t transport_read64(const transport *t, uint32_t offset_low);
/* Bus address of a byte of DMA memory, and how many bytes go on from there without a gap (up to `bytes`). */
uint64_t transport_bus(const transport *t, int64_t offset, int64_t bytes, int64_t *contiguous);

/* ---- for the kinds ---- */

/* A path; false if it is too long. */
enum { PATH_BYTES = 1024 };
bool path_print(char *out, const char *format, ...) MERA_PRINTF(2, 3);
/* The start of a small file as text, "" if it cannot be read. */
bool read_small_file(const char *path, char *out, size_t bytes);
mera_status transport_lock(mera_context *ctx, transport *t);
void *map_shared(int fd, int64_t bytes); /* NULL if it cannot be mapped */
int64_t now_us(void);
void sleep_us(int64_t microseconds);

/* ---- what emulated transport and emulated board share ---- */

#define BUS_BASE ((uint64_t)1 << 32) /* where host memory begins on the bus */
enum { BOARD_LIMIT = 64 };           /* emulated boards of one user */

/* The wires of an emulated board: the page behind its registers. */
typedef struct board_wires {
    uint32_t bell;      /* the host counts up when it wrote a register */
    uint32_t interrupt; /* the board counts up when it interrupts */
    uint64_t dma_bytes;
} board_wires;
enum { BOARD_FILE_BYTES = 2 * DNA_ID_BAR_BYTES };

/* The folder of emulated boards; made, private to this user, if `make`. */
mera_status runtime_folder(mera_context *ctx, const char *given, bool make, char out[PATH_BYTES]);
/* Locks it against boards that come and go, and removes what dead boards left there. Closing the result unlocks; -1 if it
 * cannot be locked. */
int runtime_folder_lock(const char *folder);
void futex_wait(uint32_t *word, uint32_t seen, int64_t microseconds);
void futex_wake(uint32_t *word);

/* Where the pcie transport asks for its DMA memory, so that who serves a board without hardware knows it: any address will
 * do. One window a board. */
#define DMA_WINDOW ((uint64_t)1 << 32)
static inline uint64_t dma_hint(uint32_t bdf) { return ((uint64_t)1 << 45) + bdf * DMA_WINDOW; }
/* domain:bus:device.function as one number; false if it is none. */
bool parse_bdf(const char *text, uint32_t *bdf);

#endif
