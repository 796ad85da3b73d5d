/* json.c: see json.h. One pass, recursive with bounded depth; items of open arrays and objects wait on a stack. */
#include <locale.h>
#include <math.h>
#include <stdlib.h>

#include "json.h"

typedef struct parser {
    mera_context *ctx;
    arena *memory;
    const char *what;
    const uint8_t *text, *at, *end;
    int64_t values;
    locale_t plain; /* numbers have a point in every country */
    VEC(json_value) items;
    VEC(json_member) members;
} parser;

static mera_status parse_value(parser *p, int depth, json_value *out);

static mera_status bad(parser *p, const uint8_t *at, const char *reason)
{
    int line = 1;
    for (const uint8_t *c = p->text; c < at; c++) line += *c == '\n';
    return fail(p->ctx, MERA_CORRUPT, "%s, line %d: %s", p->what, line, reason);
}

static void skip_space(parser *p)
{
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r')) p->at++;
}

static bool take(parser *p, uint8_t c)
{
    skip_space(p);
    if (p->at == p->end || *p->at != c) return false;
    p->at++;
    return true;
}

static bool take_word(parser *p, const char *word)
{
    const size_t n = strlen(word);
    if ((size_t)(p->end - p->at) < n || memcmp(p->at, word, n) != 0) return false;
    p->at += n;
    return true;
}

/* ---- strings ---- */

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The four digits of \uXXXX; -1 if they are not there. */
static int32_t take_unit(parser *p)
{
    int32_t unit = 0;
    if (p->end - p->at < 4) return -1;
    for (int k = 0; k < 4; k++) {
        const int digit = hex_digit(p->at[k]);
        if (digit < 0) return -1;
        unit = unit << 4 | digit;
    }
    p->at += 4;
    return unit;
}

static char *put_utf8(char *to, int32_t c)
{
    if (c < 0x80) {
        *to++ = (char)c;
    } else if (c < 0x800) {
        *to++ = (char)(0xC0 | c >> 6);
        *to++ = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *to++ = (char)(0xE0 | c >> 12);
        *to++ = (char)(0x80 | (c >> 6 & 0x3F));
        *to++ = (char)(0x80 | (c & 0x3F));
    } else {
        *to++ = (char)(0xF0 | c >> 18);
        *to++ = (char)(0x80 | (c >> 12 & 0x3F));
        *to++ = (char)(0x80 | (c >> 6 & 0x3F));
        *to++ = (char)(0x80 | (c & 0x3F));
    }
    return to;
}

/* Bytes of the UTF-8 sequence at `at`: 1 to 4; 0 if it is none (overlong, a surrogate, too large, cut off). */
static int utf8_length(const uint8_t *at, const uint8_t *end)
{
    const uint8_t c = at[0];
    const int n = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
    if (n == 0 || end - at < n) return 0;
    for (int k = 1; k < n; k++)
        if ((at[k] & 0xC0) != 0x80) return 0;
    if ((c == 0xE0 && at[1] < 0xA0) || (c == 0xED && at[1] > 0x9F)) return 0;
    if ((c == 0xF0 && at[1] < 0x90) || (c == 0xF4 && at[1] > 0x8F)) return 0;
    return n;
}

/* Behind a backslash. NULL if it is no escape that is allowed. */
static char *take_escape(parser *p, char *to)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (p->at == p->end) return NULL;
    const uint8_t c = *p->at++;
    const char *known = c ? strchr(names, c) : NULL;
    if (known) {
        *to++ = values[known - names];
        return to;
    }
    if (c != 'u') return NULL;
    int32_t unit = take_unit(p);
    if (unit >= 0xD800 && unit < 0xDC00) {
        if (!take_word(p, "\\u")) return NULL;
        const int32_t low = take_unit(p);
        if (low < 0xDC00 || low > 0xDFFF) return NULL;
        unit = 0x10000 + ((unit - 0xD800) << 10 | (low - 0xDC00));
    } else if (unit <= 0 || (unit >= 0xDC00 && unit < 0xE000)) {
        return NULL;
    }
    return put_utf8(to, unit);
}

