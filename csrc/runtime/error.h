/* error.h: the messages of dna_runtime.h's functions. */
#ifndef MERA_RUNTIME_ERROR_H
#define MERA_RUNTIME_ERROR_H

#include "../core.h"
#include "../dna_runtime.h"

/* Fills the error, which may be NULL, and returns status. */
dna_status error_set(dna_error *error, dna_status status, const char *format, ...) MERA_PRINTF(3, 4);

#endif
