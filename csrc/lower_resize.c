/* lower_resize.c: resizing on the vector units. A table of source positions is cut into pieces of straight line, for that
 * is what an instruction steps along; what front ends ask for is a single piece, but for odd roundings. */
#include "compile.h"

#define MAX_PIECES 65536 /* products of row and column pieces: a bound for instructions */
#define MAX_PIECE ((int64_t)1 << 19)

/* Output rows or columns [from, from + count) read at (start + k * step) >> RESIZE_POSITION_BITS. */
typedef struct piece {
    int64_t from, count, start, step;
} piece;

typedef struct pieces {
    int64_t count;
    piece *at;
} pieces;

/* Of a layer: rows are counted once, however often they are repeated. */
typedef struct resize_state {
    pieces rows, columns;
    int64_t repeat;
    bool staged, whole; /* output in DRAM, where the DMA repeats rows; columns that stay as they are: a row is one run */
} resize_state;

/* A table of positions (at[0], at[every], ...), and what those of an instruction are compared with: at << shift. */
typedef struct positions {
    const int32_t *at;
    int64_t every, count, last; /* last: the largest that is possible */
    int shift;
} positions;

static bool is_bilinear(const compiler *c, const layer *l) { return node_at(c, l->node)->op == OP_RESIZE_BILINEAR; }

static positions positions_of(const compiler *c, const layer *l, int input)
{
    const graph_node *n = node_at(c, l->node);
    const int bits = is_bilinear(c, l) ? RESIZE_BITS : 0;
    const graph_tensor *t = tensor_at(c, n->inputs[input]);
    return (positions){t->data, 1, t->elements, (tensor_at(c, n->inputs[0])->shape[input] - 1) << bits,
                       RESIZE_POSITION_BITS - bits};
}

int64_t layer_repeat(const compiler *c, const layer *l)
{
    if (l->kind != LAYER_RESIZE) return 1;
    const positions p = positions_of(c, l, 1);
    int64_t repeat = 0, run = 0; /* greatest common divisor of the runs so far */
    for (int64_t k = 0; k < p.count; k++) {
        run++;
        if (k + 1 < p.count && p.at[k + 1] == p.at[k]) continue;
        while (run) {
            const int64_t rest = repeat % run;
            repeat = run;
            run = rest;
        }
    }
    return repeat;
}

void resize_input_rows(const compiler *c, const layer *l, int64_t o0, int64_t o1, int64_t *y0, int64_t *y1)
{
    const positions p = positions_of(c, l, 1);
    const int bits = is_bilinear(c, l) ? RESIZE_BITS : 0;
    int64_t low = p.at[o0], high = p.at[o0];
    for (int64_t k = o0 + 1; k < o1; k++) {
        low = min_i64(low, p.at[k]);
        high = max_i64(high, p.at[k]);
    }
    *y0 = low >> bits;
    *y1 = ((high + (1 << bits) - 1) >> bits) + 1;
}

/* Looks for start and step of a line that gives the positions [from, from + count): low_k <= start + k * step <= high_k for
 * each k, where low_k is open at position 0 and high_k at the last one, for instructions clip. The room that a step
 * leaves for start is concave in the step, so its slope says in which direction to go on. */
static bool fit(const positions *p, int64_t from, int64_t count, piece *found)
{
    const int64_t open = INT64_MAX / 2;
    int64_t least = -(((int64_t)1 << 57) / count), most = -least;
    while (least <= most) {
        const int64_t step = least + (most - least) / 2;
        int64_t low = -open, high = open, low_at = 0, high_at = 0;
        for (int64_t k = 0; k < count; k++) {
            const int64_t at = p->at[(from + k) * p->every];
            if (at > 0 && (at << p->shift) - k * step > low) {
                low = (at << p->shift) - k * step;
                low_at = k;
            }
            if (at < p->last && ((at + 1) << p->shift) - 1 - k * step < high) {
                high = ((at + 1) << p->shift) - 1 - k * step;
                high_at = k;
            }
        }
        if (low <= high) {
            *found = (piece){from, count, low > -open ? low : high < open ? high : 0, step};
            return true;
        }
        if (low_at == high_at) return false;
        if (low_at > high_at)
            least = step + 1;
        else
            most = step - 1;
    }
    return false;
}

