/* views.c: operators whose result is a part or another order of their input's elements. */
#include "ops.h"

/* ---- one input, several strided results ---- */

typedef struct views {
    int32_t number;
    strided_copy *copies; /* one a result */
} views;

static mera_status run_views(const host_frame *f)
{
    const views *v = f->step->plan;
    for (int32_t k = 0; k < f->step->result_count; k++)
        if (f->step->alias[k] < 0)
            strided_run(&v->copies[k], host_dtype_size(f->step->results[k].dtype), f->tensors[v->number], f->results[k]);
    return MERA_OK;
}

/* Plans for `count` results; the copies are to be filled in, then add_view called for each. */
static mera_status new_views(host_planner *p, int32_t index, int32_t count, views **out)
{
    views *v = NEW_PLAN(p, views);
    strided_copy *copies = arena_array(p->memory, (size_t)count + 1, sizeof *copies);
    if (v == NULL || copies == NULL) return out_of_memory(p->ctx);
    v->number = arg_number(p, index);
    v->copies = copies;
    *out = v;
    return MERA_OK;
}

/* Adds copies[k] (shape, stride, offset given) as result k of `rank` dimensions of `shape`; an alias if nothing moves. */
static mera_status add_shaped_view(host_planner *p, views *v, int32_t rank, const int64_t *shape)
{
    strided_copy *c = &v->copies[p->step->result_count];
    const host_tensor *x = &p->tensors[v->number];
    strided_to_dense(c);
    const bool whole = c->offset == 0 && product(c->rank, c->shape) == host_elements(x);
    strided_simplify(c);
    if (whole && c->rank == 1 && c->stride[0] == 1) return add_alias(p, v->number, rank, shape);
    p->step->run = run_views;
    return add_result(p, x->dtype, rank, shape);
}

static mera_status add_view(host_planner *p, views *v)
{
    const strided_copy *c = &v->copies[p->step->result_count];
    int64_t shape[COPY_MAX_RANK];
    const int32_t rank = c->rank;
    memcpy(shape, c->shape, sizeof shape);
    return add_shaped_view(p, v, rank, shape);
}

/* The copy that is x itself. */
static strided_copy whole_of(const host_tensor *x)
{
    strided_copy c = {.rank = x->rank};
    memcpy(c.shape, x->shape, sizeof x->shape);
    dense_strides(c.rank, c.shape, c.stride);
    return c;
}

/* The usual beginning: x is parameter 0, one result. */
static mera_status begin_view(host_planner *p, const host_tensor **x, views **v, strided_copy **c)
{
    TRY(arg_tensor(p, 0, x));
    TRY(new_views(p, 0, 1, v));
    *c = (*v)->copies;
    **c = whole_of(*x);
    return MERA_OK;
}

static void drop_dim(strided_copy *c, int32_t dim)
{
    c->rank--;
    for (int32_t d = dim; d < c->rank; d++) {
        c->shape[d] = c->shape[d + 1];
        c->stride[d] = c->stride[d + 1];
    }
}

static mera_status as_alias(host_planner *p, int32_t rank, const int64_t *shape)
{
    return add_alias(p, arg_number(p, 0), rank, shape);
}

/* ---- shapes ---- */

mera_status plan_reshape(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    int64_t shape[HOST_MAX_RANK] = {0}, known = 1;
    const int32_t rank = arg_count(p, 1);
    if (rank > HOST_MAX_RANK) return host_refuse(p, MERA_UNSUPPORTED, "a shape has at most %d sizes", HOST_MAX_RANK);
    int32_t open = -1;
    for (int32_t d = 0; d < rank; d++) {
        shape[d] = arg_item(p, 1, d);
        if (shape[d] < -1 || (shape[d] == -1 && open >= 0) || shape[d] > INT64_C(1) << 40)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "size %lld cannot be", (long long)shape[d]);
        if (shape[d] == -1)
            open = d;
        else if (known <= INT64_C(1) << 40 || shape[d] == 0)
            known *= shape[d];
    }
    if (open >= 0) {
        if (known == 0 || host_elements(x) % known != 0)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld elements cannot have that shape",
                               (long long)host_elements(x));
        shape[open] = host_elements(x) / known;
    }
    return as_alias(p, rank, shape);
}

mera_status plan_reshape_as(host_planner *p)
{
    const host_tensor *x, *other;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 1, &other));
    return as_alias(p, other->rank, other->shape);
}

