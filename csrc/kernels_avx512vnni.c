/* kernels_avx512vnni.c: the kernels for x86-64 with AVX-512 and VNNI.
 *
 * vpdpbusd multiplies unsigned by signed bytes, so B is packed as b + 128, and 128 * sum(a) is taken off each row:
 * sum(a * b) = sum(a * (b + 128)) - 128 * sum(a). Its sums of four products are exact and wrap in 32 bits. */
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum {
    ROWS = 128,  /* of a and c worked on at a time */
    DEPTH = 512, /* of b packed at a time, when it is not packed beforehand */
};

INLINE __mmask16 mask16(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
INLINE __mmask64 mask64(int64_t n) { return n >= 64 ? ~(__mmask64)0 : n <= 0 ? 0 : ((__mmask64)1 << n) - 1; }

/* ---- matrix multiplication ----
 * A panel holds 64 rows of B, fewer at the end: [depth / 4][vectors of 16 rows][16 rows][4 bytes of depth]. */

static int64_t packed_bytes(int64_t n, int64_t depth) { return ceil_div(n, 16) * ceil_div(depth, 4) * 64; }

INLINE void transpose_dwords(__m512i r[16])
{
    __m512i a[16], b[16];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i x0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), x1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
        const __m512i y0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd), y1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
        r[i] = _mm512_shuffle_i32x4(x0, x1, 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(y0, y1, 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(x0, x1, 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(y0, y1, 0xdd);
    }
}

TARGET static void pack_panel(int64_t n, int64_t depth, const int8_t *b, int64_t ldb, uint8_t *packed)
{
    const int64_t vectors = ceil_div(n, 16), steps = ceil_div(depth, 4);
    for (int64_t v = 0; v < vectors; v++)
        for (int64_t k = 0; k < depth; k += 64) {
            __m512i r[16];
            const __mmask64 inside = mask64(depth - k);
            for (int64_t j = 0; j < 16; j++)
                r[j] = v * 16 + j < n ? _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, b + (v * 16 + j) * ldb + k),
                                                         _mm512_set1_epi8(-128))
                                      : _mm512_setzero_si512();
            transpose_dwords(r);
            const int64_t rows = min_i64(16, steps - k / 4);
            for (int64_t i = 0; i < rows; i++) _mm512_storeu_si512(packed + ((k / 4 + i) * vectors + v) * 64, r[i]);
        }
}

TARGET static void pack(int64_t n, int64_t depth, const int8_t *b, int64_t ldb, void *packed)
{
    for (int64_t j = 0; j < n; j += GEMM_PANEL)
        pack_panel(min_i64(GEMM_PANEL, n - j), depth, b + j * ldb, ldb, (uint8_t *)packed + packed_bytes(j, depth));
}

/* start[i] = -128 * sum of a's row i */
TARGET static void row_corrections(int64_t m, int64_t depth, const int8_t *a, int64_t lda, int32_t *start)
{
    const __m512i one = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < m; i++) {
        __m512i sum = _mm512_setzero_si512();
        int64_t k = 0;
        for (; k + 64 <= depth; k += 64) sum = _mm512_dpbusd_epi32(sum, one, _mm512_loadu_si512(a + i * lda + k));
        if (k < depth) sum = _mm512_dpbusd_epi32(sum, one, _mm512_maskz_loadu_epi8(mask64(depth - k), a + i * lda + k));
        start[i] = (int32_t)((uint32_t)_mm512_reduce_add_epi32(sum) * (uint32_t)-128);
    }
}

/* A row of a tile: up to four vectors. Rows are variables, not elements of an array, so that they stay in registers. */
typedef struct row {
    __m512i v0, v1, v2, v3;
} row;

INLINE row row_load(int vectors, const uint8_t *b)
{
    row w = {0};
    w.v0 = _mm512_loadu_si512(b);
    if (vectors > 1) w.v1 = _mm512_loadu_si512(b + 64);
    if (vectors > 2) w.v2 = _mm512_loadu_si512(b + 128);
    if (vectors > 3) w.v3 = _mm512_loadu_si512(b + 192);
    return w;
}

