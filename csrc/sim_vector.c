/* sim_vector.c: the vector unit. */
#include "sim_machine.h"

/* Asks for the next word of a table of `bytes` bytes; the last one ends phase 0. */
static void load_table(machine *k, engine *x, int64_t address, int64_t bytes)
{
    want(k, x, NULL, address + x->left, min_i64(k->array, bytes - x->left), false);
    x->left += k->array;
    if (x->left >= bytes) x->phase = 1;
}

/* a: word of the run; b: run number; c, d, left: offsets of this run. */
static void step_elementwise(machine *k, engine *x)
{
    const int64_t *f = x->i->f;
    if (x->a == 0) {
        int64_t rest = x->b;
        x->c = x->d = x->left = 0;
        for (int l = 3; l >= 0; l--) {
            const int64_t at = rest % f[VECTOR_n0 + l];
            rest /= f[VECTOR_n0 + l];
            x->c += at * f[VECTOR_a0 + l];
            x->d += at * f[VECTOR_b0 + l];
            x->left += at * f[VECTOR_o0 + l];
        }
    }
    const int64_t from = x->a * k->array, bytes = min_i64(k->array, f[VECTOR_run] - from);
    if (f[VECTOR_mode] != 1) want(k, x, &x->ports[0], f[VECTOR_a] + x->c + from, bytes, false);
    if (f[VECTOR_mode] >= 2)
        want(k, x, &x->ports[1], f[VECTOR_b] + x->d + (f[VECTOR_b_scalar] ? 0 : from), f[VECTOR_b_scalar] ? 1 : bytes,
             false);
    want(k, x, NULL, f[VECTOR_out] + x->left + from, bytes, true);
    if (++x->a < ceil_div(f[VECTOR_run], k->array)) return;
    x->a = 0;
    x->flushing = ++x->b == f[VECTOR_n0] * f[VECTOR_n1] * f[VECTOR_n2] * f[VECTOR_n3];
}

/* a: word of the run; b: output pixel; c: 0 the left column of source pixels, 1 the right one (bilinear). */
static void step_resize(machine *k, engine *x)
{
    const int64_t *f = x->i->f, oy = x->b / f[RESIZE_ow], ox = x->b % f[RESIZE_ow];
    const bool bilinear = f[RESIZE_mode] != 0;
    const resize_point row = resize_point_at(f[RESIZE_y0], f[RESIZE_dy], oy, f[RESIZE_in_rows], bilinear);
    const resize_point column = resize_point_at(f[RESIZE_x0], f[RESIZE_dx], ox, f[RESIZE_in_columns], bilinear);
    const int64_t from = x->a * k->array, bytes = min_i64(k->array, f[RESIZE_run] - from);
    const int64_t in = f[RESIZE_in] + (x->c ? column.second : column.first) * f[RESIZE_in_step] + from;
    want(k, x, &x->ports[0], in + row.first * f[RESIZE_in_pitch], bytes, false);
    if (bilinear) want(k, x, &x->ports[1], in + row.second * f[RESIZE_in_pitch], bytes, false);
    if (bilinear && x->c++ == 0) return;
    want(k, x, NULL, f[RESIZE_out] + oy * f[RESIZE_out_pitch] + ox * f[RESIZE_out_step] + from, bytes, true);
    x->c = 0;
    if (++x->a < ceil_div(f[RESIZE_run], k->array)) return;
    x->a = 0;
    x->flushing = ++x->b == f[RESIZE_oh] * f[RESIZE_ow];
}

/* phase 1: maxima, 2: sums, 3: reciprocals, 4: results. a: step of the row; b: first row of the group; c: row of the group;
 * d: cycles of the reciprocals. */
static void step_softmax(machine *k, engine *x)
{
    const int64_t *f = x->i->f, rows = f[SOFTMAX_n0] * f[SOFTMAX_n1], group = min_i64(k->array, rows - x->b);
    if (x->phase == 3) {
        if (++x->d < DNA_RECIPROCAL_CYCLES) return;
        x->d = 0;
        x->phase = 4;
        return;
    }
    const int64_t outer = (x->b + x->c) / f[SOFTMAX_n1], inner = (x->b + x->c) % f[SOFTMAX_n1];
    const int64_t lanes = x->phase == 1 ? k->array : k->array / 4, from = x->a * lanes;
    const int64_t bytes = min_i64(lanes, f[SOFTMAX_run] - from);
    want(k, x, &x->ports[0], f[SOFTMAX_in] + outer * f[SOFTMAX_a0] + inner * f[SOFTMAX_a1] + from, bytes, false);
    if (x->phase == 4) want(k, x, NULL, f[SOFTMAX_out] + outer * f[SOFTMAX_o0] + inner * f[SOFTMAX_o1] + from, bytes, true);
    if (++x->a < ceil_div(f[SOFTMAX_run], lanes)) return;
    x->a = 0;
    if (++x->c < group) return;
    x->c = 0;
    if (x->phase < 4) {
        x->phase++;
        return;
    }
    x->phase = 1;
    x->b += group;
    x->flushing = x->b == rows;
}

typedef struct vector_kind {
    void (*step)(machine *k, engine *x);
    int64_t table, table_bytes; /* 0 bytes: none */
} vector_kind;

static vector_kind kind_of(const instr *i)
{
    const int64_t *f = i->f;
    switch ((dna_opcode)i->opcode) {
    case DNA_OP_RESIZE:
        return (vector_kind){step_resize, f[RESIZE_table], f[RESIZE_lut] ? 256 : 0};
    case DNA_OP_SOFTMAX:
        return (vector_kind){step_softmax, f[SOFTMAX_table], SOFTMAX_TABLE_BYTES};
    default:
        return (vector_kind){step_elementwise, f[VECTOR_table], f[VECTOR_lut] ? 256 : 0};
    }
}

/* phase 0: table. */
void step_vector(machine *k, int unit)
{
    const int e = unit * UNIT_ENGINES + VECTOR_WORK;
    engine *x = &k->engines[e];
    const vector_kind kind = kind_of(x->i);
    if (x->begin < 0) x->begin = k->now;
    if (may_issue(k, x, 3)) {
        if (x->phase == 0 && kind.table_bytes == 0) x->phase = 1;
        if (x->phase == 0) {
            x->lost[CYCLE_FILL]++;
            load_table(k, x, kind.table, kind.table_bytes);
        } else
            kind.step(k, x);
        serve(k, x);
    }
    if (!x->flushing || x->words > 0) return;
    retire(k, e, DNA_PIPELINE_CYCLES);
    k->recheck = true;
}
