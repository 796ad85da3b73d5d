/* mera.h: the public interface of the mera_torch C core, and the only header that anything outside csrc/ may include.
 *
 * Conventions
 *  - Every object belongs to a context. A context and what hangs off it is used by one thread at a time; different
 *    contexts are independent. There are no globals.
 *  - A function that can fail returns a mera_status; on failure mera_last_error(ctx) is one sentence that names the
 *    object concerned, the constraint it broke and the value that broke it. Nothing aborts or prints.
 *  - Tensors are dense, rank 4, NHWC; lower ranks are given leading or inner dimensions of 1 by the caller.
 *  - The header is plain enough for cffi's parser: no macro is needed to read it.
 */
#ifndef MERA_H
#define MERA_H

#include <stddef.h>
#include <stdint.h>

/* ---- cffi: begin ---- */

typedef enum mera_status {
    MERA_OK = 0,
    MERA_INVALID_ARGUMENT = 1, /* a value out of its documented range, a malformed graph */
    MERA_OUT_OF_MEMORY = 2,
    MERA_UNSUPPORTED = 3,  /* well-formed, but the machine has no way to run it; the message names the constraint */
    MERA_DOES_NOT_FIT = 4, /* no tiling fits the platform's SRAM; the message says what would */
    MERA_CORRUPT = 5,      /* a file that is truncated, altered, of another version, or hostile */
    MERA_DEADLOCK = 6,     /* the simulator found queues waiting for each other */
    MERA_INTERNAL = 7,     /* a checker of ours caught a mistake of ours */
    MERA_STATE = 8,        /* a call out of order */
    MERA_STORAGE = 9,      /* a file that cannot be read or written */
    MERA_DEVICE_ABSENT = 10,
    MERA_DEVICE_BUSY = 11, /* in use by another process */
    MERA_DEVICE_FAULT = 12 /* hung, died, identified itself with nonsense, or failed a checksum */
} mera_status;

typedef enum mera_dtype { MERA_INT8 = 0, MERA_INT32 = 1, MERA_BF16 = 2, MERA_FLOAT32 = 3 } mera_dtype;

typedef struct mera_context mera_context;
typedef struct mera_graph mera_graph;
typedef struct mera_program mera_program;
typedef struct mera_interpreter mera_interpreter;
typedef struct mera_simulator mera_simulator;

/* ---- context ---- */

/* Memory comes from malloc, unless fail_after >= 0: then the allocation number fail_after (from 0) and all later ones
 * fail, which is how the allocation-failure tests reach every error path. Returns NULL when out of memory. */
mera_context *mera_context_create(int64_t fail_after);
void mera_context_destroy(mera_context *ctx);         /* NULL is allowed; destroys all that hangs off it */
const char *mera_last_error(const mera_context *ctx); /* never NULL; "" if nothing failed */
const char *mera_core_version(void);
const char *mera_core_build(void);    /* a hash of the sources: two cores of one build compile the same programs */
const char *mera_core_features(void); /* e.g. "openmp; kernels: avx512vnni" */
/* "auto", or the name of a kernel set ("generic", "avx2", "avx512vnni", ...) if this CPU has it; for tests. */
mera_status mera_context_kernels(mera_context *ctx, const char *name);
mera_status mera_context_threads(mera_context *ctx, int32_t threads); /* 0 = all; ignored without OpenMP */
void mera_free_text(mera_context *ctx, char *text);                   /* frees what any *_print or *_dump returned */

/* ---- platforms ---- */

typedef struct mera_platform {
    char name[64];
    int32_t units;               /* 1..16 compute units */
    int32_t array;               /* W: side of the array, and bytes in a word: 16, 32, 64 or 128 */
    double clock_mhz;            /* > 0 */
    int64_t sram_bytes;          /* shared SRAM, a multiple of 1024, at most 1 GiB */
    double dram_gbps;            /* 1e9 bytes per second */
    int32_t bf16;                /* 1 if the platform computes in bf16 */
    int32_t sram_banks;          /* a power of two, 4..256 */
    int32_t dram_latency_cycles; /* from request to first data */
} mera_platform;

int32_t mera_platform_count(void);
const mera_platform *mera_platform_at(int32_t index);
/* Older identifiers accepted as the same machine: alias name -> platform index; NULL past the end. */
const char *mera_platform_alias(int32_t index, int32_t *platform_index);
mera_status mera_platform_check(mera_context *ctx, const mera_platform *platform);

