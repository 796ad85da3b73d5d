/* join.c: operators that put tensors together, and padding: several strided copies into one result. */
#include "ops.h"

typedef struct piece {
    int32_t number;
    strided_copy copy;
} piece;

typedef struct join {
    int32_t count;
    piece *pieces;
    host_dtype *from; /* NULL: all pieces have the result's dtype */
    bool filled;      /* what no piece writes is `fill` */
    _Alignas(8) uint8_t fill[8];
} join;

/* Fills n elements of `size` bytes. */
static void fill(void *to, int64_t n, size_t size, const void *value)
{
    if (n == 0) return;
    memcpy(to, value, size);
    size_t done = size;
    const size_t all = (size_t)n * size;
    while (done < all) {
        const size_t more = done < all - done ? done : all - done;
        memcpy((char *)to + done, to, more);
        done += more;
    }
}

/* Pieces of another dtype are converted into scratch memory first. */
static mera_status run_join(const host_frame *f)
{
    const join *j = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const size_t size = host_dtype_size(y->dtype);
    if (j->filled) fill(f->results[0], host_elements(y), size, j->fill);
    for (int32_t k = 0; k < j->count; k++) {
        const piece *a = &j->pieces[k];
        const void *from = f->tensors[a->number];
        if (j->from != NULL && j->from[k] != y->dtype) {
            convert_row(product(a->copy.rank, a->copy.shape), y->dtype, f->scratch, j->from[k], from, 1);
            from = f->scratch;
        }
        strided_run(&a->copy, size, from, f->results[0]);
    }
    return MERA_OK;
}

static mera_status new_join(host_planner *p, int32_t count, join **out)
{
    join *j = NEW_PLAN(p, join);
    piece *pieces = arena_array(p->memory, (size_t)count + 1, sizeof *pieces);
    if (j == NULL || pieces == NULL) return out_of_memory(p->ctx);
    j->pieces = pieces;
    p->step->run = run_join;
    *out = j;
    return MERA_OK;
}

/* The part of a tensor, dense, written into the result `y` at element `at`. */
static strided_copy part_of(const host_tensor *x, const host_tensor *y, int64_t at)
{
    strided_copy c = {.rank = y->rank, .to_offset = at};
    memcpy(c.shape, x->shape, sizeof x->shape);
    dense_strides(y->rank, c.shape, c.stride);
    dense_strides(y->rank, y->shape, c.to_stride);
    strided_simplify(&c);
    return c;
}

/* ---- cat, stack ---- */

/* The tensors of the list, their common dtype. */
static mera_status list_of(host_planner *p, int32_t *count, host_dtype *dtype)
{
    *count = arg_count(p, 0);
    if (*count == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "the list of tensors is empty");
    *dtype = MERA_HOST_BOOL;
    for (int32_t k = 0; k < *count; k++) {
        if (p->step->args[0].items[k].kind != MERA_HOST_TENSOR)
            return host_refuse(p, MERA_UNSUPPORTED, "item %d is no tensor", k);
        const host_tensor *x = &p->tensors[arg_item(p, 0, k)];
        *dtype = k == 0 ? x->dtype : promote(*dtype, x->dtype);
    }
    return MERA_OK;
}

/* stack is cat of tensors that have one more dimension. */
static host_tensor item_of(const host_planner *p, int32_t k, bool stack, int32_t dim)
{
    host_tensor x = p->tensors[arg_item(p, 0, k)];
    if (!stack) return x;
    for (int32_t d = x.rank++; d > dim; d--) x.shape[d] = x.shape[d - 1];
    x.shape[dim] = 1;
    return x;
}

static bool is_skipped(const host_tensor *x) { return x->rank == 1 && x->shape[0] == 0; }

static mera_status fits_beside(host_planner *p, const host_tensor *x, const host_tensor *first, int32_t dim)
{
    bool good = x->rank == first->rank;
    for (int32_t d = 0; good && d < x->rank; d++) good = d == dim || x->shape[d] == first->shape[d];
    return good ? MERA_OK : host_refuse(p, MERA_INVALID_ARGUMENT, "the tensors have other sizes beside dimension %d", dim);
}

