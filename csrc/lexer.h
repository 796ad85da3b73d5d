/* lexer.h: the tokens that our text forms are made of. An error names line and column. */
#ifndef MERA_LEXER_H
#define MERA_LEXER_H

#include "core.h"

typedef struct lexer {
    mera_context *ctx;
    const char *what; /* of the text, for messages: "graph" */
    const char *at, *end, *line_start;
    int line;
    const char *skipped; /* where the last skipping of white space ended */
    int token_line;      /* where the last token ended */
} lexer;

void lexer_init(lexer *l, mera_context *ctx, const char *what, const char *text, size_t bytes);
/* Fails with line and column of what comes next. */
mera_status lexer_fail(lexer *l, const char *format, ...) MERA_PRINTF(2, 3);
/* Gives the context's last error, which a builder set, the line of the text. Returns status. */
mera_status lexer_blame(lexer *l, mera_status status);

bool lexer_done(lexer *l);
/* Takes the symbol (a character) or word if it comes next. */
bool lexer_accept(lexer *l, char symbol);
bool lexer_accept_word(lexer *l, const char *word);
mera_status lexer_expect(lexer *l, char symbol);
/* A word: letters, digits, underscores, not beginning with a digit; space includes the final zero. */
mera_status lexer_word(lexer *l, char *word, size_t space);
mera_status lexer_int(lexer *l, int64_t low, int64_t high, int64_t *value);
mera_status lexer_float(lexer *l, float *value);
/* The undecoded inside of a "string". */
mera_status lexer_raw_string(lexer *l, const char **at, size_t *bytes);
/* A decoded string. */
mera_status lexer_string(lexer *l, arena *memory, const char **string);

/* The counterparts: quoted, with escapes; the shortest usual form of a float that reads back, whatever the locale. */
void text_string(text *t, const char *string);
void text_float(text *t, float value);

#endif
