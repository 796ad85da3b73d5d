/* sha256.c: see sha256.h. */
#include "sha256.h"

#include <string.h>

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void block(uint32_t state[8], const uint8_t *data)
{
    uint32_t w[64];
    for (int t = 0; t < 16; t++)
        w[t] =
            (uint32_t)data[4 * t] << 24 | (uint32_t)data[4 * t + 1] << 16 | (uint32_t)data[4 * t + 2] << 8 | data[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        const uint32_t a = w[t - 15], b = w[t - 2];
        w[t] =
            w[t - 16] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + w[t - 7] + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
    }
    uint32_t s[8];
    memcpy(s, state, sizeof s);
    for (int t = 0; t < 64; t += 8)
        for (int r = 0; r < 8; r++) { /* instead of moving a to h, their places move */
#define AT(n) s[((n) + 8 - r) & 7]
            const uint32_t e = AT(4), a = AT(0);
            const uint32_t one = AT(7) + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & AT(5)) ^ (~e & AT(6))) +
                                 round_constants[t + r] + w[t + r];
            AT(3) += one;
            AT(7) = one + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & AT(1)) ^ (a & AT(2)) ^ (AT(1) & AT(2)));
#undef AT
        }
    for (int k = 0; k < 8; k++) state[k] += s[k];
}

void sha256_hex(const void *data, size_t bytes, char hex[SHA256_HEX + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const uint8_t *at = data;
    size_t left = bytes;
    for (; left >= 64; left -= 64, at += 64) block(state, at);
    uint8_t tail[128] = {0};
    if (left) memcpy(tail, at, left);
    tail[left] = 0x80;
    const size_t end = left < 56 ? 64 : 128;
    for (int k = 0; k < 8; k++) tail[end - 1 - (size_t)k] = (uint8_t)((uint64_t)bytes * 8 >> (8 * k));
    block(state, tail);
    if (end == 128) block(state, tail + 64);
    for (int k = 0; k < SHA256_HEX; k++) hex[k] = digits[state[k / 8] >> (28 - 4 * (k % 8)) & 15];
    hex[SHA256_HEX] = '\0';
}
