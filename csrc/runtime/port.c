/* port.c: see port.h. */
#include <math.h>

#include "port.h"

/* ---- reading ---- */

static mera_status bad(mera_context *ctx, const char *region, const port *p, const char *reason)
{
    return fail(ctx, MERA_CORRUPT, "%.64s: its port for '%.64s' %s", region, p->value ? p->value : "?", reason);
}

/* An array of at most `most` integers, each 0 to 2^31-1; -1 if it is none. */
static int32_t read_integers(const json_value *json, int32_t most, int64_t *out)
{
    if (!json || json->kind != JSON_ARRAY || json->count > (uint32_t)most) return -1;
    for (uint32_t k = 0; k < json->count; k++) {
        const json_value *item = &json->as.items[k];
        if (item->kind != JSON_INTEGER || item->as.integer < 0 || item->as.integer > INT32_MAX) return -1;
        out[k] = item->as.integer;
    }
    return (int32_t)json->count;
}

/* The product of counts from 0 to 2^31-1; -1 if it is larger than that. */
static int64_t product(const int64_t *sizes, int32_t count)
{
    int64_t all = 1;
    for (int32_t k = 0; k < count; k++) {
        all *= sizes[k];
        if (all > INT32_MAX) return -1;
    }
    return all;
}

/* dims: for each of PyTorch's dimensions the axes that it is the product of. Fills order; every axis must occur once. */
static bool read_dims(const json_value *json, port *p)
{
    bool seen[PORT_MAX_AXES] = {false};
    int32_t used = 0;
    if (!json || json->kind != JSON_ARRAY || json->count != (uint32_t)p->type.rank) return false;
    for (int32_t d = 0; d < p->type.rank; d++) {
        int64_t axes[PORT_MAX_AXES], extent = 1;
        const int32_t count = read_integers(&json->as.items[d], PORT_MAX_AXES, axes);
        if (count < 0) return false;
        for (int32_t k = 0; k < count; k++) {
            if (axes[k] >= p->axis_count || seen[axes[k]]) return false;
            seen[axes[k]] = true;
            p->order[used++] = (int32_t)axes[k];
            extent *= p->sizes[axes[k]]; /* divides the number of elements */
        }
        if (extent != p->type.shape[d]) return false;
    }
    return used == p->axis_count;
}

static bool read_layout(const json_value *json, port *p)
{
    p->type.rank = read_integers(json_get(json, "shape"), HOST_MAX_RANK, p->type.shape);
    p->axis_count = read_integers(json_get(json, "sizes"), PORT_MAX_AXES, p->sizes);
    if (p->type.rank < 0 || p->axis_count < 0 || read_integers(json_get(json, "dna"), 4, p->dna) != 4) return false;
    p->elements = product(p->sizes, p->axis_count);
    return p->elements >= 1 && p->elements == product(p->dna, 4) && read_dims(json_get(json, "dims"), p);
}

static void describe(port *p)
{
    p->plain = true;
    for (int32_t k = 0; k < p->axis_count; k++) p->plain = p->plain && p->order[k] == k;
    const int64_t *shape = p->type.shape, *dna = p->dna;
    p->image = p->type.rank == 4 && dna[0] == shape[0] && dna[1] == shape[2] && dna[2] == shape[3] && dna[3] == shape[1];
    /* The axes that are there must follow each other as NHWC does: those before C rise, C is the last. */
    int32_t nhw[PORT_MAX_AXES], rising = 0, channel = -1;
    int32_t used = 0;
    for (int32_t d = 0; d < p->type.rank && p->image; d++) {
        int64_t extent = 1;
        const int32_t first = used;
        while (extent < shape[d]) extent *= p->sizes[p->order[used++]];
        if (used - first > 1) p->image = false;
        if (used - first != 1) continue;
        if (d == 1)
            channel = p->order[first];
        else
            nhw[rising++] = p->order[first];
    }
    if (used != p->axis_count) p->image = false; /* there are axes of size 1 */
    for (int32_t k = 1; k < rising; k++) p->image = p->image && nhw[k - 1] < nhw[k];
    if (channel >= 0) p->image = p->image && channel == p->axis_count - 1;
}

mera_status port_read(mera_context *ctx, const char *region, const json_value *json, port *p)
{
    memset(p, 0, sizeof *p);
    const json_value *value = json_get(json, "value"), *scale = json_get(json, "scale"), *real = json_get(json, "real"),
                     *zero = json_get(json, "zero_point");
    if (!value || value->kind != JSON_STRING) return bad(ctx, region, p, "has no value");
    p->value = value->as.text;
    if (!read_layout(json, p)) return bad(ctx, region, p, "has a layout that does not match its shape");
    if (!scale || (scale->kind != JSON_REAL && scale->kind != JSON_INTEGER)) return bad(ctx, region, p, "has no scale");
    p->scale = (float)(scale->kind == JSON_REAL ? scale->as.real : (double)scale->as.integer);
    if (!isfinite(p->scale) || !(p->scale > 0)) return bad(ctx, region, p, "has a scale that is not finite and above 0");
    if (!zero || zero->kind != JSON_INTEGER || zero->as.integer < -128 || zero->as.integer > 127)
        return bad(ctx, region, p, "has a zero point that is not -128 to 127");
    p->zero_point = (int32_t)zero->as.integer;
    if (!real || real->kind != JSON_BOOL) return bad(ctx, region, p, "does not say whether it is real");
    p->real = real->as.boolean;
    p->type.dtype = p->real ? MERA_HOST_FLOAT32 : MERA_HOST_INT8;
    describe(p);
    return MERA_OK;
}