mera_status plan_flatten(host_planner *p)
{
    const host_tensor *x;
    int32_t first, last;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_dim(p, 1, x->rank, &first));
    TRY(arg_dim(p, 2, x->rank, &last));
    if (first > last) return host_refuse(p, MERA_INVALID_ARGUMENT, "start_dim is behind end_dim");
    int64_t shape[HOST_MAX_RANK] = {1};
    int32_t rank = 0;
    for (int32_t d = 0; d < first; d++) shape[rank++] = x->shape[d];
    shape[rank++] = x->rank == 0 ? 1 : product(last - first + 1, x->shape + first);
    for (int32_t d = last + 1; d < x->rank; d++) shape[rank++] = x->shape[d];
    return as_alias(p, rank, shape);
}

mera_status plan_unflatten(host_planner *p)
{
    const host_tensor *x;
    int32_t dim = 0;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_dim(p, 1, x->rank, &dim));
    const int32_t count = arg_count(p, 2), rank = x->rank - 1 + count;
    if (x->rank == 0 || count < 1 || rank > HOST_MAX_RANK)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "the result cannot have %d dimensions", rank);
    int64_t shape[HOST_MAX_RANK], known = 1;
    int32_t open = -1;
    for (int32_t d = 0; d < rank; d++) {
        const bool new = d >= dim &&d < dim + count;
        shape[d] = new ? arg_item(p, 2, d - dim) : x->shape[d < dim ? d : d - count + 1];
        if (new &&shape[d] > INT64_C(1) << 40) return host_refuse(p, MERA_INVALID_ARGUMENT, "a size is too large");
        if (new &&shape[d] == -1)
            open = d;
        else if (new && (known <= INT64_C(1) << 40 || shape[d] == 0))
            known *= shape[d];
    }
    if (open >= 0) shape[open] = known > 0 ? x->shape[dim] / known : 0;
    if (open >= 0) known *= shape[open];
    if (known != x->shape[dim]) return host_refuse(p, MERA_INVALID_ARGUMENT, "the sizes do not give the dimension's");
    return as_alias(p, rank, shape);
}

/* variant: 0 = all dimensions of 1, 1 = one dimension, 2 = a list of them. */
mera_status plan_squeeze(host_planner *p)
{
    const host_tensor *x;
    bool drop[HOST_MAX_RANK] = {false};
    TRY(arg_tensor(p, 0, &x));
    if (p->variant == 1) {
        int32_t dim;
        TRY(arg_dim(p, 1, x->rank, &dim));
        drop[dim] = true;
    } else if (p->variant == 0 || arg_count(p, 1) > 0) {
        if (p->variant == 0)
            memset(drop, true, sizeof drop);
        else
            TRY(arg_dims(p, 1, x->rank, drop));
    }
    int64_t shape[HOST_MAX_RANK];
    int32_t rank = 0;
    for (int32_t d = 0; d < x->rank; d++)
        if (!drop[d] || x->shape[d] != 1) shape[rank++] = x->shape[d];
    return as_alias(p, rank, shape);
}

mera_status plan_unsqueeze(host_planner *p)
{
    const host_tensor *x;
    int32_t dim = 0;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_dim(p, 1, x->rank + 1, &dim));
    if (x->rank == HOST_MAX_RANK) return host_refuse(p, MERA_UNSUPPORTED, "a tensor has at most 8 dimensions");
    int64_t shape[HOST_MAX_RANK];
    for (int32_t d = 0; d <= x->rank; d++) shape[d] = d < dim ? x->shape[d] : d == dim ? 1 : x->shape[d - 1];
    return as_alias(p, x->rank + 1, shape);
}

/* ---- order ---- */

mera_status plan_permute(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    bool seen[HOST_MAX_RANK];
    TRY(begin_view(p, &x, &v, &c));
    if (arg_count(p, 1) != x->rank)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "dims must have %d values, got %d", x->rank, arg_count(p, 1));
    TRY(arg_dims(p, 1, x->rank, seen));
    const strided_copy old = *c;
    for (int32_t d = 0; d < x->rank; d++) {
        const int64_t dim = arg_item(p, 1, d);
        c->shape[d] = old.shape[dim < 0 ? dim + x->rank : dim];
        c->stride[d] = old.stride[dim < 0 ? dim + x->rank : dim];
    }
    return add_view(p, v);
}

