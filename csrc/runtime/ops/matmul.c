/* matmul.c: products of matrices and batches of them. */
#include "gemm.h"

typedef struct matmul {
    gemm shape;
    int32_t a, b, bias; /* bias: -1 for none */
    host_dtype dtype, bias_dtype;
    int32_t batch_rank;
    int64_t batch[HOST_MAX_RANK], a_batch[HOST_MAX_RANK], b_batch[HOST_MAX_RANK];
    int64_t bias_row, bias_column, bias_batch;
    double alpha, beta;
} matmul;

static void multiply_integers(const matmul *x, const char *a, const char *b, char *c)
{
    const size_t size = host_dtype_size(x->dtype);
    const gemm *g = &x->shape;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            uint64_t sum = 0;
            for (int64_t k = 0; k < g->k; k++) {
                int64_t p, q;
                convert_row(1, MERA_HOST_INT64, &p, x->dtype, a + (size_t)(i * g->a_row + k * g->a_column) * size, 1);
                convert_row(1, MERA_HOST_INT64, &q, x->dtype, b + (size_t)(k * g->b_row + j * g->b_column) * size, 1);
                sum += (uint64_t)p * (uint64_t)q;
            }
            const int64_t result = (int64_t)sum;
            convert_row(1, x->dtype, c + (size_t)(i * g->c_row + j) * size, MERA_HOST_INT64, &result, 1);
        }
}

/* c = alpha c + beta bias; c is one matrix. */
static void add_bias(const matmul *x, const char *bias, char *c)
{
    const gemm *g = &x->shape;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            const int64_t at = i * x->bias_row + j * x->bias_column, k = i * g->c_row + j;
            if (x->dtype == MERA_HOST_FLOAT32) {
                float *y = (float *)c + k;
                const double b = bias && x->beta != 0 ? x->beta * (double)((const float *)bias)[at] : 0;
                *y = x->alpha == 1 && x->beta == 1 ? *y + (float)b : (float)(x->alpha * (double)*y + b);
            } else {
                double *y = (double *)c + k;
                const double b = bias && x->beta != 0 ? x->beta * ((const double *)bias)[at] : 0;
                *y = x->alpha * *y + b;
            }
        }
}

static mera_status run_matmul(const host_frame *f)
{
    const matmul *x = f->step->plan;
    const gemm *g = &x->shape;
    const size_t size = host_dtype_size(x->dtype);
    const int64_t count = product(x->batch_rank, x->batch);
    int64_t index[HOST_MAX_RANK] = {0}, at_a = 0, at_b = 0;
    char *c = f->results[0];
    if (host_elements(&f->step->results[0]) == 0) return MERA_OK;
    memset(c, 0, host_bytes(&f->step->results[0]));
    for (int64_t i = 0; i < count; i++, c += (size_t)(g->m * g->n) * size) {
        const char *a = (const char *)f->tensors[x->a] + (size_t)at_a * size;
        const char *b = (const char *)f->tensors[x->b] + (size_t)at_b * size;
        if (!is_float(x->dtype))
            multiply_integers(x, a, b, c);
        else if (x->dtype == MERA_HOST_FLOAT32)
            gemm_add_f32(g, (const float *)a, (const float *)b, (float *)c, f->scratch);
        else
            gemm_add_f64(g, (const double *)a, (const double *)b, (double *)c, f->scratch);
        if (x->bias >= 0) add_bias(x, (const char *)f->tensors[x->bias] + (size_t)(i * x->bias_batch) * size, c);
        for (int32_t d = x->batch_rank - 1; d >= 0; d--) {
            at_a += x->a_batch[d];
            at_b += x->b_batch[d];
            if (++index[d] < x->batch[d]) break;
            at_a -= x->a_batch[d] * x->batch[d];
            at_b -= x->b_batch[d] * x->batch[d];
            index[d] = 0;
        }
    }
    return MERA_OK;
}

/* ---- planning ---- */