/* ---- moving ---- */

typedef struct axis {
    int64_t size, stride; /* of what is read; what is written is dense */
} axis;

/* Writes a dense array of those axes, slowest first. */
static void permute(const int8_t *from, int8_t *to, const axis *axes, int32_t count)
{
    int64_t at[PORT_MAX_AXES] = {0};
    const axis last = count > 0 ? axes[count - 1] : (axis){1, 1}, rows = count > 1 ? axes[count - 2] : (axis){1, 0};
    enum { BLOCK = 64 }; /* rows and columns worked on together: both sides stay in the cache */
    for (;;) {
        for (int64_t row = 0; row < rows.size; row += BLOCK)
            for (int64_t column = 0; column < last.size; column += BLOCK) {
                const int64_t row_end = min_i64(row + BLOCK, rows.size), column_end = min_i64(column + BLOCK, last.size);
                for (int64_t r = row; r < row_end; r++)
                    for (int64_t c = column; c < column_end; c++)
                        to[r * last.size + c] = from[r * rows.stride + c * last.stride];
            }
        to += rows.size * last.size;
        int32_t k = count - 3;
        for (; k >= 0; k--) {
            from += axes[k].stride;
            if (++at[k] < axes[k].size) break;
            from -= axes[k].size * axes[k].stride;
            at[k] = 0;
        }
        if (k < 0) return;
    }
}

/* Neighbours that also follow each other in what is read become one. */
static int32_t join(axis *axes, int32_t count)
{
    int32_t used = 0;
    for (int32_t k = 0; k < count; k++) {
        if (axes[k].size == 1) continue;
        if (used > 0 && axes[used - 1].stride == axes[k].stride * axes[k].size) {
            axes[used - 1].size *= axes[k].size;
            axes[used - 1].stride = axes[k].stride;
        } else {
            axes[used++] = axes[k];
        }
    }
    return used;
}

static void to_dna_order(const port *p, const int8_t *from, int8_t *to)
{
    axis axes[PORT_MAX_AXES];
    int64_t stride = 1;
    for (int32_t k = p->axis_count - 1; k >= 0; k--) {
        axes[p->order[k]] = (axis){p->sizes[p->order[k]], stride};
        stride *= p->sizes[p->order[k]];
    }
    permute(from, to, axes, join(axes, p->axis_count));
}

static void to_host_order(const port *p, const int8_t *from, int8_t *to)
{
    int64_t strides[PORT_MAX_AXES], stride = 1;
    axis axes[PORT_MAX_AXES];
    for (int32_t k = p->axis_count - 1; k >= 0; k--) {
        strides[k] = stride;
        stride *= p->sizes[k];
    }
    for (int32_t k = 0; k < p->axis_count; k++) axes[k] = (axis){p->sizes[p->order[k]], strides[p->order[k]]};
    permute(from, to, axes, join(axes, p->axis_count));
}

mera_status port_store(mera_context *ctx, const port *p, const void *x, int8_t *q, void *scratch)
{
    const int64_t flat[4] = {1, 1, 1, p->elements};
    if (p->real && p->image) return mera_quantize_f32(ctx, x, p->dna, 0, p->scale, p->zero_point, q);
    int8_t *stored = p->plain ? q : scratch;
    if (p->real) {
        TRY(mera_quantize_f32(ctx, x, flat, 1, p->scale, p->zero_point, stored));
        if (!p->plain) to_dna_order(p, stored, q);
    } else if (p->plain) {
        memcpy(q, x, (size_t)p->elements);
    } else {
        to_dna_order(p, x, q);
    }
    return MERA_OK;
}

mera_status port_fetch(mera_context *ctx, const port *p, const int8_t *q, void *x, void *scratch)
{
    const int64_t flat[4] = {1, 1, 1, p->elements};
    if (p->real && p->image) return mera_dequantize_i8(ctx, q, p->dna, 0, p->scale, p->zero_point, x);
    int8_t *ordered = p->real ? scratch : x;
    if (!p->plain) to_host_order(p, q, ordered);
    if (p->real) return mera_dequantize_i8(ctx, p->plain ? q : ordered, flat, 1, p->scale, p->zero_point, x);
    if (p->plain) memcpy(x, q, (size_t)p->elements);
    return MERA_OK;
}