/* The constants that all platforms share, MERA_ARCH of dna_arch.def: name, value, meaning. */
int32_t mera_arch_count(void);
const char *mera_arch_name(int32_t index);
int64_t mera_arch_value(int32_t index);
const char *mera_arch_doc(int32_t index);

/* What the unit of a queue does in a cycle, or why it does nothing, MERA_CYCLE of dna_arch.def: name and meaning. */
int32_t mera_cycle_kind_count(void);
const char *mera_cycle_kind_name(int32_t kind);
const char *mera_cycle_kind_doc(int32_t kind);

/* ---- reflection of dna_ops.def: the operator table ---- */

int32_t mera_op_count(void);
const char *mera_op_name(int32_t op);
int32_t mera_op_min_inputs(int32_t op);
int32_t mera_op_max_inputs(int32_t op);
int32_t mera_op_attr_count(int32_t op);
const char *mera_op_attr_name(int32_t op, int32_t attr);
int64_t mera_op_attr_default(int32_t op, int32_t attr);
const char *mera_op_doc(int32_t op);

/* ---- reflection of dna_isa.def: the instruction table ---- */

int32_t mera_isa_count(void);
const char *mera_isa_name(int32_t opcode);
const char *mera_isa_unit(int32_t opcode);
const char *mera_isa_doc(int32_t opcode);
int32_t mera_isa_field_count(int32_t opcode);
const char *mera_isa_field_name(int32_t opcode, int32_t field);
int32_t mera_isa_field_bits(int32_t opcode, int32_t field); /* negative: signed, of that many bits */
const char *mera_isa_field_doc(int32_t opcode, int32_t field);

/* ---- DNA graph ----
 * Tensors and nodes are numbered from 0 in order of creation. Nodes are given in an order in which they can run.
 * Every int8 tensor that is not a constant table has a quantization: real = scale * (q - zero_point). */

mera_status mera_graph_create(mera_context *ctx, const char *name, mera_graph **graph);
void mera_graph_destroy(mera_graph *graph);
/* shape: 4 dimensions, N H W C (weights: Co Kh Kw Ci/groups), each 1..2^24, at most 2^31-1 elements. */
mera_status mera_graph_tensor(mera_graph *graph, const char *name, mera_dtype dtype, const int64_t shape[4],
                              int32_t *tensor);
/* A constant tensor; the data (bytes = elements * size of dtype, little endian) is copied. */
mera_status mera_graph_constant(mera_graph *graph, const char *name, mera_dtype dtype, const int64_t shape[4],
                                const void *data, size_t bytes, int32_t *tensor);
/* count = 1 (per tensor), or the number of output channels (conv2d weights, zero points all 0). */
mera_status mera_graph_quantize(mera_graph *graph, int32_t tensor, int64_t count, const float *scale,
                                const int32_t *zero_point);
/* attrs: mera_op_attr_count(op) values in the table's order. layer and source are free text for reports: the module
 * path ("layer1.0.conv1") and where it stands in the user's source; NULL is allowed. */
mera_status mera_graph_node(mera_graph *graph, int32_t op, const char *name, const char *layer, const char *source,
                            int32_t input_count, const int32_t *inputs, int32_t output, int32_t attr_count,
                            const int64_t *attrs, int32_t *node);
mera_status mera_graph_input(mera_graph *graph, int32_t tensor);
mera_status mera_graph_output(mera_graph *graph, int32_t tensor);
/* Checks the whole graph: shapes, dtypes, quantization, constraints of every node, order, no unused tensor. */
mera_status mera_graph_finish(mera_graph *graph);

