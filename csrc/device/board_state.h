/* board_state.h: the state of an emulated board. board.c: registers and rings; board_exec.c: what descriptors do;
 * board_files.c: where it can be found. */
#ifndef MERA_DEVICE_BOARD_STATE_H
#define MERA_DEVICE_BOARD_STATE_H

#include "board.h"
#include "transport.h"

enum { BOARD_SLOTS_DEFAULT = 64 };

struct mera_program;
struct mera_simulator;

typedef struct board_slot {
    struct mera_program *program; /* NULL: free */
    struct mera_simulator *simulator;
    uint64_t code, code_bytes, memory, memory_bytes, constant_bytes;
    uint32_t code_crc, constant_crc;
} board_slot;

typedef struct board_ring {
    uint64_t base;
    uint32_t size, at; /* at: submission: head; completion: tail */
} board_ring;

/* Where a board can be found, and its wires to the host. */
typedef struct board_place {
    char address[64], folder[PATH_BYTES];
    int lock_fd, folder_lock_fd; /* that it lives; that nobody else changes the folder of boards */
    volatile uint32_t *bar;
    int64_t bar_bytes;
    board_wires *wires; /* NULL: the host is not told to ring a bell, the board looks at its registers */
    uint8_t *dma;
    int64_t dma_bytes, page_bytes;
    bool swapped;              /* pages lie on the bus with each two exchanged */
    char dma_file[PATH_BYTES]; /* mapped when the rings are enabled; "" : `dma` is there from the start */
    int interrupt_fd;          /* the board's end of what the driver takes for a UIO device, or -1 */
    char uio_link[PATH_BYTES];
} board_place;

struct dna_board {
    mera_context *ctx;
    board_options options;
    board_place place;
    uint8_t *memory, *sram;
    int64_t memory_bytes;
    int32_t *accumulators, *window_sums;
    uint8_t *scratch;
    size_t scratch_bytes;
    board_slot *slots;
    int32_t slot_count;

    bool enabled, hung, dead, complete_pending;
    board_ring submit, complete;
    uint32_t reset_done, latched, heartbeat, interrupt_count;
    uint64_t counters[COUNTER_COUNT], chain_start[COUNTER_COUNT];
    bool in_chain;
    uint32_t chain_sequence, chain_error, chain_index, chain_length;
    uint64_t chain_detail;
    int64_t runs, loads, interrupts;
};

/* ---- board.c ---- */
uint32_t board_get(const dna_board *b, uint32_t offset);
void board_set(dna_board *b, uint32_t offset, uint32_t value);
bool board_reset_asked(const dna_board *b);
/* What must go on while a program runs: heartbeat, latched counters. */
void board_breathe(dna_board *b);

/* ---- board_exec.c ---- */
/* Device memory and machine; slots. */
mera_status board_machine_create(dna_board *b);
void board_machine_destroy(dna_board *b);
void board_forget_programs(dna_board *b);
/* Does what a descriptor asks for; the error, and its detail. */
device_error board_execute(dna_board *b, const uint8_t descriptor[DNA_ID_DESCRIPTOR_BYTES], uint64_t *detail);
/* The part of [bus, bus + bytes) that begins there and is one piece of memory; NULL if the bus has nothing there. */
uint8_t *board_host(const dna_board *b, uint64_t bus, uint64_t bytes, uint64_t *piece);

/* ---- board_files.c ---- */
mera_status board_place_create(mera_context *ctx, const board_options *options, board_place *place);
void board_place_announce(board_place *place); /* from now on others look at it */
void board_place_destroy(board_place *place);
/* The driver's DMA memory, if it is the driver that provides it. */
bool board_map_dma(board_place *place);
void board_interrupt(board_place *place, uint32_t count);
void board_sleep(board_place *place, uint32_t bell, int64_t microseconds);

#endif
