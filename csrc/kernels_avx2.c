/* kernels_avx2.c: the kernels for x86-64 with AVX2.
 *
 * Products are exact: bytes are widened to int16, pairs of products are summed by vpmaddwd. */
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum {
    ROWS = 48,   /* of a widened at a time */
    DEPTH = 512, /* of a widened at a time, and of b when it is not packed beforehand */
    COLUMNS = 16,
};

INLINE __m256i load256(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE void store256(void *to, __m256i x) { _mm256_storeu_si256((__m256i *)to, x); }

/* ---- matrix multiplication ----
 * A panel holds 16 rows of B (zeros at the end) as int16: [depth / 2][16 rows][2 of depth]. */

static int64_t packed_bytes(int64_t n, int64_t depth) { return ceil_div(n, COLUMNS) * ceil_div(depth, 2) * 64; }

INLINE void transpose_dwords(__m256i r[8])
{
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
        r[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
}

/* 16 bytes as int16, zeros from the count-th on. */
INLINE __m256i widen(const int8_t *from, int64_t count)
{
    if (count >= 16) return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
    int8_t part[16] = {0};
    if (count > 0) memcpy(part, from, (size_t)count);
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)part));
}

TARGET static void pack(int64_t n, int64_t depth, const int8_t *b, int64_t ldb, void *packed)
{
    uint8_t *to = packed;
    const int64_t steps = ceil_div(depth, 2);
    for (int64_t j = 0; j < n; j += COLUMNS, to += steps * 64)
        for (int64_t half = 0; half < 2; half++)
            for (int64_t k = 0; k < depth; k += 16) {
                __m256i r[8];
                for (int64_t i = 0; i < 8; i++) {
                    const int64_t row = j + 8 * half + i;
                    r[i] = row < n ? widen(b + row * ldb + k, depth - k) : _mm256_setzero_si256();
                }
                transpose_dwords(r);
                const int64_t count = min_i64(8, steps - k / 2);
                for (int64_t i = 0; i < count; i++) store256(to + (k / 2 + i) * 64 + half * 32, r[i]);
            }
}

/* A row of a tile. Rows are variables, not elements of an array, so that they stay in registers. */
typedef struct row {
    __m256i v0, v1;
} row;

/* acc + w * x in pairs. An asm and not an intrinsic for the sum, for which gcc 12 keeps every accumulator in two places. */
INLINE __m256i dot2(__m256i acc, __m256i w, __m256i x)
{
    const __m256i products = _mm256_madd_epi16(x, w);
    __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(products));
    return acc;
}

/* The next two of depth. */
INLINE row row_multiply(row acc, __m256i w0, __m256i w1, const int16_t *a)
{
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    const __m256i x = _mm256_set1_epi32(pair);
    acc.v0 = dot2(acc.v0, w0, x);
    acc.v1 = dot2(acc.v1, w1, x);
    return acc;
}

INLINE void row_store(row acc, int64_t n, bool accumulate, int32_t *c)
{
    int32_t part[COLUMNS] = {0}, *to = c;
    if (n < COLUMNS) {
        if (accumulate) memcpy(part, c, (size_t)n * sizeof *c);
        to = part;
    }
    store256(to, accumulate ? _mm256_add_epi32(acc.v0, load256(to)) : acc.v0);
    store256(to + 8, accumulate ? _mm256_add_epi32(acc.v1, load256(to + 8)) : acc.v1);
    if (n < COLUMNS) memcpy(c, part, (size_t)n * sizeof *c);
}

#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)