int32_t mera_graph_tensor_count(const mera_graph *graph);
const char *mera_graph_tensor_name(const mera_graph *graph, int32_t tensor);
mera_dtype mera_graph_tensor_dtype(const mera_graph *graph, int32_t tensor);
void mera_graph_tensor_shape(const mera_graph *graph, int32_t tensor, int64_t shape[4]);
int64_t mera_graph_tensor_bytes(const mera_graph *graph, int32_t tensor);
int32_t mera_graph_tensor_is_constant(const mera_graph *graph, int32_t tensor);
float mera_graph_tensor_scale(const mera_graph *graph, int32_t tensor);
int32_t mera_graph_tensor_zero_point(const mera_graph *graph, int32_t tensor);
int32_t mera_graph_node_count(const mera_graph *graph);
int32_t mera_graph_node_op(const mera_graph *graph, int32_t node);
const char *mera_graph_node_name(const mera_graph *graph, int32_t node);
const char *mera_graph_node_layer(const mera_graph *graph, int32_t node);
const char *mera_graph_node_source(const mera_graph *graph, int32_t node);
int32_t mera_graph_node_output(const mera_graph *graph, int32_t node);
int64_t mera_graph_node_macs(const mera_graph *graph, int32_t node);
int32_t mera_graph_input_count(const mera_graph *graph);
int32_t mera_graph_output_count(const mera_graph *graph);
int32_t mera_graph_input_tensor(const mera_graph *graph, int32_t index);
int32_t mera_graph_output_tensor(const mera_graph *graph, int32_t index);

/* Text: printing and parsing are inverse of each other. with_data = 0 prints constants by size and hash only (such a
 * text is for people: it does not parse). */
mera_status mera_graph_print(mera_graph *graph, int32_t with_data, char **text);
mera_status mera_graph_parse(mera_context *ctx, const char *text, size_t bytes, mera_graph **graph);
/* Binary, checksummed; read defensively. The bytes belong to the graph until the next call or its end. */
mera_status mera_graph_save(mera_graph *graph, const uint8_t **data, size_t *bytes);
mera_status mera_graph_load(mera_context *ctx, const uint8_t *data, size_t bytes, mera_graph **graph);

/* ---- compiler ---- */

typedef struct mera_options {
    int32_t mode;                /* 0 = Fast, 1 = Slow */
    int32_t workers;             /* threads of the compiler; the result never depends on it */
    int32_t max_tile_height;     /* 0 = no limit: rows of one DMA tile */
    int32_t max_tile_width;      /* 0 = no limit: columns of one array tile */
    int32_t max_acc_tile_height; /* 0 = no limit: rows of one accumulator tile */
    int32_t max_acc_tile_width;  /* 0 = no limit: columns of one accumulator tile */
} mera_options;

/* Called now and then with the stage's name and done of total; a result other than 0 stops the compilation. */
typedef int32_t (*mera_progress)(void *user, const char *stage, int64_t done, int64_t total);

mera_status mera_compile(mera_graph *graph, const mera_platform *platform, const mera_options *options,
                         mera_progress progress, void *user, mera_program **program);
/* The text of one stage: "graph", "fuse", "tile", "lower", "alloc", "schedule", "isa". */
mera_status mera_compile_dump(mera_graph *graph, const mera_platform *platform, const mera_options *options,
                              const char *stage, char **text);
/* Goes on from the text of stage "lower", written by hand or dumped, to stage "lower", "alloc" or "schedule". */
mera_status mera_compile_text(mera_context *ctx, const mera_platform *platform, const char *text, size_t bytes,
                              const char *stage, char **out);
void mera_program_destroy(mera_program *program);

/* The container: versioned, checksummed, holds code, constants, platform, the interface, the layer table. */
mera_status mera_program_save(mera_program *program, const uint8_t **data, size_t *bytes);
mera_status mera_program_load(mera_context *ctx, const uint8_t *data, size_t bytes, mera_program **program);
mera_status mera_program_print(mera_program *program, char **text); /* assembly */
/* Assembles what mera_program_print printed. */
mera_status mera_program_parse(mera_context *ctx, const char *text, size_t bytes, mera_program **program);
void mera_program_platform(const mera_program *program, mera_platform *platform);
int64_t mera_program_instruction_count(const mera_program *program);
int64_t mera_program_constant_bytes(const mera_program *program);
int64_t mera_program_sram_peak_bytes(const mera_program *program);
int32_t mera_program_input_count(const mera_program *program);
int32_t mera_program_output_count(const mera_program *program);
int64_t mera_program_input_bytes(const mera_program *program, int32_t index);
int64_t mera_program_output_bytes(const mera_program *program, int32_t index);

/* ---- InterpreterHw: runs the DNA graph node by node with the accelerator's arithmetic ---- */