static void swap(int64_t *a, int64_t *b)
{
    const int64_t t = *a;
    *a = *b;
    *b = t;
}

/* variant: 0 = dim0 and dim1 are given, 1 = t() or T, 2 = the last two. */
mera_status plan_transpose(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t a, b;
    TRY(begin_view(p, &x, &v, &c));
    if (p->variant == 1) TRY(need_rank(p, x, 0, 2, "self"));
    if (p->variant == 2) TRY(need_rank(p, x, 2, HOST_MAX_RANK, "self"));
    if (p->variant == 0) {
        TRY(arg_dim(p, 1, x->rank, &a));
        TRY(arg_dim(p, 2, x->rank, &b));
    } else {
        a = x->rank > 1 ? x->rank - 2 : 0;
        b = x->rank > 0 ? x->rank - 1 : 0;
    }
    swap(&c->shape[a], &c->shape[b]);
    swap(&c->stride[a], &c->stride[b]);
    return add_view(p, v);
}

/* variant: 0 = lists of dimensions, 1 = one each. */
mera_status plan_movedim(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    TRY(begin_view(p, &x, &v, &c));
    const int32_t count = p->variant == 1 ? 1 : arg_count(p, 1);
    int32_t order[HOST_MAX_RANK], next = 0;
    bool taken[HOST_MAX_RANK] = {false};
    if (p->variant == 0 && arg_count(p, 2) != count)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "source and destination must have as many dimensions");
    for (int32_t d = 0; d < HOST_MAX_RANK; d++) order[d] = -1;
    for (int32_t i = 0; i < count; i++) {
        int32_t from, to;
        TRY(check_dim(p, p->variant == 1 ? arg_int(p, 1) : arg_item(p, 1, i), x->rank, &from));
        TRY(check_dim(p, p->variant == 1 ? arg_int(p, 2) : arg_item(p, 2, i), x->rank, &to));
        if (taken[from] || order[to] >= 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "a dimension is named twice");
        taken[from] = true;
        order[to] = from;
    }
    const strided_copy old = *c;
    for (int32_t d = 0; d < x->rank; d++) {
        while (order[d] < 0 && taken[next]) next++;
        const int32_t from = order[d] >= 0 ? order[d] : next++;
        c->shape[d] = old.shape[from];
        c->stride[d] = old.stride[from];
    }
    return add_view(p, v);
}

mera_status plan_flip(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    bool flips[HOST_MAX_RANK] = {false};
    TRY(begin_view(p, &x, &v, &c));
    if (arg_count(p, 1) > 0) TRY(arg_dims(p, 1, x->rank, flips));
    for (int32_t d = 0; d < x->rank; d++)
        if (flips[d] && x->shape[d] > 0) {
            c->offset += (x->shape[d] - 1) * c->stride[d];
            c->stride[d] = -c->stride[d];
        }
    return add_view(p, v);
}

/* ---- broadcasting ---- */

static mera_status expand_to(host_planner *p, const host_tensor *x, views *v, int32_t rank, const int64_t *sizes)
{
    strided_copy *c = v->copies;
    const strided_copy old = *c;
    const int32_t lead = rank - x->rank;
    if (lead < 0 || rank > HOST_MAX_RANK)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%d dimensions cannot become %d", x->rank, rank);
    c->rank = rank;
    for (int32_t d = 0; d < rank; d++) {
        const int64_t have = d < lead ? 1 : old.shape[d - lead], want = sizes[d] == -1 && d >= lead ? have : sizes[d];
        if (want < 0 || (have != 1 && have != want))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "size %lld cannot be expanded to %lld", (long long)have,
                               (long long)want);
        c->shape[d] = want;
        c->stride[d] = d < lead || have != want ? 0 : old.stride[d - lead];
    }
    return add_view(p, v);
}

mera_status plan_expand(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int64_t sizes[HOST_MAX_RANK] = {0};
    TRY(begin_view(p, &x, &v, &c));
    for (int32_t d = 0; d < arg_count(p, 1) && d < HOST_MAX_RANK; d++) sizes[d] = arg_item(p, 1, d);
    return expand_to(p, x, v, arg_count(p, 1), sizes);
}

mera_status plan_expand_as(host_planner *p)
{
    const host_tensor *x, *other;
    views *v = NULL;
    strided_copy *c = NULL;
    TRY(begin_view(p, &x, &v, &c));
    TRY(arg_tensor(p, 1, &other));
    return expand_to(p, x, v, other->rank, other->shape);
}