/* rows x 16 of c; rows is a constant where it is inlined. a is int16, DEPTH wide. */
INLINE void tile(int rows, int64_t n, int64_t steps, const int16_t *a, const uint8_t *b, int32_t *c, int64_t ldc,
                 bool accumulate)
{
#define START(i) row r##i = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#define STEP(i)                                                                                                             \
    if ((i) < rows) r##i = row_multiply(r##i, w0, w1, a + (i)*DEPTH + 2 * k);
#define STORE(i)                                                                                                            \
    if ((i) < rows) row_store(r##i, n, accumulate, c + (i)*ldc);
    EACH_ROW(START)
    for (int64_t k = 0; k < steps; k++, b += 64) {
        const __m256i w0 = load256(b), w1 = load256(b + 32);
        EACH_ROW(STEP)
    }
    EACH_ROW(STORE)
#undef START
#undef STEP
#undef STORE
}

/* A block of a (m <= ROWS, depth <= DEPTH) times packed rows of B; `panel` is the distance of their panels. */
TARGET static void multiply_block(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const uint8_t *b,
                                  int64_t panel, int32_t *c, int64_t ldc, bool accumulate)
{
    _Alignas(32) int16_t wide[ROWS * DEPTH];
    for (int64_t i = 0; i < m; i++)
        for (int64_t k = 0; k < depth; k += 16) store256(wide + i * DEPTH + k, widen(a + i * lda + k, depth - k));
    const int64_t steps = ceil_div(depth, 2);
    for (int64_t j = 0; j < n; j += COLUMNS, b += panel) {
        const int64_t columns = min_i64(COLUMNS, n - j);
        int64_t i = 0;
        for (; i + 6 <= m; i += 6) tile(6, columns, steps, wide + i * DEPTH, b, c + i * ldc + j, ldc, accumulate);
        for (; i + 2 <= m; i += 2) tile(2, columns, steps, wide + i * DEPTH, b, c + i * ldc + j, ldc, accumulate);
        for (; i < m; i++) tile(1, columns, steps, wide + i * DEPTH, b, c + i * ldc + j, ldc, accumulate);
    }
}

TARGET static void gemm_packed(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const void *packed,
                               int32_t *c, int64_t ldc)
{
    const int64_t panel = packed_bytes(COLUMNS, depth);
    for (int64_t i = 0; i < m; i += ROWS)
        for (int64_t k = 0; k < max_i64(depth, 1); k += DEPTH)
            multiply_block(min_i64(ROWS, m - i), n, min_i64(DEPTH, depth - k), a + i * lda + k, lda,
                           (const uint8_t *)packed + k / 2 * 64, panel, c + i * ldc, ldc, k > 0);
}

TARGET static void gemm_s8(int64_t m, int64_t n, int64_t depth, const int8_t *a, int64_t lda, const int8_t *b, int64_t ldb,
                           int32_t *c, int64_t ldc, bool accumulate)
{
    _Alignas(64) uint8_t packed[GEMM_PANEL * DEPTH * 2];
    for (int64_t j = 0; j < n; j += GEMM_PANEL)
        for (int64_t k = 0; k < max_i64(depth, 1); k += DEPTH) {
            const int64_t columns = min_i64(GEMM_PANEL, n - j), part = min_i64(DEPTH, depth - k);
            pack(columns, part, b + j * ldb + k, ldb, packed);
            for (int64_t i = 0; i < m; i += ROWS)
                multiply_block(min_i64(ROWS, m - i), columns, part, a + i * lda + k, lda, packed,
                               packed_bytes(COLUMNS, part), c + i * ldc + j, ldc, accumulate || k > 0);
        }
}

/* ---- requantization: quantmath.h, eight at a time; what is left over goes through a padded copy ---- */

/* saturating_rounding_doubling_high_mul for multipliers >= 0: it is then floor((x * multiplier + 2^30) / 2^31). */
INLINE __m256i high_mul(__m256i x, __m256i multiplier)
{
    const __m256i nudge = _mm256_set1_epi64x(1 << 30);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(x, multiplier), nudge);
    const __m256i odd =
        _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(multiplier, 32)), nudge);
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xaa);
}

INLINE __m256i divide_by_pot(__m256i x, __m256i exponent)
{
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, exponent), one);
    const __m256i threshold = _mm256_add_epi32(_mm256_srli_epi32(mask, 1), _mm256_srli_epi32(x, 31));
    const __m256i up = _mm256_cmpgt_epi32(_mm256_and_si256(x, mask), threshold); /* -1 where it rounds up */
    return _mm256_sub_epi32(_mm256_srav_epi32(x, exponent), up);
}

INLINE __m256i rescale8(__m256i x, __m256i multiplier, __m256i shift)
{
    const __m256i zero = _mm256_setzero_si256();
    const __m256i left = _mm256_max_epi32(shift, zero), right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
    return divide_by_pot(high_mul(_mm256_sllv_epi32(x, left), multiplier), right);
}

INLINE __m256i rescale8_by(__m256i x, rescale r)
{
    return rescale8(x, _mm256_set1_epi32(r.multiplier), _mm256_set1_epi32(r.shift));
}

INLINE __m256i load_s8(const int8_t *x) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x)); }

INLINE void store_clamped(int8_t *y, __m256i x, int32_t zero_point, int32_t low, int32_t high)
{
    x = _mm256_add_epi32(x, _mm256_set1_epi32(zero_point));
    x = _mm256_min_epi32(_mm256_max_epi32(x, _mm256_set1_epi32(low)), _mm256_set1_epi32(high));
    const __m256i words = _mm256_packs_epi32(x, x); /* in each half: 4 words, twice */
    const __m128i low_words = _mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64((__m128i *)y, _mm_packs_epi16(low_words, low_words));
}

INLINE void requantize8(const int32_t *acc, const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                        int32_t zero_point, int32_t low, int32_t high, int8_t *q)
{
    const __m256i x = _mm256_add_epi32(load256(acc), load256(bias));
    store_clamped(q, rescale8(x, load256(multiplier), load_s8(shift)), zero_point, low, high);
}