mera_status mera_interpreter_create(mera_graph *graph, mera_interpreter **interpreter);
void mera_interpreter_destroy(mera_interpreter *interpreter);
/* inputs[i], outputs[i]: dense NHWC buffers of mera_graph_tensor_bytes bytes, as given by *_bytes. */
mera_status mera_interpreter_run(mera_interpreter *interpreter, int32_t input_count, const void *const *inputs,
                                 const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                                 const int64_t *output_bytes);
/* After a run with keep_all = 1 set before it, every tensor can be read; otherwise memory is reused and this fails. */
mera_status mera_interpreter_keep_all(mera_interpreter *interpreter, int32_t keep_all);
mera_status mera_interpreter_tensor(mera_interpreter *interpreter, int32_t tensor, const void **data, int64_t *bytes);

/* ---- Simulator: executes the encoded program, bits and cycles ---- */

typedef struct mera_stats {
    int64_t cycles;
    int64_t macs;            /* of the network, as written */
    int64_t dram_bytes_read; /* every byte that DRAM bursts moved */
    int64_t dram_bytes_written;
    int64_t sram_peak_bytes;
    int64_t instructions;
    int64_t bank_conflict_cycles; /* cycles that some engine lost to a busy bank, summed over engines */
    int64_t array_busy_cycles;    /* summed over units */
    int64_t window_busy_cycles;
    int64_t vector_busy_cycles;
    int64_t dma_busy_cycles; /* cycles in which DRAM moved data */
    int64_t sram_words_read; /* accesses of a bank, of W bytes each; a word that several ports read at once is one */
    int64_t sram_words_written;
} mera_stats;

typedef struct mera_layer_stats {
    int32_t node; /* of the program's layer table */
    int64_t start_cycle, end_cycle;
    int64_t array_cycles, window_cycles, vector_cycles; /* busy, summed over units */
    int64_t macs;
    int64_t dram_bytes_read, dram_bytes_written;
} mera_layer_stats;

typedef struct mera_event {
    int32_t queue;       /* index for mera_program_queue_name */
    int32_t node;        /* of the program's layer table */
    int32_t instruction; /* index into the program */
    int32_t opcode;
    int64_t start_cycle, end_cycle;
    int64_t stall_cycles; /* lost to bank conflicts inside it */
} mera_event;

/* The cycles in which a queue's unit (of an array: its feed) had no instruction. */
typedef struct mera_stall {
    int32_t queue;
    int32_t instruction; /* that came next; -1: none */
    int32_t node;        /* of that instruction; -1: none */
    int32_t kind;        /* of mera_cycle_kind_name */
    int64_t start_cycle, end_cycle;
} mera_stall;

mera_status mera_simulator_create(mera_program *program, mera_simulator **simulator);
void mera_simulator_destroy(mera_simulator *simulator);
mera_status mera_simulator_run(mera_simulator *simulator, int32_t input_count, const void *const *inputs,
                               const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                               const int64_t *output_bytes);
/* Timing does not depend on data: it is simulated once, at the first of run, stats, layers or events. */
mera_status mera_simulator_stats(mera_simulator *simulator, mera_stats *stats);
mera_status mera_simulator_layers(mera_simulator *simulator, const mera_layer_stats **layers, int64_t *count);
mera_status mera_simulator_events(mera_simulator *simulator, const mera_event **events, int64_t *count);
/* Every cycle of every queue's unit: cycles[(queue * (nodes + 1) + node) * kinds + kind], where node = nodes stands for
 * none; the cycles of a queue sum to those of the run. */
mera_status mera_simulator_cycles(mera_simulator *simulator, const int64_t **cycles, int64_t *count);
mera_status mera_simulator_stalls(mera_simulator *simulator, const mera_stall **stalls, int64_t *count); /* by end */
int32_t mera_program_node_count(const mera_program *program);
const char *mera_program_node_name(const mera_program *program, int32_t node);
const char *mera_program_node_op(const mera_program *program, int32_t node);
const char *mera_program_node_layer(const mera_program *program, int32_t node);
const char *mera_program_node_source(const mera_program *program, int32_t node);
int32_t mera_program_queue_count(const mera_program *program);
const char *mera_program_queue_name(const mera_program *program, int32_t queue);

/* ---- the host's side of the boundary ---- */

/* float32 NCHW (or NHWC if channels_last) -> int8 NHWC: q = clamp(round_half_even(x / scale) + zero_point).
 * The arithmetic of torch's quantize_per_tensor: x * (1 / scale) in float32. NaN becomes zero_point. */