/* The text behind a quotation mark; never longer than its source. */
static mera_status parse_string(parser *p, const char **text, uint32_t *count)
{
    const uint8_t *start = p->at, *close = start;
    while (close < p->end && *close != '"') close += *close == '\\' ? 2 : 1;
    if (close >= p->end) return bad(p, start, "a string without end");
    char *copy = arena_array(p->memory, (size_t)(close - start) + 1, 1), *to = copy;
    if (!copy) return out_of_memory(p->ctx);
    while (*p->at != '"') {
        if (*p->at < 0x20) return bad(p, p->at, "a control character inside of a string");
        if (*p->at == '\\') {
            p->at++;
            to = take_escape(p, to);
            if (!to) return bad(p, p->at, "an escape that is not allowed");
            continue;
        }
        const int n = utf8_length(p->at, close);
        if (n == 0) return bad(p, p->at, "text that is not UTF-8");
        memcpy(to, p->at, (size_t)n);
        to += n;
        p->at += n;
    }
    p->at++;
    *text = copy;
    *count = (uint32_t)(to - copy);
    return MERA_OK;
}

/* ---- numbers ---- */

static const uint8_t *skip_digits(const uint8_t *at, const uint8_t *end)
{
    while (at < end && *at >= '0' && *at <= '9') at++;
    return at;
}

static mera_status parse_number(parser *p, json_value *out)
{
    const uint8_t *start = p->at, *at = start;
    at += *at == '-';
    const uint8_t *digits = at;
    at = skip_digits(at, p->end);
    if (at == digits || (*digits == '0' && at - digits > 1)) return bad(p, start, "neither a value nor a number");
    bool whole = true;
    if (at < p->end && *at == '.') {
        const uint8_t *fraction = ++at;
        at = skip_digits(at, p->end);
        if (at == fraction) return bad(p, start, "a number whose fraction has no digits");
        whole = false;
    }
    if (at < p->end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < p->end && (*at == '+' || *at == '-')) at++;
        const uint8_t *exponent = at;
        at = skip_digits(at, p->end);
        if (at == exponent) return bad(p, start, "a number whose exponent has no digits");
        whole = false;
    }
    char word[512];
    const size_t n = (size_t)(at - start);
    if (n >= sizeof word) return bad(p, start, "a number of more than 511 characters");
    memcpy(word, start, n);
    word[n] = '\0';
    p->at = at;
    if (whole && at - digits <= 18) { /* below 2^63 */
        out->kind = JSON_INTEGER;
        out->as.integer = strtoll(word, NULL, 10);
        return MERA_OK;
    }
    out->kind = JSON_REAL;
    out->as.real = strtod_l(word, NULL, p->plain);
    return isfinite(out->as.real) ? MERA_OK : bad(p, start, "a number beyond the range of float64");
}

/* ---- arrays and objects ---- */

static mera_status parse_array(parser *p, int depth, json_value *out)
{
    const size_t base = p->items.count;
    if (!take(p, ']')) do {
            json_value item;
            TRY(parse_value(p, depth, &item));
            if (!vec_push(p->ctx, &p->items, item)) return out_of_memory(p->ctx);
        } while (take(p, ','));
    const size_t count = p->items.count - base;
    if (count && !take(p, ']')) return bad(p, p->at, "an array wants ',' or ']' here");
    json_value *items = arena_array(p->memory, count, sizeof *items);
    if (!items) return out_of_memory(p->ctx);
    if (count) memcpy(items, p->items.at + base, count * sizeof *items);
    p->items.count = base;
    out->kind = JSON_ARRAY;
    out->count = (uint32_t)count;
    out->as.items = items;
    return MERA_OK;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const json_member *)a)->key, ((const json_member *)b)->key);
}

static mera_status check_keys(parser *p, const json_member *members, size_t count)
{
    json_member *sorted = ctx_alloc(p->ctx, count * sizeof *sorted);
    if (!sorted) return out_of_memory(p->ctx);
    if (count) memcpy(sorted, members, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_key);
    mera_status status = MERA_OK;
    for (size_t k = 1; k < count && status == MERA_OK; k++)
        if (strcmp(sorted[k - 1].key, sorted[k].key) == 0)
            status = fail(p->ctx, MERA_CORRUPT, "%s: key \"%.100s\" stands twice in one object", p->what, sorted[k].key);
    ctx_free(p->ctx, sorted);
    return status;
}

