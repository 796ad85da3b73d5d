/* json.h: a strict JSON reader (RFC 8259), for text that may be hostile.
 *
 * The whole document becomes a tree in an arena. Beyond the grammar it refuses: text that is not UTF-8, duplicate keys,
 * lone surrogates, NUL inside of strings, numbers beyond float64, bytes behind the end, and more than the limits below. */
#ifndef MERA_RUNTIME_JSON_H
#define MERA_RUNTIME_JSON_H

#include "../core.h"

enum { JSON_MAX_BYTES = 64 << 20, JSON_MAX_DEPTH = 64, JSON_MAX_VALUES = 1 << 22 };

typedef enum json_kind { JSON_NULL, JSON_BOOL, JSON_INTEGER, JSON_REAL, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_kind;

typedef struct json_value json_value;

typedef struct json_member {
    const char *key;
    const json_value *value;
} json_member;

struct json_value {
    json_kind kind;
    uint32_t count;      /* of items or members, or of a string's bytes */
    uint32_t begin, end; /* where it stands in the text */
    union {
        bool boolean;
        int64_t integer;  /* a number without fraction and exponent that fits */
        double real;      /* any other number */
        const char *text; /* NUL-terminated UTF-8 */
        const json_value *items;
        const json_member *members; /* in the order of the text */
    } as;
};

/* MERA_CORRUPT with `what`, line and reason, MERA_OUT_OF_MEMORY. The tree lies in the arena; text may be freed. */
mera_status json_parse(mera_context *ctx, arena *memory, const char *what, const uint8_t *text, size_t bytes,
                       const json_value **value);

/* The member of that name; NULL if there is none or the value is no object. */
const json_value *json_get(const json_value *object, const char *key);

#endif