mera_status mera_quantize_f32(mera_context *ctx, const float *x, const int64_t nhwc[4], int32_t channels_last, float scale,
                              int32_t zero_point, int8_t *q);
/* int8 NHWC -> float32 NCHW (or NHWC): (q - zero_point) * scale. */
mera_status mera_dequantize_i8(mera_context *ctx, const int8_t *q, const int64_t nhwc[4], int32_t channels_last, float scale,
                               int32_t zero_point, float *x);
/* TFLite's QuantizeMultiplier: real = multiplier * 2^(shift - 31). */
void mera_quantize_multiplier(double real, int32_t *multiplier, int32_t *shift);
/* x * real, rounded twice as TOSA's apply_scale_32 with double rounding and TFLite's reference kernels do. */
int32_t mera_requantize(int32_t x, int32_t multiplier, int32_t shift);

/* ---- operators on the host: what a deployment does outside the DNA (csrc/runtime/host.h) ---- */

#define MERA_HOST_MAX_RANK 8

typedef enum mera_host_dtype {
    MERA_HOST_BOOL = 0, /* one byte, 0 or 1 */
    MERA_HOST_UINT8 = 1,
    MERA_HOST_INT8 = 2,
    MERA_HOST_INT16 = 3,
    MERA_HOST_INT32 = 4,
    MERA_HOST_INT64 = 5,
    MERA_HOST_FLOAT16 = 6,
    MERA_HOST_BFLOAT16 = 7,
    MERA_HOST_FLOAT32 = 8,
    MERA_HOST_FLOAT64 = 9
} mera_host_dtype;

/* A dense row-major tensor; shape beyond the rank is 0. */
typedef struct mera_host_tensor {
    mera_host_dtype dtype;
    int32_t rank;
    int64_t shape[8];
} mera_host_tensor;

typedef enum mera_host_kind {
    MERA_HOST_NONE = 0,
    MERA_HOST_FLAG = 1,   /* integer: 0 or 1 */
    MERA_HOST_INT = 2,    /* integer */
    MERA_HOST_REAL = 3,   /* real */
    MERA_HOST_STRING = 4, /* text */
    MERA_HOST_NAME = 5,   /* text: a dtype, layout or memory format of PyTorch: "float32", "strided", "channels_last" */
    MERA_HOST_DEVICE = 6, /* text: "cpu" */
    MERA_HOST_TENSOR = 7, /* integer: the tensor's number */
    MERA_HOST_LIST = 8    /* items[0..integer) */
} mera_host_kind;

typedef struct mera_host_arg {
    mera_host_kind kind;
    int64_t integer;
    double real;
    const char *text;
    const struct mera_host_arg *items;
} mera_host_arg;

/* Reflection of csrc/runtime/host_ops.def. */
int32_t mera_host_op_count(void);
const char *mera_host_op_name(int32_t op);   /* "aten.add.Tensor" */
const char *mera_host_op_schema(int32_t op); /* its parameters, as PyTorch writes them */
int32_t mera_host_op_exact(int32_t op);      /* 1: PyTorch's result to the bit */
const char *mera_host_op_note(int32_t op);   /* what of it is not supported; "" if nothing */

/* One step, planned: see host_plan. */
typedef struct mera_host_step mera_host_step;
mera_status mera_host_step_create(mera_context *ctx, const char *target, int32_t arg_count, const mera_host_arg *args,
                                  int32_t kwarg_count, const char *const *kwarg_names, const mera_host_arg *kwargs,
                                  int32_t tensor_count, const mera_host_tensor *tensors, mera_host_step **step);
void mera_host_step_destroy(mera_host_step *step);
int32_t mera_host_step_many(const mera_host_step *step); /* 1: the results are a list, even if there is one only */
int32_t mera_host_step_result_count(const mera_host_step *step);
const mera_host_tensor *mera_host_step_result(const mera_host_step *step, int32_t index);
int32_t mera_host_step_alias(const mera_host_step *step, int32_t index); /* the tensor whose bytes it has, or -1 */
/* tensors: by number, dense; results: a buffer each, also for those that are aliases. */
mera_status mera_host_step_run(mera_host_step *step, const void *const *tensors, void *const *results);

/* ---- cffi: end ---- */

#endif
