/* sha256.h: SHA-256 (FIPS 180-4), the checksum of a deployment's files. */
#ifndef MERA_RUNTIME_SHA256_H
#define MERA_RUNTIME_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_HEX = 64 };

/* 64 lower-case hexadecimal digits and a NUL. */
void sha256_hex(const void *data, size_t bytes, char hex[SHA256_HEX + 1]);

#endif
