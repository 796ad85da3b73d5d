/* sort.c: sort, argsort, topk: a stable merge sort; NaN counts as the greatest. */
#include "ops.h"

typedef struct sorting {
    int32_t number;
    host_dtype dtype;
    int64_t outer, size, inner, keep; /* x [outer, size, inner]; keep: of size */
    bool descending, indices_only;
} sorting;

typedef union key {
    double real;
    int64_t integer;
} key;

typedef struct entry {
    key key;
    int64_t index;
} entry;

/* Whether b must stand before a, which came first. */
static bool before_real(double b, double a, bool descending)
{
    if (descending) return a == a && (b != b || b > a);
    return b == b && (a != a || b < a);
}

static bool before(const entry *b, const entry *a, bool real, bool descending)
{
    if (real) return before_real(b->key.real, a->key.real, descending);
    return descending ? b->key.integer > a->key.integer : b->key.integer < a->key.integer;
}

/* Sorts n entries; the result is in the array that is returned: entries or spare. */
static entry *merge_sort(entry *entries, entry *spare, int64_t n, bool real, bool descending)
{
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t start = 0; start < n; start += 2 * width) {
            const int64_t middle = min_i64(start + width, n), end = min_i64(start + 2 * width, n);
            int64_t a = start, b = middle;
            for (int64_t k = start; k < end; k++) {
                const bool take_b = a == middle || (b < end && before(&entries[b], &entries[a], real, descending));
                spare[k] = entries[take_b ? b++ : a++];
            }
        }
        entry *t = entries;
        entries = spare;
        spare = t;
    }
    return entries;
}

static mera_status run_sort(const host_frame *f)
{
    const sorting *s = f->step->plan;
    const bool real = is_float(s->dtype);
    const size_t size = host_dtype_size(s->dtype);
    const char *x = f->tensors[s->number];
    char *values = s->indices_only ? NULL : f->results[0];
    int64_t *indices = f->results[s->indices_only ? 0 : 1];
    for (int64_t line = 0; line < s->outer * s->inner; line++) {
        const int64_t o = line / s->inner, j = line % s->inner;
        entry *entries = f->scratch;
        for (int64_t i = 0; i < s->size; i++) {
            const char *from = x + (size_t)((o * s->size + i) * s->inner + j) * size;
            convert_row(1, real ? MERA_HOST_FLOAT64 : MERA_HOST_INT64, &entries[i].key, s->dtype, from, 1);
            entries[i].index = i;
        }
        entries = merge_sort(entries, entries + s->size, s->size, real, s->descending);
        for (int64_t i = 0; i < s->keep; i++) {
            const int64_t at = (o * s->keep + i) * s->inner + j;
            indices[at] = entries[i].index;
            if (values != NULL)
                memcpy(values + (size_t)at * size, x + (size_t)((o * s->size + entries[i].index) * s->inner + j) * size,
                       size);
        }
    }
    return MERA_OK;
}

/* keep: -1 = all. */
static mera_status plan(host_planner *p, int64_t keep, int64_t dim_given, bool descending, bool indices_only)
{
    const host_tensor *x;
    int32_t dim = 0;
    int64_t shape[HOST_MAX_RANK] = {0};
    TRY(arg_tensor(p, 0, &x));
    TRY(check_dim(p, dim_given, x->rank, &dim));
    const int64_t size = x->rank > 0 ? x->shape[dim] : 1;
    if (keep < -1 || keep > size)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "k must be 0 to %lld, got %lld", (long long)size, (long long)keep);
    sorting *s = NEW_PLAN(p, sorting);
    if (s == NULL) return out_of_memory(p->ctx);
    *s = (sorting){.number = arg_number(p, 0),
                   .dtype = x->dtype,
                   .outer = product(dim, x->shape),
                   .size = size,
                   .inner = x->rank > 0 ? product(x->rank - dim - 1, x->shape + dim + 1) : 1,
                   .keep = keep < 0 ? size : keep,
                   .descending = descending,
                   .indices_only = indices_only};
    p->step->run = run_sort;
    p->step->scratch_bytes = (size_t)size * 2 * sizeof(entry);
    memcpy(shape, x->shape, sizeof shape);
    if (x->rank > 0) shape[dim] = s->keep;
    if (!indices_only) {
        p->step->many = true;
        TRY(add_result(p, x->dtype, x->rank, shape));
    }
    return add_result(p, MERA_HOST_INT64, x->rank, shape);
}

/* (self, dim, descending) */
mera_status plan_sort(host_planner *p) { return plan(p, -1, arg_int(p, 1), arg_flag(p, 2), p->variant == 1); }

/* (self, *, stable, dim, descending) */
mera_status plan_sort_stable(host_planner *p) { return plan(p, -1, arg_int(p, 2), arg_flag(p, 3), p->variant == 1); }

/* (self, k, dim, largest, sorted): always sorted */
mera_status plan_topk(host_planner *p) { return plan(p, arg_int(p, 1), arg_int(p, 2), arg_flag(p, 3), false); }
