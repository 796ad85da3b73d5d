/* attention.c: scaled_dot_product_attention. */
#include <math.h>

#include "gemm.h"

typedef struct attention {
    int32_t q, k, v, mask; /* mask: -1 for none */
    host_dtype dtype, mask_dtype;
    int64_t batch, heads, key_heads, rows, columns, depth, width; /* q [batch, heads, rows, depth], v [.., columns, width] */
    int64_t k_batch, v_batch;                                     /* elements from one batch to the next */
    int64_t mask_strides[4];
    double scale;
    bool causal;
} attention;

static double at_real(const void *data, host_dtype dtype, int64_t i)
{
    return dtype == MERA_HOST_FLOAT32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

static void put_real(void *data, host_dtype dtype, int64_t i, double value)
{
    if (dtype == MERA_HOST_FLOAT32)
        ((float *)data)[i] = (float)value;
    else
        ((double *)data)[i] = value;
}

static double score_mask(const attention *x, const host_frame *f, int64_t b, int64_t h, int64_t i, int64_t j)
{
    if (x->causal && j > i) return -HUGE_VAL;
    if (x->mask < 0) return 0;
    const int64_t at = b * x->mask_strides[0] + h * x->mask_strides[1] + i * x->mask_strides[2] + j * x->mask_strides[3];
    if (x->mask_dtype == MERA_HOST_BOOL) return ((const uint8_t *)f->tensors[x->mask])[at] ? 0 : -HUGE_VAL;
    return at_real(f->tensors[x->mask], x->mask_dtype, at);
}

/* scores -> softmax(scale * scores + mask), row by row; a row that is masked wholly becomes 0. */
static void soften(const attention *x, const host_frame *f, int64_t b, int64_t h, void *scores)
{
    for (int64_t i = 0; i < x->rows; i++) {
        double most = -HUGE_VAL, sum = 0;
        for (int64_t j = 0; j < x->columns; j++) {
            const int64_t at = i * x->columns + j;
            const double s = at_real(scores, x->dtype, at) * x->scale + score_mask(x, f, b, h, i, j);
            put_real(scores, x->dtype, at, s);
            if (s > most || s != s) most = s;
        }
        for (int64_t j = 0; j < x->columns; j++) {
            const int64_t at = i * x->columns + j;
            const double e = most == -HUGE_VAL ? 0 : exp(at_real(scores, x->dtype, at) - most);
            put_real(scores, x->dtype, at, e);
            sum += e;
        }
        for (int64_t j = 0; j < x->columns && sum != 0; j++) {
            const int64_t at = i * x->columns + j;
            put_real(scores, x->dtype, at, at_real(scores, x->dtype, at) / sum);
        }
    }
}

static mera_status run_attention(const host_frame *f)
{
    const attention *x = f->step->plan;
    const size_t size = host_dtype_size(x->dtype);
    const gemm first = {.m = x->rows,
                        .n = x->columns,
                        .k = x->depth,
                        .a_row = x->depth,
                        .a_column = 1,
                        .b_row = 1,
                        .b_column = x->depth,
                        .c_row = x->columns};
    const gemm second = {.m = x->rows,
                         .n = x->width,
                         .k = x->columns,
                         .a_row = x->columns,
                         .a_column = 1,
                         .b_row = x->width,
                         .b_column = 1,
                         .c_row = x->width};
    char *scores = (char *)f->scratch + gemm_scratch(x->dtype), *y = f->results[0];
    if (host_elements(&f->step->results[0]) == 0) return MERA_OK;
    memset(y, 0, host_bytes(&f->step->results[0]));
    for (int64_t b = 0; b < x->batch; b++)
        for (int64_t h = 0; h < x->heads; h++) {
            const int64_t kh = h / (x->heads / x->key_heads);
            const char *q = (const char *)f->tensors[x->q] + (size_t)((b * x->heads + h) * x->rows * x->depth) * size;
            const char *k = (const char *)f->tensors[x->k] + (size_t)(b * x->k_batch + kh * x->columns * x->depth) * size;
            const char *v = (const char *)f->tensors[x->v] + (size_t)(b * x->v_batch + kh * x->columns * x->width) * size;
            memset(scores, 0, (size_t)(x->rows * x->columns) * size);
            if (x->dtype == MERA_HOST_FLOAT32)
                gemm_add_f32(&first, (const float *)q, (const float *)k, (float *)scores, f->scratch);
            else
                gemm_add_f64(&first, (const double *)q, (const double *)k, (double *)scores, f->scratch);
            soften(x, f, b, h, scores);
            if (x->dtype == MERA_HOST_FLOAT32)
                gemm_add_f32(&second, (const float *)scores, (const float *)v, (float *)y, f->scratch);
            else
                gemm_add_f64(&second, (const double *)scores, (const double *)v, (double *)y, f->scratch);
            y += (size_t)(x->rows * x->width) * size;
        }
    return MERA_OK;
}

/* A mask, broadcast to [batch, heads, rows, columns]. */
static mera_status mask_of(host_planner *p, attention *x, const host_tensor *mask, int32_t rank)
{
    const int64_t whole[] = {x->batch, x->heads, x->rows, x->columns};
    int64_t strides[HOST_MAX_RANK];
    if (mask->dtype != MERA_HOST_BOOL && mask->dtype != x->dtype)
        return host_refuse(p, MERA_UNSUPPORTED, "attn_mask must be bool or of query's dtype");
    if (mask->rank > rank || mask->rank > 4 || rank == 3)
        return host_refuse(p, MERA_UNSUPPORTED, "attn_mask is for queries of 4 dimensions, and has at most as many");
    dense_strides(mask->rank, mask->shape, strides);
    for (int32_t d = 0; d < mask->rank; d++) {
        const int32_t to = 4 - mask->rank + d;
        if (mask->shape[d] != 1 && mask->shape[d] != whole[to])
            return host_refuse(p, MERA_INVALID_ARGUMENT, "attn_mask cannot be broadcast to the scores");
        x->mask_strides[to] = mask->shape[d] == 1 ? 0 : strides[d];
    }
    x->mask = arg_number(p, 3);
    x->mask_dtype = mask->dtype;
    return MERA_OK;
}

/* (query, key, value, attn_mask, dropout_p, is_causal, *, scale, enable_gqa) */
mera_status plan_attention(host_planner *p)
{
    const host_tensor *q, *k, *v, *mask;
    TRY(arg_tensor(p, 0, &q));
    TRY(arg_tensor(p, 1, &k));
    TRY(arg_tensor(p, 2, &v));
    TRY(arg_tensor_or_none(p, 3, &mask));
    TRY(need_rank(p, q, 2, 4, "query"));
    TRY(need_float(p, q, "query"));
    const int32_t r = q->rank;
    if (k->rank != r || v->rank != r || k->dtype != q->dtype || v->dtype != q->dtype)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "query, key and value must have one rank and dtype");
    if (arg_real(p, 4) != 0) return host_refuse(p, MERA_UNSUPPORTED, "dropout_p must be 0");
    attention *x = NEW_PLAN(p, attention);
    if (x == NULL) return out_of_memory(p->ctx);
    *x = (attention){.q = arg_number(p, 0),
                     .k = arg_number(p, 1),
                     .v = arg_number(p, 2),
                     .mask = -1,
                     .dtype = q->dtype,
                     .batch = r == 4 ? q->shape[0] : 1,
                     .heads = r > 2 ? q->shape[r - 3] : 1,
                     .key_heads = r > 2 ? k->shape[r - 3] : 1,
                     .rows = q->shape[r - 2],
                     .columns = k->shape[r - 2],
                     .depth = q->shape[r - 1],
                     .width = v->shape[r - 1],
                     .causal = arg_flag(p, 5)};
    const bool grouped = arg_flag(p, 7) && x->key_heads > 0 && x->heads % x->key_heads == 0;
    if (k->shape[r - 1] != x->depth || v->shape[r - 2] != x->columns || (r > 2 && v->shape[r - 3] != x->key_heads) ||
        (x->heads != x->key_heads && !grouped) || (r == 4 && (k->shape[0] != x->batch || v->shape[0] != x->batch)))
        return host_refuse(p, MERA_UNSUPPORTED, "the sizes of query, key and value do not suit each other");
    x->k_batch = x->key_heads * x->columns * x->depth;
    x->v_batch = x->key_heads * x->columns * x->width;
    x->scale = arg_given(p, 6) ? arg_real(p, 6) : 1 / sqrt((double)max_i64(x->depth, 1));
    if (x->key_heads == 0) x->key_heads = 1, x->heads = 0;
    if (mask != NULL) TRY(mask_of(p, x, mask, r));
    host_tensor scores;
    TRY(host_tensor_init(p->ctx, &scores, q->dtype, 2, (const int64_t[]){x->rows, x->columns}));
    p->step->scratch_bytes = gemm_scratch(q->dtype) + host_bytes(&scores);
    p->step->run = run_attention;
    int64_t shape[HOST_MAX_RANK];
    memcpy(shape, q->shape, sizeof shape);
    shape[r - 1] = x->width;
    return add_result(p, q->dtype, r, shape);
}