/* acc + w * x. An asm and not the intrinsic, for which gcc 12 keeps every accumulator in two places, one of them memory. */
INLINE __m512i dot4(__m512i acc, __m512i w, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

/* The next four of depth. */
INLINE row row_multiply(row acc, int vectors, row w, int32_t four)
{
    const __m512i x = _mm512_set1_epi32(four);
    acc.v0 = dot4(acc.v0, w.v0, x);
    if (vectors > 1) acc.v1 = dot4(acc.v1, w.v1, x);
    if (vectors > 2) acc.v2 = dot4(acc.v2, w.v2, x);
    if (vectors > 3) acc.v3 = dot4(acc.v3, w.v3, x);
    return acc;
}

INLINE void vector_store(__m512i acc, __mmask16 columns, bool accumulate, int32_t *to)
{
    if (accumulate) acc = _mm512_add_epi32(acc, _mm512_maskz_loadu_epi32(columns, to));
    _mm512_mask_storeu_epi32(to, columns, acc);
}

INLINE void row_store(row acc, int vectors, __mmask16 last, bool accumulate, int32_t *c)
{
    vector_store(acc.v0, vectors == 1 ? last : 0xffff, accumulate, c);
    if (vectors > 1) vector_store(acc.v1, vectors == 2 ? last : 0xffff, accumulate, c + 16);
    if (vectors > 2) vector_store(acc.v2, vectors == 3 ? last : 0xffff, accumulate, c + 32);
    if (vectors > 3) vector_store(acc.v3, last, accumulate, c + 48);
}

INLINE int32_t load_four(const int8_t *a)
{
    int32_t four;
    memcpy(&four, a, sizeof four);
    return four;
}

INLINE int32_t load_rest(const int8_t *a, int64_t count)
{
    int32_t four = 0;
    memcpy(&four, a, (size_t)count);
    return four;
}

#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* rows x (16 * vectors) of c; rows and vectors are constants where it is inlined. last: columns of the last vector. */
INLINE void tile(int rows, int vectors, __mmask16 last, int64_t depth, const int8_t *a, int64_t lda, const uint8_t *b,
                 const int32_t *start, int32_t *c, int64_t ldc, bool accumulate)
{
#define START(i)                                                                                                            \
    const __m512i start##i = _mm512_set1_epi32((i) < rows ? start[i] : 0);                                                  \
    row r##i = {start##i, start##i, start##i, start##i};
#define FULL(i)                                                                                                             \
    if ((i) < rows) r##i = row_multiply(r##i, vectors, w, load_four(a + (i)*lda + k));
#define REST(i)                                                                                                             \
    if ((i) < rows) r##i = row_multiply(r##i, vectors, w, load_rest(a + (i)*lda + k, depth - k));
#define STORE(i)                                                                                                            \
    if ((i) < rows) row_store(r##i, vectors, last, accumulate, c + (i)*ldc);
    EACH_ROW(START)
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4, b += 64 * vectors) {
        const row w = row_load(vectors, b);
        EACH_ROW(FULL)
    }
    if (k < depth) {
        const row w = row_load(vectors, b);
        EACH_ROW(REST)
    }
    EACH_ROW(STORE)
#undef START
#undef FULL
#undef REST
#undef STORE
}

#define TILE(rows, vectors)                                                                                                 \
    for (; i + (rows) <= m; i += (rows))                                                                                    \
    tile(rows, vectors, last, depth, a + i * lda, lda, b, start + i, c + i * ldc, ldc, accumulate)

/* n <= 64 columns of c from one panel. */
TARGET static void multiply_panel(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const uint8_t *b,
                                  const int32_t *start, int32_t *c, int64_t ldc, bool accumulate)
{
    const __mmask16 last = mask16(n - (n - 1) / 16 * 16);
    int64_t i = 0;
    switch ((n + 15) / 16) {
    case 1:
        TILE(12, 1);
        TILE(4, 1);
        TILE(1, 1);
        break;
    case 2:
        TILE(12, 2);
        TILE(4, 2);
        TILE(1, 2);
        break;
    case 3:
        TILE(8, 3);
        TILE(3, 3);
        TILE(1, 3);
        break;
    default:
        TILE(6, 4);
        TILE(2, 4);
        TILE(1, 4);
        break;
    }
}

TARGET static void gemm_packed(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const void *packed,
                               int32_t *c, int64_t ldc)
{
    for (int64_t i = 0; i < m; i += ROWS) {
        const int64_t rows = min_i64(ROWS, m - i);
        int32_t start[ROWS];
        row_corrections(rows, depth, a + i * lda, lda, start);
        for (int64_t j = 0; j < n; j += GEMM_PANEL)
            multiply_panel(rows, min_i64(GEMM_PANEL, n - j), depth, a + i * lda, lda,
                           (const uint8_t *)packed + packed_bytes(j, depth), start, c + i * ldc + j, ldc, false);
    }
}

TARGET static void gemm_s8(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const int8_t *b, int64_t ldb,
                           int32_t *c, int64_t ldc, bool accumulate)
{
    _Alignas(64) uint8_t packed[GEMM_PANEL * DEPTH];
    for (int64_t j = 0; j < n; j += GEMM_PANEL)
        for (int64_t k = 0; k < max_i64(depth, 1); k += DEPTH) {
            const int64_t columns = min_i64(GEMM_PANEL, n - j), part = min_i64(DEPTH, depth - k);
            pack_panel(columns, part, b + j * ldb + k, ldb, packed);
            for (int64_t i = 0; i < m; i += ROWS) {
                const int64_t rows = min_i64(ROWS, m - i);
                int32_t start[ROWS];
                row_corrections(rows, part, a + i * lda + k, lda, start);
                multiply_panel(rows, columns, part, a + i * lda + k, lda, packed, start, c + i * ldc + j, ldc,
                               accumulate || k > 0);
            }
        }
}

/* ---- requantization: quantmath.h, sixteen at a time ---- */

/* saturating_rounding_doubling_high_mul for multipliers >= 0: it is then floor((x * multiplier + 2^30) / 2^31). */
INLINE __m512i high_mul(__m512i x, __m512i multiplier)
{
    const __m512i nudge = _mm512_set1_epi64(1 << 30);
    const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(x, multiplier), nudge);
    const __m512i odd =
        _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(multiplier, 32)), nudge);
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 31), _mm512_slli_epi64(odd, 1));
}

