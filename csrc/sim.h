/* sim.h: the Simulator's two halves: what instructions do (sim_exec.c), and when (sim_time.c). Timing does not depend on
 * data, so it is simulated once; a run executes the instructions in the order in which they completed. */
#ifndef MERA_SIM_H
#define MERA_SIM_H

#include "kernels.h"
#include "program.h"

struct mera_simulator {
    mera_object object;
    arena memory;
    mera_program *program;
    uint8_t *sram, *dram; /* dram: constants, inputs, outputs, scratch */
    /* execution */
    int32_t *accumulators; /* [unit][512][W] */
    int32_t *window_sums;  /* [unit][2][W]: sums and counts of a mean in several instructions */
    uint8_t *scratch;
    size_t scratch_bytes;
    /* timing */
    bool timed, borrowed; /* borrowed: the timing belongs to another simulator, which lives longer */
    int32_t *completion_order;
    mera_event *events; /* one an instruction but sync, in order of start */
    int64_t event_count;
    mera_layer_stats *layers;
    int64_t *cycles; /* [queue][node, and none][kind] */
    int64_t cycle_count;
    VEC(mera_stall) stalls;
    mera_stats stats;
};

/* Scratch memory that execution needs for the largest instruction. */
size_t exec_scratch_bytes(const mera_program *p);
void exec_instr(mera_simulator *s, const instr *i);
/* For programs that several contexts run at once. `timing` times the program now, and cannot run; simulators that share it
 * run on contexts of their own, and read it only. Timing and program must live longer than they do. */
mera_status simulator_timing(mera_context *ctx, mera_program *program, mera_simulator **timing);
mera_status simulator_share(mera_context *ctx, const mera_simulator *timing, mera_simulator **simulator);
/* Fills completion_order, events, layers, cycles, stalls, stats. MERA_DEADLOCK if queues wait for each other. */
mera_status time_program(mera_simulator *s);

#endif
