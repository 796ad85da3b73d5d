/* program.h: what the compiler makes and the simulator (and a device) runs. */
#ifndef MERA_PROGRAM_H
#define MERA_PROGRAM_H

#include "isa.h"

typedef struct program_port {
    const char *name;
    int64_t dram, bytes; /* address and size of the dense NHWC tensor */
} program_port;

typedef struct program_node {
    const char *name, *op, *layer, *source;
    int64_t macs;
} program_node;

/* DRAM: [0, constants) the constants, then inputs, outputs and scratch up to dram_bytes. */
struct mera_program {
    mera_object object;
    arena memory;
    mera_platform platform;
    int64_t sram_peak, dram_bytes, constant_bytes;
    const uint8_t *constants;
    int32_t input_count, output_count, node_count;
    program_port *inputs, *outputs;
    program_node *nodes;
    int64_t code_count;
    instr *code;
    uint8_t *saved;
};

mera_status program_create(mera_context *ctx, mera_program **out);
/* All that loading checks: every instruction in bounds, the interface inside of DRAM. */
mera_status program_validate(mera_program *p);

#endif