TARGET static void requantize(int64_t n, const int32_t *acc, const int32_t *bias, const int32_t *multiplier,
                              const int8_t *shift, int32_t zero_point, int32_t low, int32_t high, int8_t *q)
{
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) requantize8(acc + j, bias + j, multiplier + j, shift + j, zero_point, low, high, q + j);
    if (j < n) {
        const size_t rest = (size_t)(n - j);
        int32_t part[3][8] = {{0}};
        int8_t shifts[8] = {0}, out[8];
        memcpy(part[0], acc + j, rest * 4);
        memcpy(part[1], bias + j, rest * 4);
        memcpy(part[2], multiplier + j, rest * 4);
        memcpy(shifts, shift + j, rest);
        requantize8(part[0], part[1], part[2], shifts, zero_point, low, high, out);
        memcpy(q + j, out, rest);
    }
}

INLINE void add8(const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, int sign, const add_rescale *r,
                 int32_t low, int32_t high, int8_t *y)
{
    const __m256i x = _mm256_slli_epi32(_mm256_sub_epi32(load_s8(a), _mm256_set1_epi32(za)), ADD_LEFT_SHIFT);
    const __m256i w = _mm256_slli_epi32(_mm256_sub_epi32(load_s8(b), _mm256_set1_epi32(zb)), ADD_LEFT_SHIFT);
    const __m256i sx = rescale8_by(x, r->a), sw = rescale8_by(w, r->b);
    const __m256i sum = sign > 0 ? _mm256_add_epi32(sx, sw) : _mm256_sub_epi32(sx, sw);
    store_clamped(y, rescale8_by(sum, r->y), zy, low, high);
}

TARGET static void add_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, int sign,
                          const add_rescale *r, int32_t low, int32_t high, int8_t *y)
{
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) add8(a + j, b + j, za, zb, zy, sign, r, low, high, y + j);
    if (j < n) {
        int8_t part[3][8] = {{0}};
        memcpy(part[0], a + j, (size_t)(n - j));
        memcpy(part[1], b + j, (size_t)(n - j));
        add8(part[0], part[1], za, zb, zy, sign, r, low, high, part[2]);
        memcpy(y + j, part[2], (size_t)(n - j));
    }
}

INLINE void mul8(const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, rescale r, int32_t low, int32_t high,
                 int8_t *y)
{
    const __m256i x = _mm256_sub_epi32(load_s8(a), _mm256_set1_epi32(za));
    const __m256i w = _mm256_sub_epi32(load_s8(b), _mm256_set1_epi32(zb));
    store_clamped(y, rescale8_by(_mm256_mullo_epi32(x, w), r), zy, low, high);
}

TARGET static void mul_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t za, int32_t zb, int32_t zy, rescale r,
                          int32_t low, int32_t high, int8_t *y)
{
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) mul8(a + j, b + j, za, zb, zy, r, low, high, y + j);
    if (j < n) {
        int8_t part[3][8] = {{0}};
        memcpy(part[0], a + j, (size_t)(n - j));
        memcpy(part[1], b + j, (size_t)(n - j));
        mul8(part[0], part[1], za, zb, zy, r, low, high, part[2]);
        memcpy(y + j, part[2], (size_t)(n - j));
    }
}

/* ---- depthwise ---- */

/* acc + a * b; the upper half of each lane's b is zeroed, so that only the product of the lower halves remains. */
INLINE __m256i multiply_add8(__m256i acc, __m256i a, __m256i b)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, _mm256_and_si256(b, _mm256_set1_epi32(0xffff))));
}

TARGET static void multiply_add_s8(int64_t n, const int8_t *a, const int8_t *b, int32_t *acc)
{
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) store256(acc + j, multiply_add8(load256(acc + j), load_s8(a + j), load_s8(b + j)));
    for (; j < n; j++) acc[j] = (int32_t)((uint32_t)acc[j] + (uint32_t)(a[j] * b[j]));
}

TARGET static void depthwise_s8(int64_t n, int64_t taps, const int8_t *const *a, const int8_t *b, int64_t ldb, int32_t *acc)
{
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
        __m256i sum0 = _mm256_setzero_si256(), sum1 = sum0;
        for (int64_t t = 0; t < taps; t++) {
            const int8_t *x = a[t] + j, *w = b + t * ldb + j;
            sum0 = multiply_add8(sum0, load_s8(x), load_s8(w));
            sum1 = multiply_add8(sum1, load_s8(x + 8), load_s8(w + 8));
        }
        store256(acc + j, sum0);
        store256(acc + j + 8, sum1);
    }
    for (; j + 8 <= n; j += 8) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t t = 0; t < taps; t++) sum = multiply_add8(sum, load_s8(a[t] + j), load_s8(b + t * ldb + j));
        store256(acc + j, sum);
    }
    for (; j < n; j++) {
        uint32_t sum = 0;
        for (int64_t t = 0; t < taps; t++) sum += (uint32_t)(a[t][j] * b[t * ldb + j]);
        acc[j] = (int32_t)sum;
    }
}

const mera_kernels mera_kernels_avx2 = {"avx2",     gemm_s8,         packed_bytes, pack,   gemm_packed,
                                        requantize, multiply_add_s8, depthwise_s8, add_s8, mul_s8};
#endif
