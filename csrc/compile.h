/* compile.h: the second IR, between the DNA graph and the program, and the stages that work on it.
 *
 *   fuse      graph -> layers; every tensor gets a place: a root tensor and strides in it (views cost no copy)
 *   networks  in what order, and on which units, the layers of several independent networks run
 *   plan      every root gets a home, SRAM or DRAM; every layer its row blocks
 *   lower     layers -> jobs (instructions whose addresses are relative to buffers) and buffers
 *   alloc     buffers get addresses; loads of constants and tiles move forward as far as memory allows
 *   schedule  jobs get an order in their queue and waits
 * compile.c is the list of them.
 */
#ifndef MERA_COMPILE_H
#define MERA_COMPILE_H

#include "graph.h"
#include "isa.h"
#include "program.h"
#include "quantmath.h"

/* A root is a tensor that has memory of its own; all other tensors are views into roots. */
typedef struct root {
    int32_t tensor;   /* of the graph: names the root in reports */
    int64_t shape[4]; /* dense NHWC */
    int64_t bytes;
    bool constant, is_input, is_output; /* is_output: the graph's output region is its DRAM home */
    int32_t first_layer, last_layer;    /* live range: from the first to the last layer that touches it */
    bool dram;                          /* home */
    int32_t buffer;                     /* while lowering: the SRAM buffer, if resident */
    int32_t dram_buffer;                /* while lowering: the DRAM region, if it has one */
} root;

/* Where a tensor lies in its root: byte offset and byte strides; channels are contiguous (stride 1). */
typedef struct place {
    int32_t root; /* -1: none (weights, tables: packed by the lowering) */
    int64_t offset, sn, sh, sw;
} place;

typedef enum layer_kind { LAYER_CONV, LAYER_WINDOW, LAYER_VECTOR, LAYER_RESIZE, LAYER_COPY, LAYER_VIEW } layer_kind;

/* A copy is a set of rectangular pieces, each with its own strides on both sides (channel strides included). */
typedef struct copy_piece {
    bool fill;
    int32_t value;
    int64_t size[4];
    int32_t in_tensor;
    int64_t in_offset, in_stride[4]; /* relative to the tensor's place */
    int64_t out_offset, out_stride[4];
} copy_piece;

typedef struct layer {
    layer_kind kind;
    int32_t node;           /* the main node */
    int32_t add, lut;       /* fused nodes, or -1 */
    int32_t in[2];          /* tensors; in[1] = -1 if unary */
    int32_t residual;       /* tensor, or -1 */
    int32_t out;            /* tensor */
    int32_t conv_out;       /* CONV with add: the tensor between, whose quantization counts */
    VEC(copy_piece) pieces; /* COPY */
    /* networks */
    int32_t index, network;    /* in the order of the graph; of the independent networks, the one it belongs to */
    int32_t first_unit, units; /* works on so many units, from first_unit on, around the end */
    /* plan */
    int64_t block_rows; /* output rows of one block; 0: the whole tensor, all images, at once */
    bool keep_weights;  /* weights stay in SRAM from block to block */
} layer;

typedef enum buffer_kind { BUFFER_RESIDENT, BUFFER_CONST, BUFFER_STAGE, BUFFER_DRAM } buffer_kind;
typedef struct buffer {
    buffer_kind kind;
    const char *name;
    int64_t bytes;
    int64_t first, last; /* program positions (job numbers) of the first and last access */
    int64_t earliest;    /* the program position before which its load may not move */
    int64_t load;        /* number of the job that loads it, or -1 */
    int64_t position;    /* where alloc moved the load */
    int64_t address;
} buffer;

#define MAX_FIXES 7
typedef struct job {
    instr i;
    int fix_count;
    struct {
        int field;
        int32_t buffer;
    } fix[MAX_FIXES];
    int32_t layer;
    int64_t position; /* in program order, after alloc */
} job;

typedef struct compiler {
    mera_context *ctx;
    mera_graph *graph;
    mera_platform platform;
    mera_options options;
    arena memory;
    VEC(layer) layers;
    VEC(root) roots;
    place *places; /* a tensor each */
    VEC(job) jobs;
    VEC(buffer) buffers;
    VEC(uint8_t) constants;
    int64_t dram_bytes;                    /* inputs, outputs, scratch; constants follow */
    int32_t *input_buffer, *output_buffer; /* DRAM buffers; buffer 0 is the constants */
    /* tunables that compile.c turns when something does not fit */
    int64_t chunk_bytes; /* aim for one load of weights */
    int linger;          /* layers for which a dead resident buffer is not reused */
    int64_t slack;       /* SRAM bytes that plan must leave free, for fragmentation */
    int64_t sram_peak;
    /* networks */
    int32_t networks;  /* that share nothing but inputs and constants */
    bool economical;   /* convolutions keep the sum of the arrays' cycles low, not those of the busiest array */
    bool in_turn;      /* UNITS_IN_TURN */
    int32_t next_unit; /* while lowering: the unit after the last one that an economical convolution took */
    int32_t *order;    /* schedule: job numbers in the order in which they start */
    VEC(instr) code;
} compiler;