static mera_status parse_member(parser *p, int depth)
{
    json_member member = {0};
    uint32_t length;
    if (!take(p, '"')) return bad(p, p->at, "an object wants a key here");
    TRY(parse_string(p, &member.key, &length));
    if (!take(p, ':')) return bad(p, p->at, "an object wants ':' here");
    json_value *value = ARENA_NEW(p->memory, json_value);
    if (!value) return out_of_memory(p->ctx);
    TRY(parse_value(p, depth, value));
    member.value = value;
    return vec_push(p->ctx, &p->members, member) ? MERA_OK : out_of_memory(p->ctx);
}

static mera_status parse_object(parser *p, int depth, json_value *out)
{
    const size_t base = p->members.count;
    if (!take(p, '}')) do {
            TRY(parse_member(p, depth));
        } while (take(p, ','));
    const size_t count = p->members.count - base;
    if (count && !take(p, '}')) return bad(p, p->at, "an object wants ',' or '}' here");
    json_member *members = arena_array(p->memory, count, sizeof *members);
    if (!members) return out_of_memory(p->ctx);
    if (count) memcpy(members, p->members.at + base, count * sizeof *members);
    p->members.count = base;
    out->kind = JSON_OBJECT;
    out->count = (uint32_t)count;
    out->as.members = members;
    return check_keys(p, members, count);
}

static mera_status parse_word(parser *p, json_value *out)
{
    if (take_word(p, "null")) {
        out->kind = JSON_NULL;
        return MERA_OK;
    }
    out->kind = JSON_BOOL;
    out->as.boolean = take_word(p, "true");
    return out->as.boolean || take_word(p, "false") ? MERA_OK : bad(p, p->at, "neither a value nor a number");
}

static mera_status parse_value(parser *p, int depth, json_value *out)
{
    memset(out, 0, sizeof *out);
    skip_space(p);
    if (p->at == p->end) return bad(p, p->at, "the text ends where a value should be");
    if (depth >= JSON_MAX_DEPTH) return bad(p, p->at, "more than 64 arrays and objects inside of each other");
    if (++p->values > JSON_MAX_VALUES) return bad(p, p->at, "more than 4,194,304 values");
    out->kind = JSON_STRING;
    out->begin = (uint32_t)(p->at - p->text);
    const uint8_t c = *p->at;
    mera_status status;
    if (c == '[' || c == '{' || c == '"') p->at++;
    if (c == '[')
        status = parse_array(p, depth + 1, out);
    else if (c == '{')
        status = parse_object(p, depth + 1, out);
    else if (c == '"')
        status = parse_string(p, &out->as.text, &out->count);
    else if (c == '-' || (c >= '0' && c <= '9'))
        status = parse_number(p, out);
    else
        status = parse_word(p, out);
    out->end = (uint32_t)(p->at - p->text);
    return status;
}

mera_status json_parse(mera_context *ctx, arena *memory, const char *what, const uint8_t *text, size_t bytes,
                       const json_value **value)
{
    if (bytes > JSON_MAX_BYTES) return fail(ctx, MERA_CORRUPT, "%s: it has more than %d bytes", what, JSON_MAX_BYTES);
    json_value *root = ARENA_NEW(memory, json_value);
    parser p = {.ctx = ctx, .memory = memory, .what = what, .text = text, .at = text, .end = text + bytes};
    p.plain = root ? newlocale(LC_ALL_MASK, "C", (locale_t)0) : (locale_t)0;
    if (!p.plain) return out_of_memory(ctx);
    mera_status status = parse_value(&p, 0, root);
    skip_space(&p);
    if (status == MERA_OK && p.at != p.end) status = bad(&p, p.at, "there is text behind the end of the value");
    freelocale(p.plain);
    vec_free(ctx, &p.items);
    vec_free(ctx, &p.members);
    *value = root;
    return status;
}

const json_value *json_get(const json_value *object, const char *key)
{
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (uint32_t k = 0; k < object->count; k++)
        if (strcmp(object->as.members[k].key, key) == 0) return object->as.members[k].value;
    return NULL;
}
