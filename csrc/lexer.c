/* lexer.c: the tokens that our text forms are made of. */
#include "lexer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

void lexer_init(lexer *l, mera_context *ctx, const char *what, const char *text, size_t bytes)
{
    *l = (lexer){ctx, what, text, text + bytes, text, 1, text, 1};
}

mera_status lexer_fail(lexer *l, const char *format, ...)
{
    char sentence[600];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return fail(l->ctx, MERA_INVALID_ARGUMENT, "%s text, line %d, column %d: %s", l->what, l->line,
                (int)(l->at - l->line_start) + 1, sentence);
}

mera_status lexer_blame(lexer *l, mera_status status)
{
    if (status == MERA_OK || status == MERA_OUT_OF_MEMORY) return status;
    char sentence[700];
    snprintf(sentence, sizeof sentence, "%s", mera_last_error(l->ctx));
    return fail(l->ctx, status, "%s text, line %d: %s", l->what, l->token_line, sentence);
}

/* Skips white space and comments, # to the end of the line. */
static void skip(lexer *l)
{
    if (l->at != l->skipped) l->token_line = l->line;
    for (; l->at < l->end; l->at++) {
        if (*l->at == '\n') {
            l->line++;
            l->line_start = l->at + 1;
        } else if (*l->at == '#') {
            while (l->at + 1 < l->end && l->at[1] != '\n') l->at++;
        } else if (*l->at != ' ' && *l->at != '\t' && *l->at != '\r') {
            break;
        }
    }
    l->skipped = l->at;
}

bool lexer_done(lexer *l)
{
    skip(l);
    return l->at == l->end;
}

bool lexer_accept(lexer *l, char symbol)
{
    skip(l);
    if (l->at == l->end || *l->at != symbol) return false;
    l->at++;
    return true;
}

/* What comes next, for messages. */
static mera_status expected(lexer *l, const char *what)
{
    skip(l);
    if (l->at == l->end) return lexer_fail(l, "%s is expected, the text ends", what);
    int length = 0;
    while (length < 20 && l->at + length < l->end && (unsigned char)l->at[length] > ' ') length++;
    return lexer_fail(l, "%s is expected, got \"%.*s\"", what, length, l->at);
}

mera_status lexer_expect(lexer *l, char symbol)
{
    if (lexer_accept(l, symbol)) return MERA_OK;
    const char quoted[4] = {'\'', symbol, '\'', '\0'};
    return expected(l, quoted);
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c); }

static size_t word_length(const lexer *l)
{
    size_t length = 0;
    if (l->at < l->end && is_digit(*l->at)) return 0;
    while (l->at + length < l->end && is_word(l->at[length])) length++;
    return length;
}

bool lexer_accept_word(lexer *l, const char *word)
{
    skip(l);
    const size_t length = word_length(l);
    if (length != strlen(word) || memcmp(l->at, word, length) != 0) return false;
    l->at += length;
    return true;
}

mera_status lexer_word(lexer *l, char *word, size_t space)
{
    skip(l);
    const size_t length = word_length(l);
    if (length == 0) return expected(l, "a word");
    if (length >= space) return lexer_fail(l, "a word of at most %zu letters is expected", space - 1);
    memcpy(word, l->at, length);
    word[length] = '\0';
    l->at += length;
    return MERA_OK;
}

mera_status lexer_int(lexer *l, int64_t low, int64_t high, int64_t *value)
{
    skip(l);
    const char *at = l->at;
    const bool negative = at < l->end && *at == '-';
    if (negative) at++;
    if (at == l->end || !is_digit(*at)) return expected(l, "a whole number");
    int64_t number = 0; /* negative, which reaches further */
    for (; at < l->end && is_digit(*at); at++) {
        const int digit = *at - '0';
        if (number < (INT64_MIN + digit) / 10) return lexer_fail(l, "the number does not fit 64 bits");
        number = number * 10 - digit;
    }
    if (!negative) {
        if (number == INT64_MIN) return lexer_fail(l, "the number does not fit 64 bits");
        number = -number;
    }
    if (number < low || number > high)
        return lexer_fail(l, "a whole number from %" PRId64 " to %" PRId64 " is expected, got %" PRId64, low, high, number);
    l->at = at;
    *value = number;
    return MERA_OK;
}