/* The longest piece from `from` on; doubling, then bisection. */
static piece longest(const positions *p, int64_t from)
{
    const int64_t left = min_i64(p->count - from, MAX_PIECE);
    piece best = {0};
    int64_t good = 1, bad = 2;
    fit(p, from, 1, &best);
    while (bad <= left && fit(p, from, bad, &best)) {
        good = bad;
        bad *= 2;
    }
    if (bad > left) {
        if (fit(p, from, left, &best)) return best;
        bad = left;
    }
    while (bad - good > 1) {
        const int64_t middle = (good + bad) / 2;
        if (fit(p, from, middle, &best))
            good = middle;
        else
            bad = middle;
    }
    return best;
}

static mera_status cut(compiler *c, const positions *p, pieces *out)
{
    VEC(piece) found = {0};
    mera_status status = MERA_OK;
    for (int64_t from = 0; from < p->count && status == MERA_OK && found.count <= MAX_PIECES;) {
        const piece next = longest(p, from);
        from += next.count;
        if (!vec_push(c->ctx, &found, next)) status = out_of_memory(c->ctx);
    }
    out->count = (int64_t)found.count;
    out->at = status == MERA_OK ? arena_array(&c->memory, found.count, sizeof *out->at) : NULL;
    if (out->at)
        memcpy(out->at, found.at, found.count * sizeof *out->at);
    else
        status = out_of_memory(c->ctx);
    vec_free(c->ctx, &found);
    return status;
}

/* Whether the columns stay as they are, and lie densely on both sides. */
static bool whole_rows(const compiler *c, const block *b)
{
    const positions p = positions_of(c, b->l, 2);
    const int64_t *s = tensor_at(c, b->l->in[0])->shape;
    if (p.count != s[2] || b->in[0].sw != s[3] || b->out.sw != s[3]) return false;
    for (int64_t k = 0; k < p.count; k++)
        if ((int64_t)p.at[k] << p.shift != k << RESIZE_POSITION_BITS) return false;
    return true;
}

/* Whether it is faster to make each row once and copy it, whole words at a time. */
static bool copying_pays(const compiler *c, const block *b, int64_t repeat, bool whole)
{
    const int64_t *s = tensor_at(c, b->l->out)->shape, array = c->platform.array, pixels = s[2] * ceil_div(s[3], array);
    const int64_t once = (whole ? ceil_div(s[2] * s[3], array) : pixels) * (is_bilinear(c, b->l) ? 2 : 1);
    const int64_t copy = b->out.sw == s[3] ? ceil_div(s[2] * s[3], array) : pixels;
    return once + (repeat - 1) * copy < repeat * once;
}

static mera_status need_state(compiler *c, block *b)
{
    if (b->state) return MERA_OK;
    resize_state *s = ARENA_NEW(&c->memory, resize_state);
    if (!s) return out_of_memory(c->ctx);
    s->staged = c->roots.at[c->places[b->l->out].root].dram;
    s->whole = whole_rows(c, b);
    s->repeat = layer_repeat(c, b->l);
    if (!s->staged && !copying_pays(c, b, s->repeat, s->whole)) s->repeat = 1;
    positions rows = positions_of(c, b->l, 1), columns = positions_of(c, b->l, 2);
    rows.every = s->repeat;
    rows.count /= s->repeat;
    TRY(cut(c, &rows, &s->rows));
    TRY(cut(c, &columns, &s->columns));
    const graph_node *n = node_at(c, b->l->node);
    if (s->rows.count * s->columns.count > MAX_PIECES)
        return fail(c->ctx, MERA_UNSUPPORTED,
                    "%s '%s' (layer '%s', %s): its tables must consist of at most %d pieces of straight line, got %lld for "
                    "the rows and %lld for the columns",
                    op_name(n->op), n->name, n->layer, n->source, MAX_PIECES, (long long)s->rows.count,
                    (long long)s->columns.count);
    b->state = s;
    return MERA_OK;
}

