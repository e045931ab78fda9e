/* The hash of keys (BLAKE2b, RFC 7693, 8 bytes, keyed) and the CRC of records (that of zlib). */

#ifndef DSTORE_HASH_H
#define DSTORE_HASH_H

#include <stdint.h>
#include <string.h>

#define DSTORE_BLOCK 128
#define DSTORE_HASH_KEY 16

static const uint64_t dstore_iv[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u,
};

static const uint8_t dstore_sigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t dstore_little64(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static inline uint64_t dstore_rotated(uint64_t word, int bits) {
    return word >> bits | word << (64 - bits);
}

#define DSTORE_MIX(a, b, c, d, x, y) \
    do { \
        v[a] += v[b] + (x); \
        v[d] = dstore_rotated(v[d] ^ v[a], 32); \
        v[c] += v[d]; \
        v[b] = dstore_rotated(v[b] ^ v[c], 24); \
        v[a] += v[b] + (y); \
        v[d] = dstore_rotated(v[d] ^ v[a], 16); \
        v[c] += v[d]; \
        v[b] = dstore_rotated(v[b] ^ v[c], 63); \
    } while (0)

#define DSTORE_ROUND(r) \
    do { \
        const uint8_t *s = dstore_sigma[(r) % 10]; \
        DSTORE_MIX(0, 4, 8, 12, m[s[0]], m[s[1]]); \
        DSTORE_MIX(1, 5, 9, 13, m[s[2]], m[s[3]]); \
        DSTORE_MIX(2, 6, 10, 14, m[s[4]], m[s[5]]); \
        DSTORE_MIX(3, 7, 11, 15, m[s[6]], m[s[7]]); \
        DSTORE_MIX(0, 5, 10, 15, m[s[8]], m[s[9]]); \
        DSTORE_MIX(1, 6, 11, 12, m[s[10]], m[s[11]]); \
        DSTORE_MIX(2, 7, 8, 13, m[s[12]], m[s[13]]); \
        DSTORE_MIX(3, 4, 9, 14, m[s[14]], m[s[15]]); \
    } while (0)

/* One block, of which ``count`` bytes of input have been taken with it. */
static void dstore_compress(uint64_t h[8], const uint8_t block[DSTORE_BLOCK], uint64_t count,
                            int last) {
    uint64_t v[16], m[16];
    for (int i = 0; i < 16; i++)
        m[i] = dstore_little64(block + 8 * i);
    for (int i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = dstore_iv[i];
    }
    v[12] ^= count;
    if (last)
        v[14] = ~v[14];
    /* Written out, so that the indexes into the block are constants. */
    DSTORE_ROUND(0); DSTORE_ROUND(1); DSTORE_ROUND(2); DSTORE_ROUND(3);
    DSTORE_ROUND(4); DSTORE_ROUND(5); DSTORE_ROUND(6); DSTORE_ROUND(7);
    DSTORE_ROUND(8); DSTORE_ROUND(9); DSTORE_ROUND(10); DSTORE_ROUND(11);
    for (int i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

/* The state after the block of the key, and the state before it for an empty message. */
typedef struct {
    uint64_t keyed[8];
    uint64_t fresh[8];
    uint8_t block[DSTORE_BLOCK];
} dstore_hash;

static void dstore_hash_begin(dstore_hash *hash, const uint8_t key[DSTORE_HASH_KEY]) {
    memcpy(hash->fresh, dstore_iv, sizeof dstore_iv);
    hash->fresh[0] ^= 0x01010000u | DSTORE_HASH_KEY << 8 | 8; /* 8 bytes of digest */
    memset(hash->block, 0, DSTORE_BLOCK);
    memcpy(hash->block, key, DSTORE_HASH_KEY);
    memcpy(hash->keyed, hash->fresh, sizeof hash->fresh);
    dstore_compress(hash->keyed, hash->block, DSTORE_BLOCK, 0);
}

static uint64_t dstore_hash_of(const dstore_hash *hash, const uint8_t *data, size_t length) {
    uint64_t h[8], count = DSTORE_BLOCK;
    uint8_t block[DSTORE_BLOCK];
    if (length == 0) {
        memcpy(h, hash->fresh, sizeof h);
        dstore_compress(h, hash->block, DSTORE_BLOCK, 1);
        return h[0];
    }
    memcpy(h, hash->keyed, sizeof h);
    for (; length > DSTORE_BLOCK; data += DSTORE_BLOCK, length -= DSTORE_BLOCK) {
        count += DSTORE_BLOCK;
        dstore_compress(h, data, count, 0);
    }
    memset(block, 0, DSTORE_BLOCK);
    memcpy(block, data, length);
    dstore_compress(h, block, count + length, 1);
    return h[0];
}

/* CRC-32, eight bytes at a time: table k is that of a byte which is followed by k others. */
static uint32_t dstore_crc_table[8][256];

static void dstore_crc_begin(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        dstore_crc_table[0][i] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++) {
            uint32_t crc = dstore_crc_table[k - 1][i];
            dstore_crc_table[k][i] = crc >> 8 ^ dstore_crc_table[0][crc & 255];
        }
}

static uint32_t dstore_crc(const uint8_t *data, size_t length, uint32_t crc) {
    crc = ~crc;
    for (; length >= 8; data += 8, length -= 8) {
        uint64_t word = dstore_little64(data) ^ crc;
        crc = dstore_crc_table[7][word & 255] ^ dstore_crc_table[6][word >> 8 & 255] ^
              dstore_crc_table[5][word >> 16 & 255] ^ dstore_crc_table[4][word >> 24 & 255] ^
              dstore_crc_table[3][word >> 32 & 255] ^ dstore_crc_table[2][word >> 40 & 255] ^
              dstore_crc_table[1][word >> 48 & 255] ^ dstore_crc_table[0][word >> 56];
    }
    for (; length; data++, length--)
        crc = crc >> 8 ^ dstore_crc_table[0][(crc ^ *data) & 255];
    return ~crc;
}

#endif