mera_status stage_fuse(compiler *c);
void live_ranges(compiler *c); /* of the roots, by layers: again after these have changed places */
mera_status stage_plan(compiler *c);
mera_status stage_lower(compiler *c);
mera_status stage_alloc(compiler *c);  /* MERA_DOES_NOT_FIT asks compile.c to try a smaller plan */
mera_status finish_alloc(compiler *c); /* its end: everything has an address in SRAM, and jobs are in their order */
mera_status stage_schedule(compiler *c);
mera_status stage_program(compiler *c, mera_program **program);

/* ---- several networks in one graph (networks.c) ---- */

typedef enum order_rule {
    ORDER_SEQUENCE,   /* one network after the other */
    ORDER_REVERSED,   /* the last one first */
    ORDER_LEAN_FIRST, /* one after the other, that with the least traffic for its work first */
    ORDER_BY_DRAM,    /* interleaved: all have asked for the same share of their traffic */
    ORDER_BY_UNITS,   /* interleaved: all have done the same share of their work */
    ORDER_BY_BOTH,
    ORDER_BALANCED, /* interleaved: traffic and work of all together stay in proportion */
    ORDER_AS_GIVEN, /* the graph's order */
    ORDER_COUNT
} order_rule;
typedef enum unit_rule {
    UNITS_IN_TURN, /* every network is planned as if it were alone, and a unit begins it when it is done with the one before
                    */
    UNITS_SHARED,  /* every layer works on all units */
    UNITS_ECONOMICAL, /* every convolution on as many as it can use without waste; others do the other networks' work */
    UNITS_DIVIDED,    /* every network has units of its own */
    UNITS_COUNT
} unit_rule;
typedef struct arrangement {
    const int32_t *order; /* of the layers */
    unit_rule units;
} arrangement;
typedef struct layer_cost {
    int64_t dram, units, arrays; /* cycles of DRAM; if all share the work, of the busiest kind of unit, of the arrays */
} layer_cost;

/* Sets c->networks and every layer's network. */
mera_status find_networks(compiler *c);
/* Adds what the lowered jobs cost to costs[layer.index]. */
void add_costs(const compiler *c, layer_cost *costs);
/* Cycles that every arrangement takes, or nearly so: of DRAM or of the arrays, for all layers. */
int64_t floor_of(const compiler *c, const layer_cost *costs);
/* The orders of c's layers by all rules; NULL for those that another rule gives, too. */
mera_status list_orders(compiler *c, const layer_cost *costs, int32_t *orders[ORDER_COUNT]);
/* Leaves the layers of one network. */
void keep_network(compiler *c, int32_t network, bool last);
/* Adds the jobs of a network, allocated, that keep_network left, behind those that c has. */
mera_status add_network(compiler *c, const compiler *one);
/* Puts layers, which are in the graph's order, into the arrangement's. */
mera_status arrange(compiler *c, const layer_cost *costs, const arrangement *a);

/* Independent checkers, always on; a finding is MERA_INTERNAL (in text written by hand: `blame`). */
mera_status check_lower(compiler *c, mera_status blame);
mera_status check_alloc(compiler *c);
mera_status check_schedule(mera_context *ctx, const mera_platform *platform, const instr *code, size_t count);
mera_status check_encoding(compiler *c, const mera_program *program);

/* One line for each layer, buffer, job: the dumps of the stages. */
void print_layers(compiler *c, text *t);
void print_jobs(compiler *c, text *t, bool addresses);
/* Reads what print_jobs printed after lowering into an empty compiler: jobs, buffers and the number of layers. */
mera_status parse_jobs(compiler *c, const char *text, size_t bytes);

/* ---- shared by the lowering's files ---- */

