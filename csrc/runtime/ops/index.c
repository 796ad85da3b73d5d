/* index.c: reading and writing by tensors of indices. */
#include "ops.h"

static mera_status need_index(host_planner *p, const host_tensor *t, const char *what)
{
    if (t->dtype == MERA_HOST_INT64 || t->dtype == MERA_HOST_INT32) return MERA_OK;
    return host_refuse(p, MERA_UNSUPPORTED, "%s must be int64 or int32, not %s", what, host_dtype_name(t->dtype));
}

static inline int64_t index_at(const void *indices, host_dtype dtype, int64_t i)
{
    return dtype == MERA_HOST_INT64 ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
}

static mera_status out_of_range(const host_frame *f, int64_t index, int64_t size)
{
    return fail(f->ctx, MERA_INVALID_ARGUMENT, "step %s: index %lld is out of range for a dimension of %lld", f->step->name,
                (long long)index, (long long)size);
}

/* ---- index_select, embedding: whole slices ---- */

typedef struct selection {
    int32_t from, indices;
    host_dtype index_dtype;
    int64_t outer, size, inner, count; /* x [outer, size, inner], result [outer, count, inner] */
} selection;

static mera_status run_select(const host_frame *f)
{
    const selection *s = f->step->plan;
    const size_t bytes = (size_t)s->inner * host_dtype_size(f->step->results[0].dtype);
    const char *x = f->tensors[s->from];
    const void *indices = f->tensors[s->indices];
    char *to = f->results[0];
    for (int64_t j = 0; j < s->count; j++) {
        const int64_t k = index_at(indices, s->index_dtype, j);
        if (k < 0 || k >= s->size) return out_of_range(f, k, s->size);
    }
    if (bytes == 0) return MERA_OK;
    for (int64_t i = 0; i < s->outer; i++)
        for (int64_t j = 0; j < s->count; j++, to += bytes)
            memcpy(to, x + (size_t)(i * s->size + index_at(indices, s->index_dtype, j)) * bytes, bytes);
    return MERA_OK;
}

static mera_status new_selection(host_planner *p, int32_t from, int32_t indices, int32_t dim)
{
    const host_tensor *x = &p->tensors[from], *i = &p->tensors[indices];
    selection *s = NEW_PLAN(p, selection);
    if (s == NULL) return out_of_memory(p->ctx);
    *s = (selection){.from = from,
                     .indices = indices,
                     .index_dtype = i->dtype,
                     .count = host_elements(i),
                     .outer = product(dim, x->shape),
                     .size = x->rank == 0 ? 1 : x->shape[dim],
                     .inner = x->rank == 0 ? 1 : product(x->rank - dim - 1, x->shape + dim + 1)};
    p->step->run = run_select;
    return MERA_OK;
}

mera_status plan_index_select(host_planner *p)
{
    const host_tensor *x, *index;
    int32_t dim = 0;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_dim(p, 1, x->rank, &dim));
    TRY(arg_tensor(p, 2, &index));
    TRY(need_index(p, index, "index"));
    TRY(need_rank(p, index, 0, 1, "index"));
    if (x->rank == 0 && host_elements(index) != 1)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "self has one element, index must too");
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, x->shape, sizeof shape);
    if (x->rank > 0) shape[dim] = host_elements(index);
    TRY(add_result(p, x->dtype, x->rank, shape));
    return new_selection(p, arg_number(p, 0), arg_number(p, 2), dim);
}

mera_status plan_embedding(host_planner *p)
{
    const host_tensor *weight, *index;
    TRY(arg_tensor(p, 0, &weight));
    TRY(arg_tensor(p, 1, &index));
    TRY(need_rank(p, weight, 2, 2, "weight"));
    TRY(need_rank(p, index, 0, HOST_MAX_RANK - 1, "indices"));
    TRY(need_index(p, index, "indices"));
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, index->shape, sizeof shape);
    shape[index->rank] = weight->shape[1];
    TRY(add_result(p, weight->dtype, index->rank + 1, shape));
    return new_selection(p, arg_number(p, 0), arg_number(p, 1), 0);
}