/* Different rows [y, y + rows) of one image, all in one piece, in the columns of one. */
static mera_status emit(compiler *c, const block *b, int unit, int64_t image, int64_t y, int64_t rows, const piece *row,
                        const piece *column)
{
    const resize_state *state = b->state;
    const operand *in = &b->in[0], *out = &b->out;
    const bool whole = state->whole;
    const int64_t *s = tensor_at(c, b->l->in[0])->shape, pitch = out->sh * (state->staged ? 1 : state->repeat);
    int64_t y0, y1;
    resize_input_rows(c, b->l, y * state->repeat, (y + rows) * state->repeat, &y0, &y1);
    job *j;
    TRY(add_job(c, b, DNA_OP_RESIZE, layer_queue(c, b, unit, UNIT_VECTOR), &j));
    int64_t *f = j->i.f;
    f[RESIZE_mode] = is_bilinear(c, b->l);
    job_address(j, RESIZE_in, in->buffer, in->offset + image * in->sn + (y0 - in->y0) * in->sh);
    f[RESIZE_in_rows] = y1 - y0;
    f[RESIZE_in_columns] = whole ? 1 : s[2];
    f[RESIZE_in_pitch] = in->sh;
    f[RESIZE_in_step] = whole ? 0 : in->sw;
    f[RESIZE_run] = whole ? s[2] * s[3] : s[3];
    f[RESIZE_y0] = row->start + (y - row->from) * row->step - (y0 << RESIZE_POSITION_BITS);
    f[RESIZE_dy] = rows > 1 ? row->step : 0;
    f[RESIZE_x0] = whole ? 0 : column->start;
    f[RESIZE_dx] = whole || column->count == 1 ? 0 : column->step;
    f[RESIZE_oh] = rows;
    f[RESIZE_ow] = whole ? 1 : column->count;
    job_address(j, RESIZE_out, out->buffer,
                out->offset + image * out->sn + (y - out->y0) * pitch + (whole ? 0 : column->from * out->sw));
    f[RESIZE_out_pitch] = pitch;
    f[RESIZE_out_step] = whole ? 0 : out->sw;
    if (b->l->lut >= 0) {
        f[RESIZE_lut] = 1;
        job_address(j, RESIZE_table, b->param_buffer, 0);
    }
    return MERA_OK;
}

/* Each of the rows that emit() made, behind itself. */
static mera_status emit_copies(compiler *c, const block *b, int unit, int64_t image, int64_t y, int64_t rows)
{
    const int64_t repeat = ((const resize_state *)b->state)->repeat, *s = tensor_at(c, b->l->out)->shape;
    const operand *out = &b->out;
    const bool dense = out->sw == s[3];
    job *j;
    TRY(add_job(c, b, DNA_OP_VECTOR, layer_queue(c, b, unit, UNIT_VECTOR), &j));
    int64_t *f = j->i.f;
    const int64_t from = out->offset + image * out->sn + y * repeat * out->sh;
    f[VECTOR_low] = -128;
    f[VECTOR_high] = 127;
    f[VECTOR_n0] = 1;
    f[VECTOR_n1] = rows;
    f[VECTOR_n2] = repeat - 1;
    f[VECTOR_n3] = dense ? 1 : s[2];
    f[VECTOR_run] = dense ? s[2] * s[3] : s[3];
    job_address(j, VECTOR_a, out->buffer, from);
    job_address(j, VECTOR_out, out->buffer, from + out->sh);
    f[VECTOR_a1] = f[VECTOR_o1] = rows > 1 ? repeat * out->sh : 0;
    f[VECTOR_o2] = repeat > 2 ? out->sh : 0;
    f[VECTOR_a3] = f[VECTOR_o3] = dense ? 0 : out->sw;
    return MERA_OK;
}

static const piece *piece_at(const pieces *all, int64_t k)
{
    const piece *p = all->at;
    while (k >= p->from + p->count) p++;
    return p;
}

mera_status lower_resize(compiler *c, block *b)
{
    TRY(need_table(c, b));
    TRY(need_state(c, b));
    const resize_state *s = b->state;
    const int64_t height = b->rows / s->repeat, first = b->y0 / s->repeat;
    const int64_t units = b->l->units, total = b->images * height, parts = min_i64(units, total);
    for (int64_t p = 0; p < parts; p++)
        for (int64_t at = total * p / parts, end = total * (p + 1) / parts; at < end;) {
            const int64_t image = at / height, y = first + at % height;
            const piece *row = piece_at(&s->rows, y);
            int64_t rows = min_i64(min_i64(end - at, height - at % height), row->from + row->count - y);
            rows = ceil_div(rows, max_i64(1, rows / 8));
            for (int64_t k = 0; k < (s->whole ? 1 : s->columns.count); k++)
                TRY(emit(c, b, (int)p, image, y, rows, row, &s->columns.at[k]));
            if (s->repeat > 1 && !s->staged) TRY(emit_copies(c, b, (int)p, image, y, rows));
            at += rows;
        }
    return MERA_OK;
}