/* variant: 0 = cat, 1 = stack. */
mera_status plan_cat(host_planner *p)
{
    const bool stack = p->variant == 1;
    int32_t count, dim, first = 0;
    host_dtype dtype = MERA_HOST_BOOL;
    join *j = NULL;
    TRY(list_of(p, &count, &dtype));
    while (!stack && first + 1 < count && is_skipped(&p->tensors[arg_item(p, 0, first)])) first++;
    const int32_t rank = p->tensors[arg_item(p, 0, first)].rank;
    if (stack && rank == HOST_MAX_RANK) return host_refuse(p, MERA_UNSUPPORTED, "a tensor has at most 8 dimensions");
    if (!stack && rank == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "tensors of no dimension cannot be joined");
    TRY(arg_dim(p, 1, rank + stack, &dim));
    host_tensor y = item_of(p, first, stack, dim);
    const host_tensor model = y;
    int64_t size = 0, converted = 0;
    for (int32_t k = 0; k < count; k++) {
        const host_tensor x = item_of(p, k, stack, dim);
        if (!stack && is_skipped(&x)) continue;
        TRY(fits_beside(p, &x, &model, dim));
        size += x.shape[dim];
        if (x.dtype != dtype) converted = max_i64(converted, host_elements(&x));
    }
    y.shape[dim] = size;
    TRY(add_result(p, dtype, y.rank, y.shape));
    TRY(new_join(p, count, &j));
    j->from = arena_array(p->memory, (size_t)count + 1, sizeof *j->from);
    if (j->from == NULL) return out_of_memory(p->ctx);
    int64_t strides[HOST_MAX_RANK], at = 0;
    dense_strides(y.rank, y.shape, strides);
    for (int32_t k = 0; k < count; k++) {
        const host_tensor x = item_of(p, k, stack, dim);
        if (!stack && is_skipped(&x)) continue;
        j->pieces[j->count] = (piece){.number = (int32_t)arg_item(p, 0, k), .copy = part_of(&x, &y, at * strides[dim])};
        j->from[j->count++] = x.dtype;
        at += x.shape[dim];
    }
    p->step->scratch_bytes = (size_t)converted * host_dtype_size(dtype);
    return MERA_OK;
}

/* ---- padding ---- */

/* before[d], after[d] of the list of pairs, last dimension first. */
static mera_status pad_sizes(host_planner *p, const host_tensor *x, int64_t *before, int64_t *after)
{
    const int32_t count = arg_count(p, 1);
    const int64_t most = INT64_C(1) << 40;
    if (count % 2 != 0 || count / 2 > x->rank)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "pad must have an even number of values, at most %d, got %d",
                           2 * x->rank, count);
    for (int32_t d = 0; d < x->rank; d++) {
        const int32_t pair = x->rank - 1 - d;
        before[d] = 2 * pair < count ? arg_item(p, 1, 2 * pair) : 0;
        after[d] = 2 * pair < count ? arg_item(p, 1, 2 * pair + 1) : 0;
        if (before[d] < -most || before[d] > most || after[d] < -most || after[d] > most ||
            x->shape[d] + before[d] + after[d] < 0)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "dimension %d of %lld cannot be padded by %lld and %lld", d,
                               (long long)x->shape[d], (long long)before[d], (long long)after[d]);
    }
    return MERA_OK;
}

static mera_status plan_constant_pad(host_planner *p, const host_tensor *x, const host_arg *value)
{
    int64_t before[HOST_MAX_RANK], after[HOST_MAX_RANK], shape[HOST_MAX_RANK] = {0};
    join *j = NULL;
    TRY(pad_sizes(p, x, before, after));
    for (int32_t d = 0; d < x->rank; d++) shape[d] = x->shape[d] + before[d] + after[d];
    TRY(add_result(p, x->dtype, x->rank, shape));
    TRY(new_join(p, 1, &j));
    strided_copy c = {.rank = x->rank};
    dense_strides(x->rank, x->shape, c.stride);
    dense_strides(x->rank, shape, c.to_stride);
    for (int32_t d = 0; d < x->rank; d++) { /* negative padding cuts */
        c.offset += max_i64(-before[d], 0) * c.stride[d];
        c.to_offset += max_i64(before[d], 0) * c.to_stride[d];
        c.shape[d] = max_i64(x->shape[d] + min_i64(before[d], 0) + min_i64(after[d], 0), 0);
    }
    if (product(c.rank, c.shape) == 0) c.rank = 1, c.shape[0] = 0, c.offset = c.to_offset = 0;
    strided_simplify(&c);
    j->pieces[j->count++] = (piece){.number = arg_number(p, 0), .copy = c};
    j->filled = true;
    store_number(x->dtype, j->fill, value);
    return MERA_OK;
}

/* Padding with x's own elements: each result index has its source index, by dimension. */
typedef struct gather_pad {
    int64_t *sources[HOST_MAX_RANK]; /* in elements of x */
} gather_pad;

static mera_status run_gather_pad(const host_frame *f)
{
    const gather_pad *g = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const size_t size = host_dtype_size(y->dtype);
    const int32_t r = y->rank;
    const int64_t n = y->shape[r - 1], rows = product(r - 1, y->shape);
    const char *x = f->tensors[f->step->reads[0]];
    char *to = f->results[0];
    int64_t index[HOST_MAX_RANK] = {0};
    for (int64_t row = 0; n > 0 && row < rows; row++) {
        int64_t at = 0;
        for (int32_t d = 0; d < r - 1; d++) at += g->sources[d][index[d]];
        for (int64_t i = 0; i < n; i++, to += size) memcpy(to, x + (size_t)(at + g->sources[r - 1][i]) * size, size);
        for (int32_t d = r - 2; d >= 0 && ++index[d] == y->shape[d]; d--) index[d] = 0;
    }
    return MERA_OK;
}

static int64_t pad_source(padding mode, int64_t i, int64_t size)
{
    if (mode == PAD_CIRCULAR) return (i % size + size) % size;
    if (mode == PAD_REPLICATE) return i < 0 ? 0 : min_i64(i, size - 1);
    return i < 0 ? -i : i < size ? i : 2 * (size - 1) - i;
}

