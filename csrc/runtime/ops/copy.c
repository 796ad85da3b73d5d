/* copy.c: strided copies, which all operators that only move elements are made of. */
#include "ops.h"

void dense_strides(int32_t rank, const int64_t *shape, int64_t *strides)
{
    int64_t stride = 1;
    for (int32_t d = rank - 1; d >= 0; d--) {
        strides[d] = stride;
        stride *= shape[d];
    }
}

void strided_to_dense(strided_copy *copy) { dense_strides(copy->rank, copy->shape, copy->to_stride); }

static void move_dim(strided_copy *c, int32_t from, int32_t to)
{
    const int64_t shape = c->shape[from], stride = c->stride[from], to_stride = c->to_stride[from];
    for (int32_t d = from; d < to; d++) {
        c->shape[d] = c->shape[d + 1];
        c->stride[d] = c->stride[d + 1];
        c->to_stride[d] = c->to_stride[d + 1];
    }
    c->shape[to] = shape;
    c->stride[to] = stride;
    c->to_stride[to] = to_stride;
}

void strided_simplify(strided_copy *c)
{
    int32_t n = 0;
    for (int32_t d = 0; d < c->rank; d++) {
        if (c->shape[d] == 1) continue;
        const bool join =
            n > 0 && c->stride[n - 1] == c->stride[d] * c->shape[d] && c->to_stride[n - 1] == c->to_stride[d] * c->shape[d];
        if (join)
            c->shape[n - 1] *= c->shape[d];
        else
            c->shape[n++] = c->shape[d];
        c->stride[n - 1] = c->stride[d];
        c->to_stride[n - 1] = c->to_stride[d];
    }
    if (n == 0) {
        c->shape[n] = 1;
        c->stride[n] = c->to_stride[n] = 1;
        n++;
    }
    c->rank = n;
    /* a dimension that is read in order goes beside the one that is written in order: tiles of the two stay in the cache */
    if (n > 2 && c->stride[n - 1] != 1)
        for (int32_t d = 0; d < n - 2; d++)
            if (c->stride[d] == 1) {
                move_dim(c, d, n - 2);
                break;
            }
}

enum { TILE = 16 };

#define PLANE(BITS)                                                                                                         \
    static void plane_##BITS(const strided_copy *c, const uint##BITS##_t *from, uint##BITS##_t *to)                         \
    {                                                                                                                       \
        const int32_t r = c->rank;                                                                                          \
        const int64_t n = c->shape[r - 1], a = c->stride[r - 1], b = c->to_stride[r - 1];                                   \
        const int64_t rows = r > 1 ? c->shape[r - 2] : 1, ra = r > 1 ? c->stride[r - 2] : 0;                                \
        const int64_t rb = r > 1 ? c->to_stride[r - 2] : 0;                                                                 \
        if (a == 1 && b == 1) {                                                                                             \
            for (int64_t i = 0; i < rows; i++) memcpy(to + i * rb, from + i * ra, (size_t)n * sizeof *to);                  \
        } else if (a == 0 && b == 1) {                                                                                      \
            for (int64_t i = 0; i < rows; i++) {                                                                            \
                const uint##BITS##_t value = from[i * ra];                                                                  \
                for (int64_t j = 0; j < n; j++) to[i * rb + j] = value;                                                     \
            }                                                                                                               \
        } else {                                                                                                            \
            for (int64_t i0 = 0; i0 < rows; i0 += TILE)                                                                     \
                for (int64_t j0 = 0; j0 < n; j0 += TILE)                                                                    \
                    for (int64_t i = i0; i < min_i64(i0 + TILE, rows); i++)                                                 \
                        for (int64_t j = j0; j < min_i64(j0 + TILE, n); j++) to[i * rb + j * b] = from[i * ra + j * a];     \
        }                                                                                                                   \
    }
PLANE(8)
PLANE(16)
PLANE(32)
PLANE(64)

void strided_run(const strided_copy *c, size_t element, const void *from, void *to)
{
    int64_t planes = 1, index[COPY_MAX_RANK] = {0}, at = c->offset, to_at = c->to_offset;
    for (int32_t d = 0; d < c->rank; d++)
        if (c->shape[d] == 0) return;
    for (int32_t d = 0; d < c->rank - 2; d++) planes *= c->shape[d];
    for (int64_t k = 0; k < planes; k++) {
        switch (element) {
        case 1:
            plane_8(c, (const uint8_t *)from + at, (uint8_t *)to + to_at);
            break;
        case 2:
            plane_16(c, (const uint16_t *)from + at, (uint16_t *)to + to_at);
            break;
        case 4:
            plane_32(c, (const uint32_t *)from + at, (uint32_t *)to + to_at);
            break;
        default:
            plane_64(c, (const uint64_t *)from + at, (uint64_t *)to + to_at);
            break;
        }
        for (int32_t d = c->rank - 3; d >= 0; d--) {
            at += c->stride[d];
            to_at += c->to_stride[d];
            if (++index[d] < c->shape[d]) break;
            at -= c->stride[d] * c->shape[d];
            to_at -= c->to_stride[d] * c->shape[d];
            index[d] = 0;
        }
    }
}