/* ---- parts ---- */

mera_status plan_select(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t dim = 0;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 1, x->rank, &dim));
    const int64_t index = arg_int(p, 2), size = x->shape[dim];
    if (index < -size || index >= size)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "there is no index %lld of %lld", (long long)index, (long long)size);
    c->offset = (index < 0 ? index + size : index) * c->stride[dim];
    drop_dim(c, dim);
    return add_view(p, v);
}

static int64_t bounded(int64_t at, int64_t size) { return at < 0 ? max_i64(at + size, 0) : min_i64(at, size); }

mera_status plan_slice(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t dim = 0;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 1, x->rank, &dim));
    const int64_t size = x->shape[dim], step = arg_int(p, 4);
    if (step < 1) return host_refuse(p, MERA_INVALID_ARGUMENT, "step must be at least 1, got %lld", (long long)step);
    const int64_t start = bounded(arg_given(p, 2) ? arg_int(p, 2) : 0, size);
    const int64_t end = max_i64(bounded(arg_given(p, 3) ? arg_int(p, 3) : size, size), start);
    c->offset = start * c->stride[dim];
    c->shape[dim] = end - start == 0 ? 0 : (end - start - 1) / step + 1;
    c->stride[dim] *= min_i64(step, max_i64(size, 1));
    return add_view(p, v);
}

mera_status plan_narrow(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t dim = 0;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 1, x->rank, &dim));
    const int64_t size = x->shape[dim], given = arg_int(p, 2), start = given < 0 ? given + size : given;
    const int64_t length = arg_int(p, 3);
    if (start < 0 || start > size || length < 0 || length > size - start)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld from %lld is not within %lld", (long long)length,
                           (long long)given, (long long)size);
    c->offset = start * c->stride[dim];
    c->shape[dim] = length;
    return add_view(p, v);
}

/* Parts of dimension dim: the k-th has sizes[k]. */
static mera_status split_into(host_planner *p, const host_tensor *x, int32_t dim, int64_t count, const int64_t *sizes)
{
    views *v = NULL;
    int64_t at = 0;
    p->step->many = true;
    if (count > HOST_MAX_RESULTS)
        return host_refuse(p, MERA_UNSUPPORTED, "it has more than %d results", (int)HOST_MAX_RESULTS);
    TRY(new_views(p, 0, (int32_t)count, &v));
    for (int64_t k = 0; k < count; k++) {
        v->copies[k] = whole_of(x);
        v->copies[k].offset = at * v->copies[k].stride[dim];
        v->copies[k].shape[dim] = sizes[k];
        at += sizes[k];
        TRY(add_view(p, v));
    }
    return MERA_OK;
}

static mera_status split_evenly(host_planner *p, const host_tensor *x, int32_t dim, int64_t size)
{
    int64_t sizes[HOST_MAX_RESULTS], rest = x->shape[dim];
    const int64_t count = size == 0 ? 1 : max_i64(ceil_div(rest, size), 1);
    for (int64_t k = 0; k < count && k < HOST_MAX_RESULTS; k++) {
        sizes[k] = size == 0 ? rest : min_i64(size, rest);
        rest -= sizes[k];
    }
    return split_into(p, x, dim, count, sizes);
}

/* variant: 0 = parts of split_size, 1 = so many chunks, 2 = a list of sizes. */
mera_status plan_split(host_planner *p)
{
    const host_tensor *x;
    int32_t dim = 0;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 2, x->rank, &dim));
    const int64_t whole = x->shape[dim];
    if (p->variant < 2) {
        const int64_t given = arg_int(p, 1);
        if (given < p->variant || (given == 0 && whole != 0))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "it cannot be split by %lld", (long long)given);
        if (p->variant == 0) return split_evenly(p, x, dim, given);
        const int64_t size = (whole - 1) / given + (whole > 0);
        if (size > 0) return split_evenly(p, x, dim, size);
        const int64_t none[HOST_MAX_RESULTS] = {0};
        return split_into(p, x, dim, given, none);
    }
    int64_t sizes[HOST_MAX_RESULTS], sum = 0;
    const int32_t count = arg_count(p, 1);
    for (int32_t k = 0; k < count && k < HOST_MAX_RESULTS; k++) {
        sizes[k] = arg_item(p, 1, k);
        if (sizes[k] < 0 || sizes[k] > whole) return host_refuse(p, MERA_INVALID_ARGUMENT, "a part has another size");
        sum += sizes[k];
    }
    if (sum != whole) return host_refuse(p, MERA_INVALID_ARGUMENT, "the parts do not make up %lld", (long long)whole);
    return split_into(p, x, dim, count, sizes);
}