/* The decimal point of the C locale that the program has set, which printf and strtof use. */
static char decimal_point(void)
{
    char half[8];
    snprintf(half, sizeof half, "%.1f", 0.5);
    return half[1];
}

mera_status lexer_float(lexer *l, float *value)
{
    skip(l);
    char number[64];
    size_t length = 0;
    for (const char *at = l->at; at < l->end && length < sizeof number - 1; at++, length++) {
        const bool exponent_sign = (*at == '-' || *at == '+') && (length == 0 || at[-1] == 'e' || at[-1] == 'E');
        if (!is_digit(*at) && *at != '.' && *at != 'e' && *at != 'E' && !exponent_sign) break;
        number[length] = *at == '.' ? decimal_point() : *at;
    }
    number[length] = '\0';
    char *end;
    *value = strtof(number, &end);
    if (length == 0 || *end != '\0') return expected(l, "a number");
    l->at += length;
    return MERA_OK;
}

mera_status lexer_raw_string(lexer *l, const char **at, size_t *bytes)
{
    skip(l);
    if (l->at == l->end || *l->at != '"') return expected(l, "a \"string\"");
    const char *from = l->at + 1, *to = from;
    while (to < l->end && *to != '"' && *to != '\n') to += *to == '\\' && to + 1 < l->end && to[1] != '\n' ? 2 : 1;
    if (to >= l->end || *to != '"') return lexer_fail(l, "the string does not end on its line");
    *at = from;
    *bytes = (size_t)(to - from);
    l->at = to + 1;
    return MERA_OK;
}

static int hex_digit(char c)
{
    return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

mera_status lexer_string(lexer *l, arena *memory, const char **string)
{
    const char *at;
    size_t bytes;
    TRY(lexer_raw_string(l, &at, &bytes));
    char *to = arena_array(memory, bytes + 1, 1);
    if (!to) return out_of_memory(l->ctx);
    *string = to;
    for (const char *end = at + bytes; at < end; at++) {
        if (*at == '\0') return lexer_fail(l, "the string before holds a zero byte");
        if (*at != '\\') {
            *to++ = *at;
            continue;
        }
        at++;
        if (*at == '"' || *at == '\\') {
            *to++ = *at;
        } else if (*at == 'x' && end - at > 2 && hex_digit(at[1]) >= 0 && hex_digit(at[2]) >= 0 &&
                   (at[1] != '0' || at[2] != '0')) {
            *to++ = (char)(hex_digit(at[1]) * 16 + hex_digit(at[2]));
            at += 2;
        } else {
            return lexer_fail(l, "the string before has an unknown escape; known are \\\" \\\\ \\x01 to \\xff");
        }
    }
    return MERA_OK;
}

void text_string(text *t, const char *string)
{
    text_bytes(t, "\"", 1);
    for (; *string; string++) {
        if (*string == '"' || *string == '\\')
            text_add(t, "\\%c", *string);
        else if ((unsigned char)*string < ' ' || *string == 127)
            text_add(t, "\\x%02x", (unsigned)(unsigned char)*string);
        else
            text_bytes(t, string, 1);
    }
    text_bytes(t, "\"", 1);
}

void text_float(text *t, float value)
{
    char number[40];
    const char point = decimal_point();
    for (int digits = 6; digits <= 9; digits++) { /* 9 always suffice */
        snprintf(number, sizeof number, "%.*g", digits, (double)value);
        if (strtof(number, NULL) == value) break;
    }
    for (char *at = number; *at; at++)
        if (*at == point) *at = '.';
    text_add(t, "%s", number);
}