INLINE __m512i divide_by_pot(__m512i x, __m512i exponent)
{
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, exponent), one);
    const __m512i threshold = _mm512_add_epi32(_mm512_srli_epi32(mask, 1), _mm512_srli_epi32(x, 31));
    const __mmask16 up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(x, mask), threshold);
    const __m512i quotient = _mm512_srav_epi32(x, exponent);
    return _mm512_mask_add_epi32(quotient, up, quotient, one);
}

INLINE __m512i rescale16(__m512i x, __m512i multiplier, __m512i shift)
{
    const __m512i zero = _mm512_setzero_si512();
    const __m512i left = _mm512_max_epi32(shift, zero), right = _mm512_max_epi32(_mm512_sub_epi32(zero, shift), zero);
    return divide_by_pot(high_mul(_mm512_sllv_epi32(x, left), multiplier), right);
}

INLINE __m512i rescale16_by(__m512i x, rescale r)
{
    return rescale16(x, _mm512_set1_epi32(r.multiplier), _mm512_set1_epi32(r.shift));
}

INLINE void store_clamped(int8_t *y, __mmask16 inside, __m512i x, int32_t zero_point, int32_t low, int32_t high)
{
    x = _mm512_add_epi32(x, _mm512_set1_epi32(zero_point));
    x = _mm512_min_epi32(_mm512_max_epi32(x, _mm512_set1_epi32(low)), _mm512_set1_epi32(high));
    _mm_mask_storeu_epi8(y, inside, _mm512_cvtepi32_epi8(x));
}