mera_status plan_unbind(host_planner *p)
{
    const host_tensor *x;
    int32_t dim = 0;
    views *v = NULL;
    p->step->many = true;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 1, x->rank, &dim));
    if (x->shape[dim] > HOST_MAX_RESULTS)
        return host_refuse(p, MERA_UNSUPPORTED, "it has more than %d results", (int)HOST_MAX_RESULTS);
    TRY(new_views(p, 0, (int32_t)x->shape[dim], &v));
    for (int64_t k = 0; k < x->shape[dim]; k++) {
        v->copies[k] = whole_of(x);
        v->copies[k].offset = k * v->copies[k].stride[dim];
        drop_dim(&v->copies[k], dim);
        TRY(add_view(p, v));
    }
    return MERA_OK;
}

mera_status plan_diagonal(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t a, b;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 2, HOST_MAX_RANK, "self"));
    TRY(arg_dim(p, 2, x->rank, &a));
    TRY(arg_dim(p, 3, x->rank, &b));
    if (a == b) return host_refuse(p, MERA_INVALID_ARGUMENT, "dim1 and dim2 must differ");
    const int64_t offset = arg_int(p, 1), limit = INT64_C(1) << 40;
    const int64_t down = offset < 0 ? min_i64(offset < -limit ? limit : -offset, x->shape[a]) : 0;
    const int64_t right = offset > 0 ? min_i64(offset, x->shape[b]) : 0;
    const int64_t n = min_i64(x->shape[a] - down, x->shape[b] - right);
    const int64_t stride = c->stride[a] + c->stride[b];
    if (n > 0) c->offset = down * c->stride[a] + right * c->stride[b];
    drop_dim(c, a > b ? a : b);
    drop_dim(c, a > b ? b : a);
    c->shape[c->rank] = n;
    c->stride[c->rank++] = stride;
    return add_view(p, v);
}

mera_status plan_unfold(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t dim = 0;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 1, HOST_MAX_RANK - 1, "self"));
    TRY(arg_dim(p, 1, x->rank, &dim));
    const int64_t size = arg_int(p, 2), step = arg_int(p, 3);
    if (size < 0 || size > x->shape[dim] || step < 1)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "size and step do not suit a dimension of %lld",
                           (long long)x->shape[dim]);
    const int64_t stride = c->stride[dim];
    c->shape[dim] = (x->shape[dim] - size) / step + 1;
    c->stride[dim] = stride * min_i64(step, max_i64(x->shape[dim], 1));
    c->shape[c->rank] = size;
    c->stride[c->rank++] = stride;
    return add_view(p, v);
}

/* ---- repetition and shuffles: views of more dimensions ---- */

/* variant: 0 = repeat, 1 = tile (fewer values than dimensions are led by 1). */
mera_status plan_repeat(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    TRY(begin_view(p, &x, &v, &c));
    const int32_t given = arg_count(p, 1), rank = p->variant == 1 && given < x->rank ? x->rank : given;
    if (rank < x->rank || rank > HOST_MAX_RANK)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%d repeats do not suit %d dimensions", given, x->rank);
    const strided_copy old = *c;
    int64_t shape[HOST_MAX_RANK];
    c->rank = 2 * rank;
    for (int32_t d = 0; d < rank; d++) {
        const int32_t from = d - (rank - x->rank), item = d - (rank - given);
        const int64_t times = item < 0 ? 1 : arg_item(p, 1, item);
        if (times < 0 || times > INT64_C(1) << 40)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld times cannot be", (long long)times);
        c->shape[2 * d] = times;
        c->stride[2 * d] = 0;
        c->shape[2 * d + 1] = from < 0 ? 1 : old.shape[from];
        c->stride[2 * d + 1] = from < 0 ? 0 : old.stride[from];
        if (c->shape[2 * d + 1] > 0 && times > (INT64_C(1) << 40) / c->shape[2 * d + 1])
            return host_refuse(p, MERA_UNSUPPORTED, "a tensor must have at most 2^40 elements");
        shape[d] = times * c->shape[2 * d + 1];
    }
    return add_shaped_view(p, v, rank, shape);
}