static mera_status begin(host_planner *p, int32_t ia, int32_t ib, matmul **out)
{
    const host_tensor *a, *b;
    TRY(arg_tensor(p, ia, &a));
    TRY(arg_tensor(p, ib, &b));
    if (a->dtype != b->dtype || a->dtype == MERA_HOST_BOOL || is_half(a->dtype))
        return host_refuse(p, MERA_UNSUPPORTED, "both operands must be float32, float64 or one integer dtype, not %s and %s",
                           host_dtype_name(a->dtype), host_dtype_name(b->dtype));
    matmul *x = NEW_PLAN(p, matmul);
    if (x == NULL) return out_of_memory(p->ctx);
    *x = (matmul){.a = arg_number(p, ia), .b = arg_number(p, ib), .bias = -1, .dtype = a->dtype, .alpha = 1, .beta = 1};
    if (is_float(a->dtype)) p->step->scratch_bytes = gemm_scratch(a->dtype);
    p->step->run = run_matmul;
    *out = x;
    return MERA_OK;
}

static mera_status inner_sizes(host_planner *p, int64_t a, int64_t b)
{
    if (a == b) return MERA_OK;
    return host_refuse(p, MERA_INVALID_ARGUMENT, "%lld columns cannot meet %lld rows", (long long)a, (long long)b);
}

/* Batches that all dimensions but the last two make; those of 1 are broadcast. */
static mera_status batches(host_planner *p, matmul *x, const host_tensor *a, const host_tensor *b, int64_t *shape)
{
    int64_t sa[HOST_MAX_RANK], sb[HOST_MAX_RANK];
    const int32_t ra = a->rank - 2, rb = b->rank - 2, rank = ra > rb ? ra : rb;
    dense_strides(a->rank, a->shape, sa);
    dense_strides(b->rank, b->shape, sb);
    x->batch_rank = rank;
    for (int32_t d = 0; d < rank; d++) {
        const int32_t da = d - (rank - ra), db = d - (rank - rb);
        const int64_t na = da < 0 ? 1 : a->shape[da], nb = db < 0 ? 1 : b->shape[db];
        if (na != nb && na != 1 && nb != 1)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "batches of %lld and %lld cannot be broadcast together",
                               (long long)na, (long long)nb);
        x->batch[d] = shape[d] = na == 1 ? nb : na;
        x->a_batch[d] = na == 1 ? 0 : sa[da];
        x->b_batch[d] = nb == 1 ? 0 : sb[db];
    }
    return MERA_OK;
}

/* The operands as matrices: a vector on the left is a row, one on the right a column. */
static mera_status product_of(host_planner *p, matmul *x, host_tensor a, host_tensor b)
{
    const bool row = a.rank == 1, column = b.rank == 1;
    int64_t shape[HOST_MAX_RANK];
    if (a.rank == 0 || b.rank == 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "both operands must have dimensions");
    if (row) a.shape[1] = a.shape[0], a.shape[0] = 1, a.rank = 2;
    if (column) b.shape[1] = 1, b.rank = 2;
    const int64_t m = a.shape[a.rank - 2], k = a.shape[a.rank - 1], n = b.shape[b.rank - 1];
    TRY(inner_sizes(p, k, b.shape[b.rank - 2]));
    x->shape = (gemm){.m = m, .n = n, .k = k, .a_row = k, .a_column = 1, .b_row = n, .b_column = 1, .c_row = n};
    TRY(batches(p, x, &a, &b, shape));
    if (b.rank == 2 && x->batch_rank > 0) { /* one B: all rows of all batches at once */
        x->shape.m = product(x->batch_rank, x->batch) * m;
        x->batch_rank = 0;
    }
    int32_t rank = a.rank > b.rank ? a.rank - 2 : b.rank - 2;
    if (!row) shape[rank++] = m;
    if (!column) shape[rank++] = n;
    return add_result(p, x->dtype, rank, shape);
}

