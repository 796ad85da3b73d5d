/* ops_table.c: reflection of dna_ops.def. */
#include "graph.h"

static const struct {
    const char *name, *doc;
    int32_t min_inputs, max_inputs;
} ops[] = {
#define MERA_OP(NAME, name, min_inputs, max_inputs, doc) {#name, doc, min_inputs, max_inputs},
#define MERA_ATTR(NAME, name, default)
#include "dna_ops.def"
};

static const struct {
    dna_op op;
    const char *name;
    int64_t initial;
} attrs[] = {
/* those of one operator stand together, in its order */
#define MERA_OP(NAME, name, min_inputs, max_inputs, doc)
#define MERA_ATTR(NAME, name, default) {OP_##NAME, #name, default},
#include "dna_ops.def"
};
enum { ATTR_ROWS = sizeof attrs / sizeof *attrs };

#define MERA_OP(NAME, name, min_inputs, max_inputs, doc)                                                                    \
    _Static_assert((max_inputs) <= DNA_MAX_INPUTS, "DNA_MAX_INPUTS is too small for " #NAME);
#define MERA_ATTR(NAME, name, default)                                                                                      \
    _Static_assert((int)ATTR_##NAME##_##name < DNA_MAX_ATTRS, "DNA_MAX_ATTRS is too small for " #NAME);
#include "dna_ops.def"

static bool is_op(int32_t op) { return op >= 0 && op < OP_COUNT; }

static int first_attr(int32_t op)
{
    int row = 0;
    while (row < ATTR_ROWS && (int32_t)attrs[row].op != op) row++;
    return row;
}

/* The row of an attribute, or -1. */
static int attr_row(int32_t op, int32_t attr)
{
    const int row = first_attr(op);
    return attr >= 0 && attr < ATTR_ROWS - row && (int32_t)attrs[row + attr].op == op ? row + attr : -1;
}

int32_t mera_op_count(void) { return OP_COUNT; }
const char *mera_op_name(int32_t op) { return is_op(op) ? ops[op].name : ""; }
const char *mera_op_doc(int32_t op) { return is_op(op) ? ops[op].doc : ""; }
int32_t mera_op_min_inputs(int32_t op) { return is_op(op) ? ops[op].min_inputs : 0; }
int32_t mera_op_max_inputs(int32_t op) { return is_op(op) ? ops[op].max_inputs : 0; }

int32_t mera_op_attr_count(int32_t op)
{
    int32_t count = 0;
    while (attr_row(op, count) >= 0) count++;
    return count;
}

const char *mera_op_attr_name(int32_t op, int32_t attr)
{
    const int row = attr_row(op, attr);
    return row < 0 ? "" : attrs[row].name;
}

int64_t mera_op_attr_default(int32_t op, int32_t attr)
{
    const int row = attr_row(op, attr);
    return row < 0 ? 0 : attrs[row].initial;
}

const char *op_name(dna_op op) { return mera_op_name((int32_t)op); }
int op_attr_count(dna_op op) { return mera_op_attr_count((int32_t)op); }
const char *op_attr_name(dna_op op, int attr) { return mera_op_attr_name((int32_t)op, attr); }

int op_by_name(const char *name)
{
    for (int op = 0; op < OP_COUNT; op++)
        if (strcmp(ops[op].name, name) == 0) return op;
    return -1;
}