/* repeat_interleave by one number. */
mera_status plan_interleave(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    int32_t dim = 0;
    TRY(begin_view(p, &x, &v, &c));
    if (!arg_given(p, 2)) {
        c->rank = 1;
        c->shape[0] = host_elements(x);
        c->stride[0] = 1;
    } else {
        TRY(arg_dim(p, 2, x->rank, &dim));
    }
    const int64_t times = arg_int(p, 1);
    if (times < 0 || times > INT64_C(1) << 30)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld times cannot be", (long long)times);
    if (c->rank == 0) return host_refuse(p, MERA_UNSUPPORTED, "self has no dimension");
    int64_t shape[HOST_MAX_RANK];
    const int32_t rank = c->rank;
    memcpy(shape, c->shape, sizeof shape);
    shape[dim] = shape[dim] > (INT64_C(1) << 40) / max_i64(times, 1) ? -1 : shape[dim] * times;
    for (int32_t d = c->rank++; d > dim + 1; d--) {
        c->shape[d] = c->shape[d - 1];
        c->stride[d] = c->stride[d - 1];
    }
    c->shape[dim + 1] = times;
    c->stride[dim + 1] = 0;
    return add_shaped_view(p, v, rank, shape);
}

/* [*, C, H, W] as dims of `shape`, whose sizes are split from the last three dimensions of x, read in another order. */
static void regroup(strided_copy *c, int32_t lead, int32_t count, const int64_t *sizes, const int32_t *order)
{
    int64_t strides[6];
    dense_strides(count, sizes, strides);
    c->rank = lead + count;
    for (int32_t i = 0; i < count; i++) {
        c->shape[lead + i] = sizes[order[i]];
        c->stride[lead + i] = strides[order[i]];
    }
}

/* variant: 0 = pixel_shuffle, 1 = pixel_unshuffle. */
mera_status plan_pixel_shuffle(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 3, HOST_MAX_RANK, "self"));
    const int64_t r = arg_int(p, 1);
    const int32_t lead = x->rank - 3;
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, x->shape, sizeof shape);
    int64_t *chw = shape + lead;
    if (r < 1 || r > 1 << 20) return host_refuse(p, MERA_INVALID_ARGUMENT, "the factor must be 1 to 2^20");
    if (p->variant == 0) {
        const int64_t sizes[] = {chw[0] / (r * r), r, r, chw[1], chw[2]};
        if (chw[0] % (r * r) != 0)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld channels are no multiple of %lld", (long long)chw[0],
                               (long long)(r * r));
        regroup(c, lead, 5, sizes, (const int32_t[]){0, 3, 1, 4, 2});
        chw[0] = sizes[0], chw[1] *= r, chw[2] *= r;
    } else {
        const int64_t sizes[] = {chw[0], chw[1] / r, r, chw[2] / r, r};
        if (chw[1] % r != 0 || chw[2] % r != 0)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "height and width must be multiples of %lld", (long long)r);
        regroup(c, lead, 5, sizes, (const int32_t[]){0, 2, 4, 1, 3});
        chw[0] *= r * r, chw[1] /= r, chw[2] /= r;
    }
    return add_shaped_view(p, v, x->rank, shape);
}

mera_status plan_channel_shuffle(host_planner *p)
{
    const host_tensor *x;
    views *v = NULL;
    strided_copy *c = NULL;
    TRY(begin_view(p, &x, &v, &c));
    TRY(need_rank(p, x, 3, HOST_MAX_RANK, "self"));
    const int64_t groups = arg_int(p, 1), inner = product(x->rank - 2, x->shape + 2);
    if (groups < 1 || x->shape[1] % groups != 0)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld channels cannot be in %lld groups", (long long)x->shape[1],
                           (long long)groups);
    const int64_t sizes[] = {groups, x->shape[1] / groups, inner};
    regroup(c, 1, 3, sizes, (const int32_t[]){1, 0, 2});
    return add_shaped_view(p, v, x->rank, x->shape);
}

/* ---- several tensors at once ---- */

typedef struct list_views {
    int32_t *numbers;
    strided_copy *copies;
} list_views;