static mera_status plan_gather_pad(host_planner *p, const host_tensor *x, padding mode)
{
    int64_t before[HOST_MAX_RANK], after[HOST_MAX_RANK], strides[HOST_MAX_RANK], shape[HOST_MAX_RANK];
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(pad_sizes(p, x, before, after));
    for (int32_t d = 0; d < x->rank; d++) {
        const int64_t limit = mode == PAD_REFLECT ? x->shape[d] - 1 : mode == PAD_CIRCULAR ? x->shape[d] : INT64_MAX;
        const bool padded = before[d] > 0 || after[d] > 0;
        if (padded && (x->shape[d] == 0 || before[d] > limit || after[d] > limit))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "dimension %d of %lld is too small for padding of %lld and %lld", d,
                               (long long)x->shape[d], (long long)before[d], (long long)after[d]);
        shape[d] = x->shape[d] + before[d] + after[d];
    }
    TRY(add_result(p, x->dtype, x->rank, shape));
    gather_pad *g = NEW_PLAN(p, gather_pad);
    if (g == NULL) return out_of_memory(p->ctx);
    dense_strides(x->rank, x->shape, strides);
    for (int32_t d = 0; d < x->rank; d++) {
        g->sources[d] = arena_array(p->memory, (size_t)shape[d] + 1, sizeof **g->sources);
        if (g->sources[d] == NULL) return out_of_memory(p->ctx);
        for (int64_t i = 0; i < shape[d]; i++) g->sources[d][i] = pad_source(mode, i - before[d], x->shape[d]) * strides[d];
    }
    p->step->run = run_gather_pad;
    return MERA_OK;
}

mera_status plan_constant_pad_nd(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return plan_constant_pad(p, x, &p->step->args[2]);
}

/* variant: a padding. The list has as many pairs as the operator's name says. */
mera_status plan_border_pad(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    return plan_gather_pad(p, x, (padding)p->variant);
}

mera_status plan_pad(host_planner *p)
{
    static const char *const names[] = {"constant", "reflect", "replicate", "circular"};
    const host_arg zero = {.kind = MERA_HOST_INT};
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    for (int mode = PAD_CONSTANT; mode <= PAD_CIRCULAR; mode++) {
        if (strcmp(arg_text(p, 2), names[mode]) != 0) continue;
        if (mode == PAD_CONSTANT) return plan_constant_pad(p, x, arg_given(p, 3) ? &p->step->args[3] : &zero);
        return plan_gather_pad(p, x, (padding)mode);
    }
    return host_refuse(p, MERA_UNSUPPORTED, "there is no mode %s", arg_text(p, 2));
}

/* ---- roll ---- */

static mera_status run_roll(const host_frame *f)
{
    const join *j = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    for (int32_t k = 0; k < j->count; k++)
        strided_run(&j->pieces[k].copy, host_dtype_size(y->dtype), f->tensors[f->step->reads[0]], f->results[0]);
    return MERA_OK;
}

/* Rolling by shifts is two parts for each dimension: all combinations of them. */
mera_status plan_roll(host_planner *p)
{
    const host_tensor *x;
    join *j = NULL;
    TRY(arg_tensor(p, 0, &x));
    const int32_t shifts = arg_count(p, 1), dims = arg_count(p, 2);
    if (shifts < 1 || (dims == 0 ? shifts != 1 : dims != shifts))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%d shifts do not suit %d dims", shifts, dims);
    const int64_t flat[] = {host_elements(x)};
    const int32_t rank = dims == 0 ? 1 : x->rank;
    const int64_t *shape = dims == 0 ? flat : x->shape;
    int64_t by[HOST_MAX_RANK] = {0}, strides[HOST_MAX_RANK];
    for (int32_t i = 0; i < shifts; i++) {
        int32_t dim = 0;
        if (dims > 0) TRY(check_dim(p, arg_item(p, 2, i), x->rank, &dim));
        const int64_t size = rank == 0 ? 1 : max_i64(shape[dim], 1);
        by[dim] = (by[dim] + arg_item(p, 1, i) % size + size) % size;
    }
    TRY(add_result(p, x->dtype, x->rank, x->shape));
    TRY(new_join(p, 1 << rank, &j));
    p->step->run = run_roll;
    dense_strides(rank, shape, strides);
    for (int32_t part = 0; part < 1 << rank; part++) {
        strided_copy c = {.rank = rank};
        for (int32_t d = 0; d < rank; d++) { /* the last by[d] go first, the others behind them */
            const bool tail = part >> d & 1;
            c.stride[d] = c.to_stride[d] = strides[d];
            c.shape[d] = tail ? by[d] : shape[d] - by[d];
            c.offset += tail ? (shape[d] - by[d]) * strides[d] : 0;
            c.to_offset += tail ? 0 : by[d] * strides[d];
        }
        if (product(rank, c.shape) == 0) continue;
        strided_simplify(&c);
        j->pieces[j->count++].copy = c;
    }
    return MERA_OK;
}