/* ---- gather, scatter ---- */

typedef struct gathering {
    int32_t dim, from, indices, source; /* source: -1 for gather and for a number */
    host_dtype index_dtype;
    int32_t rank;
    int64_t shape[HOST_MAX_RANK];   /* of the index */
    int64_t strides[HOST_MAX_RANK]; /* of x; 0 in dim */
    int64_t source_strides[HOST_MAX_RANK];
    int64_t stride, size; /* of dim */
    _Alignas(8) uint8_t value[8];
} gathering;

static void copy_one(void *to, const void *from, size_t size)
{
    switch (size) {
    case 1:
        memcpy(to, from, 1);
        break;
    case 2:
        memcpy(to, from, 2);
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    default:
        memcpy(to, from, 8);
        break;
    }
}

/* gather: y[i] = x[.., index[i], ..]; scatter: y = x, y[.., index[i], ..] = source[i]. */
static mera_status walk(const host_frame *f, bool scatter)
{
    const gathering *g = f->step->plan;
    const size_t size = host_dtype_size(f->step->results[0].dtype);
    const char *x = f->tensors[g->from], *source = g->source >= 0 ? f->tensors[g->source] : NULL;
    char *to = f->results[0];
    int64_t at[HOST_MAX_RANK] = {0};
    const int64_t n = product(g->rank, g->shape);
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = index_at(f->tensors[g->indices], g->index_dtype, i);
        if (k < 0 || k >= g->size) return out_of_range(f, k, g->size);
        int64_t here = k * g->stride, there = 0;
        for (int32_t d = 0; d < g->rank; d++) {
            here += at[d] * g->strides[d];
            there += at[d] * g->source_strides[d];
        }
        if (!scatter)
            copy_one(to + (size_t)i * size, x + (size_t)here * size, size);
        else
            copy_one(to + (size_t)here * size, source ? source + (size_t)there * size : (const char *)g->value, size);
        for (int32_t d = g->rank - 1; d >= 0 && ++at[d] == g->shape[d]; d--) at[d] = 0;
    }
    return MERA_OK;
}

static mera_status run_gather(const host_frame *f) { return walk(f, false); }

static mera_status run_scatter(const host_frame *f)
{
    const gathering *g = f->step->plan;
    const size_t bytes = host_bytes(&f->step->results[0]);
    if (bytes > 0) memcpy(f->results[0], f->tensors[g->from], bytes);
    return walk(f, true);
}

static mera_status new_gathering(host_planner *p, const host_tensor *x, const host_tensor *index, gathering **out)
{
    int32_t dim = 0;
    TRY(arg_dim(p, 1, x->rank, &dim));
    TRY(need_index(p, index, "index"));
    const int32_t rank = max_i64(x->rank, 1) > index->rank ? x->rank : index->rank;
    if (max_i64(x->rank, 1) != max_i64(index->rank, 1))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "index must have %d dimensions, got %d", x->rank, index->rank);
    gathering *g = NEW_PLAN(p, gathering);
    if (g == NULL) return out_of_memory(p->ctx);
    *g = (gathering){.dim = dim,
                     .from = arg_number(p, 0),
                     .indices = arg_number(p, 2),
                     .source = -1,
                     .index_dtype = index->dtype,
                     .rank = rank,
                     .stride = 1,
                     .size = 1};
    for (int32_t d = 0; d < rank; d++) {
        g->shape[d] = index->rank == 0 ? 1 : index->shape[d];
        if (d != dim && x->rank > 0 && g->shape[d] > x->shape[d] && host_elements(index) > 0)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "index has %lld in dimension %d, self %lld", (long long)g->shape[d],
                               d, (long long)x->shape[d]);
    }
    if (x->rank > 0) {
        dense_strides(x->rank, x->shape, g->strides);
        g->stride = g->strides[dim];
        g->size = x->shape[dim];
        g->strides[dim] = 0;
    }
    *out = g;
    return MERA_OK;
}