/* mm, bmm, mv, dot, matmul; variant: the rank that both must have, or 0. */
mera_status plan_matmul(host_planner *p)
{
    matmul *x = NULL;
    TRY(begin(p, 0, 1, &x));
    const host_tensor *a = &p->tensors[x->a], *b = &p->tensors[x->b];
    if (p->variant > 0) {
        TRY(need_rank(p, a, p->variant, p->variant, "self"));
        TRY(need_rank(p, b, p->variant, p->variant, "the second operand"));
        if (p->variant == 3 && a->shape[0] != b->shape[0])
            return host_refuse(p, MERA_INVALID_ARGUMENT, "both operands must have as many matrices");
    }
    return product_of(p, x, *a, *b);
}

/* addmm and baddbmm: beta * self + alpha * (a b); variant: the rank. */
mera_status plan_addmm(host_planner *p)
{
    matmul *x = NULL;
    const host_tensor *bias;
    TRY(arg_tensor(p, 0, &bias));
    TRY(begin(p, 1, 2, &x));
    TRY(need_float(p, bias, "self"));
    TRY(need_rank(p, &p->tensors[x->a], p->variant, p->variant, "the first matrix"));
    TRY(need_rank(p, &p->tensors[x->b], p->variant, p->variant, "the second matrix"));
    if (bias->dtype != x->dtype) return host_refuse(p, MERA_UNSUPPORTED, "all operands must have one dtype");
    if (p->variant == 3 && p->tensors[x->a].shape[0] != p->tensors[x->b].shape[0])
        return host_refuse(p, MERA_INVALID_ARGUMENT, "both operands must have as many matrices");
    TRY(product_of(p, x, p->tensors[x->a], p->tensors[x->b]));
    const host_tensor *y = &p->step->results[0];
    int64_t strides[HOST_MAX_RANK], wide[HOST_MAX_RANK] = {0};
    const int32_t lead = y->rank - bias->rank;
    dense_strides(bias->rank, bias->shape, strides);
    if (lead < 0) return host_refuse(p, MERA_INVALID_ARGUMENT, "self cannot be broadcast to the product");
    for (int32_t d = 0; d < bias->rank; d++) {
        if (bias->shape[d] != 1 && bias->shape[d] != y->shape[lead + d])
            return host_refuse(p, MERA_INVALID_ARGUMENT, "self cannot be broadcast to the product");
        wide[lead + d] = bias->shape[d] == 1 ? 0 : strides[d];
    }
    x->bias = arg_number(p, 0);
    x->bias_row = wide[y->rank - 2];
    x->bias_column = wide[y->rank - 1];
    x->bias_batch = y->rank == 3 ? wide[0] : 0;
    x->beta = arg_real(p, 3);
    x->alpha = arg_real(p, 4);
    return MERA_OK;
}

/* linear(input, weight, bias): weight [n, k] */
mera_status plan_linear(host_planner *p)
{
    matmul *x = NULL;
    const host_tensor *bias;
    TRY(begin(p, 0, 1, &x));
    const host_tensor *a = &p->tensors[x->a], *w = &p->tensors[x->b];
    TRY(arg_tensor_or_none(p, 2, &bias));
    TRY(need_rank(p, a, 1, HOST_MAX_RANK, "input"));
    TRY(need_rank(p, w, 1, 2, "weight"));
    const int64_t k = a->shape[a->rank - 1], n = w->rank == 1 ? 1 : w->shape[0];
    TRY(inner_sizes(p, k, w->shape[w->rank - 1]));
    x->shape = (gemm){.m = product(a->rank - 1, a->shape),
                      .n = n,
                      .k = k,
                      .a_row = k,
                      .a_column = 1,
                      .b_row = 1,
                      .b_column = k,
                      .c_row = n};
    if (bias != NULL) {
        TRY(need_float(p, bias, "bias"));
        if (bias->dtype != x->dtype || bias->rank > 1 || (host_elements(bias) != n && host_elements(bias) != 1))
            return host_refuse(p, MERA_INVALID_ARGUMENT, "bias must have input's dtype and %lld elements", (long long)n);
        x->bias = arg_number(p, 2);
        x->bias_column = host_elements(bias) == 1 ? 0 : 1;
    }
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, a->shape, sizeof shape);
    shape[a->rank - 1] = n;
    return add_result(p, x->dtype, a->rank - (w->rank == 1), shape);
}
