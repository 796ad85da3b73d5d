/* crc32.c: CRC-32: half a byte a step for what is short, eight bytes a step, with tables on the stack, for what is long. */
#include "regs.h"

enum { LONG = 4096, SLICES = 8 };

static const uint32_t half_byte[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};

static uint32_t step(uint32_t crc) { return crc >> 4 ^ half_byte[crc & 15]; }

static uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Whole groups of eight bytes. */
static uint32_t crc_long(uint32_t crc, const uint8_t *at, size_t bytes)
{
    uint32_t table[SLICES][256]; /* [k][b]: byte b followed by k zero bytes */
    for (uint32_t b = 0; b < 256; b++) {
        table[0][b] = step(step(b));
        for (int k = 1; k < SLICES; k++) table[k][b] = step(step(table[k - 1][b]));
    }
    for (; bytes >= 8; at += 8, bytes -= 8) {
        const uint32_t low = crc ^ load_u32(at), high = load_u32(at + 4);
        crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
              table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
    }
    return crc;
}

uint32_t crc32_of(uint32_t crc, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    crc = ~crc;
    if (bytes >= LONG) {
        crc = crc_long(crc, at, bytes);
        at += bytes & ~(size_t)7;
        bytes &= 7;
    }
    for (; bytes > 0; at++, bytes--) crc = step(step(crc ^ *at));
    return ~crc;
}