mera_status plan_gather(host_planner *p)
{
    const host_tensor *x, *index;
    gathering *g = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 2, &index));
    TRY(new_gathering(p, x, index, &g));
    p->step->run = run_gather;
    return add_result(p, x->dtype, index->rank, index->shape);
}

/* variant: 0 = from a tensor, 1 = a number. */
mera_status plan_scatter(host_planner *p)
{
    const host_tensor *x, *index, *source;
    gathering *g = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 2, &index));
    TRY(new_gathering(p, x, index, &g));
    if (p->variant == 1) {
        store_number(x->dtype, g->value, &p->step->args[3]);
    } else {
        TRY(arg_tensor(p, 3, &source));
        bool good = source->rank == index->rank && source->dtype == x->dtype;
        for (int32_t d = 0; good && d < index->rank; d++) good = index->shape[d] <= source->shape[d];
        if (!good) return host_refuse(p, MERA_INVALID_ARGUMENT, "src must have self's dtype and at least index's sizes");
        g->source = arg_number(p, 3);
        dense_strides(source->rank, source->shape, g->source_strides);
    }
    p->step->run = run_scatter;
    return add_result(p, x->dtype, x->rank, x->shape);
}

/* ---- index.Tensor, index_put: indices that broadcast, for some of the dimensions ---- */

typedef struct indexing {
    int32_t from, values; /* values: -1 for reading */
    int32_t count;        /* of index tensors */
    int32_t number[HOST_MAX_RANK];
    host_dtype dtype[HOST_MAX_RANK];
    int64_t index_strides[HOST_MAX_RANK][HOST_MAX_RANK];
    int64_t size[HOST_MAX_RANK], stride[HOST_MAX_RANK]; /* of the dimension that it indexes */
    /* the result is [lead, indexed, tail]: positions in the result, sizes, strides in x (0: indexed) */
    int32_t rank, first, indexed;
    int64_t shape[HOST_MAX_RANK], strides[HOST_MAX_RANK], value_strides[HOST_MAX_RANK];
    bool add;
} indexing;

static mera_status element_of(const host_frame *f, const indexing *g, const int64_t *at, int64_t *found)
{
    int64_t element = 0;
    for (int32_t d = 0; d < g->rank; d++) element += at[d] * g->strides[d];
    for (int32_t k = 0; k < g->count; k++) {
        int64_t i = 0;
        for (int32_t d = 0; d < g->indexed; d++) i += at[g->first + d] * g->index_strides[k][d];
        const int64_t given = index_at(f->tensors[g->number[k]], g->dtype[k], i);
        if (given < -g->size[k] || given >= g->size[k]) return out_of_range(f, given, g->size[k]);
        element += (given < 0 ? given + g->size[k] : given) * g->stride[k];
    }
    *found = element;
    return MERA_OK;
}

static void add_one(host_dtype dtype, void *to, const void *from)
{
    if (is_float(dtype)) {
        double a, b;
        convert_row(1, MERA_HOST_FLOAT64, &a, dtype, to, 1);
        convert_row(1, MERA_HOST_FLOAT64, &b, dtype, from, 1);
        a += b;
        convert_row(1, dtype, to, MERA_HOST_FLOAT64, &a, 1);
    } else {
        int64_t a, b;
        convert_row(1, MERA_HOST_INT64, &a, dtype, to, 1);
        convert_row(1, MERA_HOST_INT64, &b, dtype, from, 1);
        a = (int64_t)((uint64_t)a + (uint64_t)b);
        convert_row(1, dtype, to, MERA_HOST_INT64, &a, 1);
    }
}

