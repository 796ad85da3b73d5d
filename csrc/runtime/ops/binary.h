/* binary.h: the functions of two elements; variants in host_ops.def. */
#ifndef MERA_RUNTIME_BINARY_H
#define MERA_RUNTIME_BINARY_H

/* BINARY(name, for reals, for integers); T is the type, k->real the numbers that the operator has. */
#define BINARY_ALL                                                                                                          \
    BINARY(ADD, a + b, wrap_add(a, b))                                                                                      \
    BINARY(SUB, a - b, wrap_sub(a, b))                                                                                      \
    BINARY(ADD_SCALED, FMA((T)k->real[0], b, a), wrap_add(a, wrap_mul(k->integer[0], b)))                                   \
    BINARY(MUL, a *b, wrap_mul(a, b))                                                                                       \
    BINARY(DIV_TRUNC, TRUNC(a / b), truncated_quotient(a, b))                                                               \
    BINARY(DIV_FLOOR, FLOOR_QUOTIENT(a, b), floored_quotient(a, b))                                                         \
    BINARY(REMAINDER, REMAINDER(a, b), floored_remainder(a, b))                                                             \
    BINARY(FMOD, FMOD(a, b), b == -1 ? 0 : a % b)                                                                           \
    BINARY(MAXIMUM, a != a ? a : a < b || b != b ? b : a, a < b ? b : a)                                                    \
    BINARY(MINIMUM, a != a ? a : b < a || b != b ? b : a, b < a ? b : a)                                                    \
    BINARY(FMAX, a != a || a < b ? b : a, a < b ? b : a)                                                                    \
    BINARY(FMIN, a != a || b < a ? b : a, b < a ? b : a)                                                                    \
    BINARY(POW, pow((double)a, (double)b), integer_power(a, b))                                                             \
    BINARY(PRELU, a > 0 ? a : a * b, 0)

/* For reals alone. */
#define BINARY_REALS                                                                                                        \
    BINARY_REAL(DIV, a / b)                                                                                                 \
    BINARY_REAL(ATAN2, atan2((double)a, (double)b))                                                                         \
    BINARY_REAL(XLOGY, b != b ? (double)b : a == 0 ? 0.0 : (double)a * log((double)b))

/* For integers alone. */
#define BINARY_INTEGERS                                                                                                     \
    BINARY_INTEGER(BITWISE_AND, a &b)                                                                                       \
    BINARY_INTEGER(BITWISE_OR, a | b)                                                                                       \
    BINARY_INTEGER(BITWISE_XOR, a ^ b)                                                                                      \
    BINARY_INTEGER(SHIFT_LEFT, b < 0 || b >= k->integer[0] ? 0 : (int64_t)((uint64_t)a << b))                               \
    BINARY_INTEGER(SHIFT_RIGHT, a >> (b < 0 || b >= k->integer[1] ? k->integer[1] : b))

/* With a result of bool. */
#define BINARY_TESTS                                                                                                        \
    BINARY_TEST(EQ, a == b)                                                                                                 \
    BINARY_TEST(NE, a != b)                                                                                                 \
    BINARY_TEST(LT, a < b)                                                                                                  \
    BINARY_TEST(LE, a <= b)                                                                                                 \
    BINARY_TEST(GT, a > b)                                                                                                  \
    BINARY_TEST(GE, a >= b)                                                                                                 \
    BINARY_TEST(LOGICAL_AND, a != 0 && b != 0)                                                                              \
    BINARY_TEST(LOGICAL_OR, a != 0 || b != 0)                                                                               \
    BINARY_TEST(LOGICAL_XOR, (a != 0) != (b != 0))

enum {
#define BINARY(NAME, REAL, INTEGER) BINARY_##NAME,
    BINARY_ALL
#undef BINARY
#define BINARY_REAL(NAME, EXPR) BINARY_##NAME,
        BINARY_REALS
#undef BINARY_REAL
#define BINARY_INTEGER(NAME, EXPR) BINARY_##NAME,
            BINARY_INTEGERS
#undef BINARY_INTEGER
#define BINARY_TEST(NAME, EXPR) BINARY_##NAME,
                BINARY_TESTS
#undef BINARY_TEST
                    BINARY_COUNT
};

#endif