INLINE __m512i load_s8(__mmask16 inside, const int8_t *x) { return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(inside, x)); }

TARGET static void requantize(int64_t n, const int32_t *acc, const int32_t *bias, const int32_t *multiplier,
                              const int8_t *shift, int32_t zero_point, int32_t low, int32_t high, int8_t *q)
{
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 in = mask16(n - j);
        const __m512i x = _mm512_add_epi32(_mm512_maskz_loadu_epi32(in, acc + j), _mm512_maskz_loadu_epi32(in, bias + j));
        const __m512i y = rescale16(x, _mm512_maskz_loadu_epi32(in, multiplier + j), load_s8(in, shift + j));
        store_clamped(q + j, in, y, zero_point, low, high);
    }
}

TARGET static void add_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, int sign,
                          const add_rescale *r, int32_t low, int32_t high, int8_t *y)
{
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 in = mask16(n - j);
        const __m512i x = _mm512_slli_epi32(_mm512_sub_epi32(load_s8(in, a + j), _mm512_set1_epi32(za)), ADD_LEFT_SHIFT);
        const __m512i w = _mm512_slli_epi32(_mm512_sub_epi32(load_s8(in, b + j), _mm512_set1_epi32(zb)), ADD_LEFT_SHIFT);
        const __m512i sx = rescale16_by(x, r->a), sw = rescale16_by(w, r->b);
        const __m512i sum = sign > 0 ? _mm512_add_epi32(sx, sw) : _mm512_sub_epi32(sx, sw);
        store_clamped(y + j, in, rescale16_by(sum, r->y), zy, low, high);
    }
}

TARGET static void mul_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, rescale r,
                          int32_t low, int32_t high, int8_t *y)
{
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 in = mask16(n - j);
        const __m512i x = _mm512_sub_epi32(load_s8(in, a + j), _mm512_set1_epi32(za));
        const __m512i w = _mm512_sub_epi32(load_s8(in, b + j), _mm512_set1_epi32(zb));
        store_clamped(y + j, in, rescale16_by(_mm512_mullo_epi32(x, w), r), zy, low, high);
    }
}

/* ---- depthwise ---- */

/* acc + a * b; the upper half of each lane's b is zeroed, so that only the product of the lower halves remains. */
INLINE __m512i multiply_add16(__m512i acc, __m512i a, __m512i b)
{
    return _mm512_dpwssd_epi32(acc, a, _mm512_and_si512(b, _mm512_set1_epi32(0xffff)));
}

TARGET static void multiply_add_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t *acc)
{
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 in = mask16(n - j);
        const __m512i sum = multiply_add16(_mm512_maskz_loadu_epi32(in, acc + j), load_s8(in, a + j), load_s8(in, b + j));
        _mm512_mask_storeu_epi32(acc + j, in, sum);
    }
}

TARGET static void depthwise_s8(int64_t n, int64_t taps, const int8_t *const *a, const int8_t *b, int64_t ldb, int32_t *acc)
{
    for (int64_t j = 0; j < n; j += 32) {
        const __mmask16 in0 = mask16(n - j), in1 = mask16(n - j - 16);
        __m512i sum0 = _mm512_setzero_si512(), sum1 = sum0;
        for (int64_t t = 0; t < taps; t++) {
            const int8_t *x = a[t] + j, *w = b + t * ldb + j;
            sum0 = multiply_add16(sum0, load_s8(in0, x), load_s8(in0, w));
            if (in1) sum1 = multiply_add16(sum1, load_s8(in1, x + 16), load_s8(in1, w + 16));
        }
        _mm512_mask_storeu_epi32(acc + j, in0, sum0);
        if (in1) _mm512_mask_storeu_epi32(acc + j + 16, in1, sum1);
    }
}

const mera_kernels mera_kernels_avx512vnni = {"avx512vnni", gemm_s8,         packed_bytes, pack,   gemm_packed,
                                              requantize,   multiply_add_s8, depthwise_s8, add_s8, mul_s8};
#endif
