/* isa.h: instructions as the compiler and the simulator hold them, their encoding, and the memory they touch. */
#ifndef MERA_ISA_H
#define MERA_ISA_H

#include "core.h"
#include "rowmath.h"

typedef enum dna_opcode {
#define DNA_INSTR(NAME, name, unit, doc) DNA_OP_##NAME,
#define DNA_FIELD(NAME, field, bits, doc)
#include "dna_isa.def"
    DNA_OPCODE_COUNT
} dna_opcode;

/* Indices into instr.f: CONV_in, LOAD_dram, ... */
#define DNA_INSTR(NAME, name, unit, doc) ISA_BASE_##NAME##_, ISA_RESET_##NAME##_ = -1,
#define DNA_FIELD(NAME, field, bits, doc) NAME##_##field,
enum dna_field {
#include "dna_isa.def"
    ISA_END_
};

#define DNA_MAX_FIELDS 64
#define RESIZE_POSITION_BITS 32 /* behind the point of a resize's y0, dy, x0, dx */

/* Queues: three DMA channels, then an array, a window and a vector queue a unit. */
enum { QUEUE_CONST, QUEUE_LOAD, QUEUE_STORE, QUEUE_UNITS };
enum { UNIT_ARRAY, UNIT_WINDOW, UNIT_VECTOR, UNIT_QUEUES };
#define MAX_UNITS 16
#define MAX_QUEUES (QUEUE_UNITS + UNIT_QUEUES * MAX_UNITS)
static inline int unit_queue(int unit, int kind) { return QUEUE_UNITS + UNIT_QUEUES * unit + kind; }
static inline int queue_count(int units) { return QUEUE_UNITS + UNIT_QUEUES * units; }
/* The kind of unit that a queue feeds: -1 for DMA. */
static inline int queue_kind(int queue) { return queue < QUEUE_UNITS ? -1 : (queue - QUEUE_UNITS) % UNIT_QUEUES; }

typedef struct instr_wait {
    int32_t queue;
    int32_t count;
} instr_wait;

typedef struct instr {
    uint8_t opcode, queue, wait_count;
    int32_t node; /* of the layer table; not encoded: reports only */
    instr_wait waits[DNA_INSTRUCTION_WAITS];
    int64_t f[DNA_MAX_FIELDS];
} instr;

typedef struct isa_field {
    const char *name;
    int bits; /* negative: signed */
    const char *doc;
} isa_field;
typedef struct isa_info {
    const char *name, *unit, *doc;
    int field_count;
    const isa_field *fields;
} isa_info;
const isa_info *isa_table(int opcode);

/* A set of bytes: [low, high), and of those, if period > 0, only the ones whose address mod period lies in
 * [phase, phase + width) (cyclically). What the checker and the bounds test reason about. */
typedef struct access {
    bool dram, write;
    int field; /* of the instruction: the address that this access starts from */
    int64_t low, high;
    int64_t period, phase, width;
} access;
#define MAX_ACCESSES 8
int instr_accesses(const instr *i, int array, access out[MAX_ACCESSES]);
bool access_overlap(const access *a, const access *b);

/* Every field within its width and its meaning (counts >= 1, oh*ow <= 512, ...) and every access within memory. */
mera_status instr_check(mera_context *ctx, const instr *i, int64_t index, const mera_platform *platform, int64_t dram_bytes);
/* A sane instruction visits no more elements than memory holds: what keeps a hostile one from running for years. */
bool instr_bounded(const instr *i, const mera_platform *platform);
/* Cycles of the instruction alone, without conflicts: the formula of dna_isa.def. */
int64_t instr_cycles(const instr *i, const mera_platform *platform);
int64_t dma_bursts(const instr *i);

/* Bytes of drain parameters of a CONV instruction. */
static inline int64_t drain_param_bytes(const int64_t *f)
{
    return f[CONV_last] ? (f[CONV_float64] ? DNA_PARAM64_BYTES : DNA_PARAM_BYTES) * f[CONV_co] : 0;
}

/* A reduction in several instructions: whether this one begins with empty accumulators, and whether it drains them. */
static inline bool instr_first(const instr *i)
{
    return i->opcode == DNA_OP_CONV ? i->f[CONV_first] != 0 : i->opcode != DNA_OP_WINDOW || i->f[WINDOW_first] != 0;
}
static inline bool instr_last(const instr *i)
{
    return i->opcode == DNA_OP_CONV ? i->f[CONV_last] != 0 : i->opcode != DNA_OP_WINDOW || i->f[WINDOW_last] != 0;
}

#define SOFTMAX_TABLE_BYTES 1024

/* Where a resize reads output row or column k: between `first` and `second`, `fraction` / 1024 of the way. */
typedef struct resize_point {
    int64_t first, second;
    int32_t fraction;
} resize_point;
static inline resize_point resize_point_at(int64_t start, int64_t step, int64_t k, int64_t count, bool bilinear)
{
    const int bits = bilinear ? RESIZE_BITS : 0;
    const int64_t last = (count - 1) << bits;
    int64_t at = (int64_t)((uint64_t)start + (uint64_t)k * (uint64_t)step) >> (RESIZE_POSITION_BITS - bits);
    at = at < 0 ? 0 : at > last ? last : at;
    const int32_t fraction = (int32_t)(at & ((1 << bits) - 1));
    return (resize_point){at >> bits, (at >> bits) + (fraction != 0), fraction};
}

/* Encoding: appends words; decoding reads one instruction at *word and advances it. */
typedef VEC(uint32_t) word_vec;
mera_status isa_encode(mera_context *ctx, const instr *i, word_vec *words);
mera_status isa_decode(mera_context *ctx, const uint32_t *words, int64_t word_count, int64_t *word, instr *out);

/* One line of assembly, and back. */
void isa_print(text *t, const instr *i);
mera_status isa_parse(mera_context *ctx, const char *line, int64_t line_number, instr *out);

void queue_print_name(char *out, size_t bytes, int queue);

#endif