static mera_status run_list_views(const host_frame *f)
{
    const list_views *v = f->step->plan;
    for (int32_t k = 0; k < f->step->result_count; k++)
        strided_run(&v->copies[k], host_dtype_size(f->step->results[k].dtype), f->tensors[v->numbers[k]], f->results[k]);
    return MERA_OK;
}

static mera_status begin_list(host_planner *p, list_views **out)
{
    const int32_t count = arg_count(p, 0);
    list_views *v = NEW_PLAN(p, list_views);
    if (v == NULL) return out_of_memory(p->ctx);
    v->numbers = arena_array(p->memory, (size_t)count + 1, sizeof *v->numbers);
    v->copies = arena_array(p->memory, (size_t)count + 1, sizeof *v->copies);
    if (v->numbers == NULL || v->copies == NULL) return out_of_memory(p->ctx);
    for (int32_t k = 0; k < count; k++) {
        if (p->step->args[0].items[k].kind != MERA_HOST_TENSOR)
            return host_refuse(p, MERA_UNSUPPORTED, "item %d is no tensor", k);
        v->numbers[k] = (int32_t)arg_item(p, 0, k);
    }
    p->step->many = true;
    p->step->run = run_list_views;
    *out = v;
    return MERA_OK;
}

static mera_status add_list_view(host_planner *p, list_views *v, int32_t k)
{
    strided_copy *c = &v->copies[k];
    strided_to_dense(c);
    TRY(add_result(p, p->tensors[v->numbers[k]].dtype, c->rank, c->shape));
    strided_simplify(c);
    return MERA_OK;
}

/* variant: 1 = with indexing; "xy" swaps the first two dimensions. */
mera_status plan_meshgrid(host_planner *p)
{
    const int32_t count = arg_count(p, 0);
    const bool swapped = p->variant == 1 && strcmp(arg_text(p, 1), "xy") == 0;
    list_views *v = NULL;
    if (p->variant == 1 && !swapped && strcmp(arg_text(p, 1), "ij") != 0)
        return host_refuse(p, MERA_UNSUPPORTED, "indexing must be ij or xy, not %s", arg_text(p, 1));
    if (count < 1 || count > HOST_MAX_RANK) return host_refuse(p, MERA_UNSUPPORTED, "it takes 1 to 8 tensors");
    TRY(begin_list(p, &v));
    for (int32_t k = 0; k < count; k++) {
        strided_copy *c = &v->copies[k];
        c->rank = count;
        for (int32_t d = 0; d < count; d++) {
            const int32_t from = swapped && count > 1 && d < 2 ? 1 - d : d;
            const host_tensor *t = &p->tensors[v->numbers[from]];
            if (t->rank > 1) return host_refuse(p, MERA_INVALID_ARGUMENT, "the tensors must have 0 or 1 dimensions");
            c->shape[d] = host_elements(t);
            c->stride[d] = from == k;
        }
        TRY(add_list_view(p, v, k));
    }
    return MERA_OK;
}

mera_status plan_broadcast_tensors(host_planner *p)
{
    const int32_t count = arg_count(p, 0);
    int32_t rank = 0;
    int64_t shape[HOST_MAX_RANK] = {0};
    list_views *v = NULL;
    TRY(begin_list(p, &v));
    for (int32_t k = 0; k < count; k++) rank = (int32_t)max_i64(rank, p->tensors[v->numbers[k]].rank);
    for (int32_t d = 0; d < rank; d++) shape[d] = 1;
    for (int32_t k = 0; k < count; k++) {
        const host_tensor *t = &p->tensors[v->numbers[k]];
        for (int32_t d = 0; d < t->rank; d++)
            if (t->shape[d] != 1) shape[rank - t->rank + d] = t->shape[d];
    }
    for (int32_t k = 0; k < count; k++) {
        const host_tensor *t = &p->tensors[v->numbers[k]];
        strided_copy *c = &v->copies[k];
        const int32_t lead = rank - t->rank;
        dense_strides(t->rank, t->shape, c->stride + lead);
        c->rank = rank;
        memcpy(c->shape, shape, sizeof shape);
        for (int32_t d = 0; d < t->rank; d++) {
            if (t->shape[d] != 1 && t->shape[d] != shape[lead + d])
                return host_refuse(p, MERA_INVALID_ARGUMENT, "the tensors cannot be broadcast together");
            if (t->shape[d] == 1) c->stride[lead + d] = 0;
        }
        TRY(add_list_view(p, v, k));
    }
    return MERA_OK;
}