static mera_status run_index(const host_frame *f)
{
    const indexing *g = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const size_t size = host_dtype_size(y->dtype);
    const bool put = g->values >= 0;
    const char *x = f->tensors[g->from], *values = put ? f->tensors[g->values] : NULL;
    char *to = f->results[0];
    int64_t at[HOST_MAX_RANK] = {0}, element = 0;
    const int64_t n = product(g->rank, g->shape);
    if (put && host_elements(y) > 0) memcpy(to, x, host_bytes(y));
    for (int64_t i = 0; i < n; i++) {
        TRY(element_of(f, g, at, &element));
        if (put) {
            int64_t from = 0;
            for (int32_t d = 0; d < g->rank; d++) from += at[d] * g->value_strides[d];
            if (g->add)
                add_one(y->dtype, to + (size_t)element * size, values + (size_t)from * size);
            else
                copy_one(to + (size_t)element * size, values + (size_t)from * size, size);
        } else {
            copy_one(to + (size_t)i * size, x + (size_t)element * size, size);
        }
        for (int32_t d = g->rank - 1; d >= 0 && ++at[d] == g->shape[d]; d--) at[d] = 0;
    }
    return MERA_OK;
}

/* The broadcast shape of the index tensors, and each one's strides in it. */
static mera_status broadcast_indices(host_planner *p, indexing *g, int64_t *shape)
{
    g->indexed = 0;
    for (int32_t k = 0; k < g->count; k++) g->indexed = (int32_t)max_i64(g->indexed, p->tensors[g->number[k]].rank);
    for (int32_t d = 0; d < g->indexed; d++) shape[d] = 1;
    for (int32_t k = 0; k < g->count; k++) {
        const host_tensor *t = &p->tensors[g->number[k]];
        const int32_t lead = g->indexed - t->rank;
        dense_strides(t->rank, t->shape, g->index_strides[k] + lead);
        for (int32_t d = 0; d < t->rank; d++) {
            if (t->shape[d] == 1) g->index_strides[k][lead + d] = 0;
            if (t->shape[d] != 1 && shape[lead + d] != 1 && shape[lead + d] != t->shape[d])
                return host_refuse(p, MERA_INVALID_ARGUMENT, "the indices cannot be broadcast together");
            if (t->shape[d] != 1) shape[lead + d] = t->shape[d];
        }
    }
    return MERA_OK;
}

static mera_status new_indexing(host_planner *p, const host_tensor *x, indexing **out)
{
    const int32_t given = arg_count(p, 1);
    int64_t strides[HOST_MAX_RANK], common[HOST_MAX_RANK] = {0};
    bool is_indexed[HOST_MAX_RANK] = {false};
    indexing *g = NEW_PLAN(p, indexing);
    if (g == NULL) return out_of_memory(p->ctx);
    if (given > x->rank) return host_refuse(p, MERA_INVALID_ARGUMENT, "%d indices for %d dimensions", given, x->rank);
    g->from = arg_number(p, 0);
    g->values = -1;
    dense_strides(x->rank, x->shape, strides);
    int32_t first = -1, last = -1;
    for (int32_t d = 0; d < given; d++) {
        const host_arg *a = &p->step->args[1].items[d];
        if (a->kind == MERA_HOST_NONE) continue;
        if (a->kind != MERA_HOST_TENSOR) return host_refuse(p, MERA_UNSUPPORTED, "an index must be a tensor");
        const host_tensor *t = &p->tensors[a->integer];
        TRY(need_index(p, t, "an index (masks have no static shape)"));
        g->number[g->count] = (int32_t)a->integer;
        g->dtype[g->count] = t->dtype;
        g->size[g->count] = x->shape[d];
        g->stride[g->count++] = strides[d];
        is_indexed[d] = true;
        first = first < 0 ? d : first;
        last = d;
    }
    if (g->count == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "there is no index");
    TRY(broadcast_indices(p, g, common));
    const bool together = last - first + 1 == g->count;
    g->first = together ? first : 0;
    if (x->rank - g->count + g->indexed > HOST_MAX_RANK)
        return host_refuse(p, MERA_UNSUPPORTED, "the result has more than 8 dimensions");
    for (int32_t d = 0; d <= x->rank; d++) {
        if (g->rank == g->first && d == (together ? first : 0))
            for (int32_t i = 0; i < g->indexed; i++) g->shape[g->rank++] = common[i];
        if (d == x->rank || is_indexed[d]) continue;
        g->strides[g->rank] = strides[d];
        g->shape[g->rank++] = x->shape[d];
    }
    *out = g;
    return MERA_OK;
}

