/* board.h: a board without hardware. It has the registers of a board, in a file that the driver maps, and executes the
 * programs in its memory with the simulator: bits and cycles. One thread serves it. */
#ifndef MERA_DEVICE_BOARD_H
#define MERA_DEVICE_BOARD_H

#include "../mera.h"

/* ---- cffi: begin ---- */

typedef struct dna_board dna_board;

/* 0 or NULL stands for the default of each, and for no fault. Runs and loads are counted from 1; a fault happens once. */
typedef struct board_options {
    mera_platform platform;
    const char *runtime_folder; /* as in device_options */
    const char *pcie_root;      /* not NULL: pretends to be on PCI Express, with sysfs, devices and pagemap in this folder */
    int64_t memory_bytes;       /* device memory; default: 8 GiB */
    int64_t dma_bytes;          /* host memory for DMA; default: 64 MiB */
    int32_t slots;              /* default: 64 */
    int32_t garbage;            /* 1: identifies itself with nonsense */
    int64_t hang_at_run;        /* does not complete that run, until it is reset */
    int64_t die_at_run;         /* board_serve gives MERA_DEVICE_FAULT then: its process shall end without cleaning up */
    int64_t flip_code_at_load;  /* flips a bit of the instructions as that program is loaded */
    int64_t flip_constants_at_load;
    int64_t flip_memory_after_run; /* flips a bit of the program that ran, in device memory */
    int64_t lose_interrupt;        /* that interrupt never arrives */
    int64_t slow_ms;               /* every run takes that much longer */
} board_options;

mera_status board_create(mera_context *ctx, const board_options *options, dna_board **board);
void board_destroy(dna_board *board);              /* NULL is allowed; takes the board out of the folder */
const char *board_address(const dna_board *board); /* as the driver knows it: "emulated:0", "pcie:0000:01:00.0" */
/* Does what the driver asks for, for about so long; sleeps when there is nothing to do. */
mera_status board_serve(dna_board *board, int64_t milliseconds);

/* ---- cffi: end ---- */

#endif
