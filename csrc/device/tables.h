/* tables.h: reflection of dna_regs.def, for documentation and tests. */
#ifndef MERA_DEVICE_TABLES_H
#define MERA_DEVICE_TABLES_H

#include "../mera.h"

/* ---- cffi: begin ---- */

/* A row of one of the tables: "id", "register", "field", "counter", "descriptor", "descriptor_field", "completion_field",
 * "error". What a table does not have is "" or 0. */
typedef struct device_row {
    const char *table;
    const char *of; /* the register or descriptor that a field belongs to */
    const char *name;
    int64_t value; /* value, offset in bytes, opcode or code; of fields: the first bit */
    int32_t bits;
    const char *access; /* "host" or "device": who writes it */
    int64_t reset;
    const char *doc;
} device_row;

int32_t device_row_count(void);
const device_row *device_row_at(int32_t index); /* NULL past the end */

/* ---- cffi: end ---- */

#endif