mera_status plan_index(host_planner *p)
{
    const host_tensor *x;
    indexing *g = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(new_indexing(p, x, &g));
    p->step->run = run_index;
    return add_result(p, x->dtype, g->rank, g->shape);
}

mera_status plan_index_put(host_planner *p)
{
    const host_tensor *x, *values;
    indexing *g = NULL;
    TRY(arg_tensor(p, 0, &x));
    TRY(arg_tensor(p, 2, &values));
    TRY(new_indexing(p, x, &g));
    g->values = arg_number(p, 2);
    g->add = arg_flag(p, 3);
    int64_t strides[HOST_MAX_RANK];
    const int32_t lead = g->rank - values->rank;
    dense_strides(values->rank, values->shape, strides);
    bool good = lead >= 0 && values->dtype == x->dtype;
    for (int32_t d = 0; good && d < values->rank; d++) {
        good = values->shape[d] == 1 || values->shape[d] == g->shape[lead + d];
        g->value_strides[lead + d] = values->shape[d] == 1 ? 0 : strides[d];
    }
    if (!good) return host_refuse(p, MERA_INVALID_ARGUMENT, "values must have self's dtype and broadcast to the indices");
    p->step->run = run_index;
    return add_result(p, x->dtype, x->rank, x->shape);
}

/* ---- one-hot, triangles ---- */

typedef struct triangle {
    int64_t diagonal;
    bool upper;
} triangle;

static mera_status run_triangle(const host_frame *f)
{
    const triangle *t = f->step->plan;
    const host_tensor *y = &f->step->results[0];
    const size_t size = host_dtype_size(y->dtype);
    const int64_t h = y->shape[y->rank - 2], w = y->shape[y->rank - 1], rows = h * w > 0 ? host_elements(y) / w : 0;
    const char *x = f->tensors[f->step->reads[0]];
    char *to = f->results[0];
    if (rows == 0) return MERA_OK;
    memset(to, 0, host_bytes(y));
    for (int64_t r = 0; r < rows; r++) {
        const int64_t edge = r % h + t->diagonal; /* the column of the diagonal in this row */
        const int64_t begin = t->upper ? min_i64(max_i64(edge, 0), w) : 0;
        const int64_t end = t->upper ? w : min_i64(max_i64(edge + 1, 0), w);
        const size_t at = (size_t)(r * w + begin) * size;
        if (end > begin) memcpy(to + at, x + at, (size_t)(end - begin) * size);
    }
    return MERA_OK;
}

/* variant: 0 = tril, 1 = triu. */
mera_status plan_triangle(host_planner *p)
{
    const host_tensor *x;
    TRY(arg_tensor(p, 0, &x));
    TRY(need_rank(p, x, 2, HOST_MAX_RANK, "self"));
    triangle *t = NEW_PLAN(p, triangle);
    if (t == NULL) return out_of_memory(p->ctx);
    const int64_t limit = INT64_C(1) << 41;
    t->diagonal = max_i64(min_i64(arg_int(p, 1), limit), -limit);
    t->upper = p->variant == 1;
    p->step->run = run_triangle;
    return add_result(p, x->dtype, x->rank, x->shape);
}
