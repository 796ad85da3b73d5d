/* regs.h: dna_regs.def as C: offsets, bits, and the fields of descriptors and completions in memory. */
#ifndef MERA_DEVICE_REGS_H
#define MERA_DEVICE_REGS_H

#include "../core.h"

enum {
#define DNA_ID(name, value, doc) DNA_ID_##name = (value),
#include "dna_regs.def"
};

enum {
#define DNA_REG(name, offset, access, reset, doc) REG_##name = (offset),
#define DNA_COUNTER(name, offset, doc) REG_##name = (offset),
#include "dna_regs.def"
    REG_NAME_WORDS = 16
};

/* Bits of a register, by the shift and by the mask of a field at bit 0. */
enum {
#define DNA_REG_FIELD(reg, name, low, bits, doc)                                                                            \
    REG_##reg##_##name##_SHIFT = (low), REG_##reg##_##name = (int)((((uint64_t)1 << (bits)) - 1) << (low)&0x7fffffff),
#include "dna_regs.def"
};

/* The counters, in the order of the table. */
enum {
#define DNA_COUNTER(name, offset, doc) COUNTER_##name,
#include "dna_regs.def"
    COUNTER_COUNT,
    COMPLETION_COUNTERS = COUNTER_INSTRUCTIONS + 1 /* of them stand in a completion, from C_cycles on */
};

enum {
#define DNA_DESCRIPTOR(name, opcode, doc) DESCRIPTOR_##name = (opcode),
#include "dna_regs.def"
};

typedef enum device_error {
#define DNA_DEVICE_ERROR(name, code, doc) DEVICE_ERROR_##name = (code),
#include "dna_regs.def"
    DEVICE_ERROR_LAST
} device_error;

/* The bit where a field begins, and how many bits it has. */
enum {
#define DNA_DESCRIPTOR_FIELD(name, field, offset, bits, doc)                                                                \
    D_##name##_##field = (offset), D_##name##_##field##_BITS = (bits),
#define DNA_COMPLETION_FIELD(field, offset, bits, doc) C_##field = (offset), C_##field##_BITS = (bits),
#include "dna_regs.def"
};

_Static_assert(C_instructions == C_cycles + 64 * COUNTER_INSTRUCTIONS, "completions have the first counters in order");

static inline uint64_t field_get(const uint8_t *at, int first_bit, int bits)
{
    uint64_t value = 0;
    for (int k = 0; k < bits / 8; k++) value |= (uint64_t)at[first_bit / 8 + k] << (8 * k);
    return value;
}

static inline void field_set(uint8_t *at, int first_bit, int bits, uint64_t value)
{
    for (int k = 0; k < bits / 8; k++) at[first_bit / 8 + k] = (uint8_t)(value >> (8 * k));
}

/* DGET(bytes, RUN, verify), DSET(bytes, RUN, verify, 1); CGET, CSET for completions. */
#define DGET(at, name, field) field_get(at, D_##name##_##field, D_##name##_##field##_BITS)
#define DSET(at, name, field, value) field_set(at, D_##name##_##field, D_##name##_##field##_BITS, (uint64_t)(value))
#define CGET(at, field) field_get(at, C_##field, C_##field##_BITS)
#define CSET(at, field, value) field_set(at, C_##field, C_##field##_BITS, (uint64_t)(value))

/* Reflection for the documentation and for messages. */
const char *device_error_text(uint32_t code); /* "an error that does not exist" for one that does not */

/* CRC-32 of IEEE 802.3 (reflected 0xedb88320), as zlib's crc32: of nothing it is 0; crc continues what came before. */
uint32_t crc32_of(uint32_t crc, const void *data, size_t bytes);

#endif
