/* tables.c: dna_regs.def as rows. */
#include "tables.h"

#include "regs.h"

static const device_row rows[] = {
#define DNA_ID(name, value, doc) {"id", "", #name, (value), 0, "", 0, doc},
#define DNA_REG(name, offset, access, reset, doc) {"register", "", #name, (offset), 32, access, (reset), doc},
#define DNA_REG_FIELD(reg, name, low, bits, doc) {"field", #reg, #name, (low), (bits), "", 0, doc},
#define DNA_COUNTER(name, offset, doc) {"counter", "", #name, (offset), 64, "device", 0, doc},
#define DNA_DESCRIPTOR(name, opcode, doc) {"descriptor", "", #name, (opcode), 0, "", 0, doc},
#define DNA_DESCRIPTOR_FIELD(name, field, offset, bits, doc)                                                                \
    {"descriptor_field", #name, #field, (offset), (bits), "", 0, doc},
#define DNA_COMPLETION_FIELD(field, offset, bits, doc) {"completion_field", "", #field, (offset), (bits), "", 0, doc},
#define DNA_DEVICE_ERROR(name, code, doc) {"error", "", #name, (code), 0, "", 0, doc},
#include "dna_regs.def"
};

int32_t device_row_count(void) { return sizeof rows / sizeof *rows; }
const device_row *device_row_at(int32_t index) { return index >= 0 && index < device_row_count() ? &rows[index] : NULL; }