static inline const graph_tensor *tensor_at(const compiler *c, int32_t t) { return &c->graph->tensors.at[t]; }
static inline const graph_node *node_at(const compiler *c, int32_t n) { return &c->graph->nodes.at[n]; }
static inline bool place_is_dense(const place *p, const int64_t s[4])
{
    return (p->sw == s[3] || s[2] == 1) && (p->sh == s[2] * s[3] || s[1] == 1) && (p->sn == s[1] * s[2] * s[3] || s[0] == 1);
}
/* Bytes of weights and parameters that must be in SRAM at once for the layer, at the least and for all of it. */
void layer_weight_bytes(const compiler *c, const layer *l, int64_t *least, int64_t *all);
/* Input rows [*y0, *y1) that output rows [o0, o1) need of operand k (2 = residual). */
void layer_input_rows(const compiler *c, const layer *l, int k, int64_t o0, int64_t o1, int64_t *y0, int64_t *y1);

/* A tensor while a block works on it: rows [y0, y0 + rows) of images [n0, n0 + images) in an SRAM buffer. */
typedef struct operand {
    int32_t tensor;
    int32_t buffer;
    int64_t offset; /* of image n0, row y0 */
    int64_t sn, sh, sw;
    int64_t n0, y0, rows;
} operand;

typedef struct block {
    layer *l;
    int32_t layer_index;
    int64_t n0, images, y0, rows; /* of the output */
    operand in[2], residual, out;
    bool has_residual;
    int32_t param_buffer; /* drain parameters, then the table; loaded once a layer */
    int64_t lut_offset;
    void *state; /* of the layer's lowering, from block to block */
} block;

mera_status add_buffer(compiler *c, buffer_kind kind, const char *name, int64_t bytes, int32_t *index);
mera_status add_job(compiler *c, const block *b, dna_opcode opcode, int queue, job **out); /* valid until the next */
void job_address(job *j, int field, int32_t buffer, int64_t offset);
mera_status add_constant(compiler *c, const void *data, int64_t bytes,
                         int64_t *offset); /* 64-byte aligned, zeroed if data is NULL */
/* A constant chunk: an SRAM buffer, loaded by a job of its own in front of the next job. */
mera_status load_constant(compiler *c, const block *b, int64_t offset, int64_t bytes, const char *name, int32_t *buffer);
/* A DMA request: a 3-deep nest of runs, with count, DRAM stride and SRAM stride of each level. */
mera_status add_move(compiler *c, const block *b, bool load, int32_t dram, int64_t dram_offset, int32_t sram,
                     int64_t sram_offset, int64_t run, const int64_t count[3], const int64_t d[3], const int64_t s[3]);
/* The queue of the k-th unit that the block's layer works on. */
static inline int layer_queue(const compiler *c, const block *b, int64_t k, int kind)
{
    return unit_queue((int)((b->l->first_unit + k) % c->platform.units), kind);
}
mera_status lower_conv(compiler *c, block *b);
void free_conv_state(compiler *c, block *b);
mera_status lower_window(compiler *c, block *b);
mera_status lower_vector(compiler *c, block *b);
mera_status lower_resize(compiler *c, block *b);
/* Every row of a resize comes so many times in a row; 1 for all other layers. In DRAM the DMA repeats them. */
int64_t layer_repeat(const compiler *c, const layer *l);
void resize_input_rows(const compiler *c, const layer *l, int64_t o0, int64_t o1, int64_t *y0, int64_t *y1);
/* The table of the layer's lut or softmax in SRAM, loaded once; nothing if it has none. */
mera_status need_table(compiler *c, block *b);
mera_status lower_copy(compiler *c, layer *l, int32_t index);

typedef struct conv_tile {
    int64_t co0, co;           /* output channels */
    int64_t ci0, run_channels; /* input channels it reads */
} conv_tile;
typedef struct conv_shape {
    int64_t taps_h, taps_w; /* kh, kw as separate runs */
    int64_t pack;           /* pixels of a row that one tile computes at once, each in columns of its own */
    int64_t run;            /* bytes a run, of the widest tile */
    bool merged;            /* a kernel row is one run of kw * Ci bytes */
    int64_t tile_count;
    int64_t group_merge; /* groups handled by one tile (block-diagonal weights) */
} conv_shape;
conv_shape conv_shape_of(const compiler *c, const layer *l);
conv_tile conv_tile_at(const compiler *c, const layer *l, const conv_shape *s, int64_t index);
/* How many pixels of a convolution of few output channels the array had best compute at once, each in columns of its own,
 * if pixels follow each other in memory (1: one by one); the array cycles that it saves. pack may be NULL. */
int64_t conv_pack_gain(const compiler *c, const layer *l, int64_t *pack);
bool layer_is_window(const compiler *c, const graph_node *n);
/* Bytes of drain parameters a channel of a convolution on the arrays. */
int64_t conv_param_bytes(const graph_node *n);
int64_t
const_limit(const compiler *c); /* the most bytes one weight tile may take; larger ones are split along the reduction */

#endif
