"""C++ text that reads a layout's masks: for 64 queries, one word of 64 bits a key."""

from __future__ import annotations

MASKS = """
    // Bits low .. high of a word, 0 <= low < high <= 64.
    INLINE uint64_t bits_from(long low, long high) { return (~0ull >> (64 - (high - low))) << low; }

    // keep[j] of keys `first` .. of a tile: bit i is set where query base + i of the tile reads it.
    // Of a zone, the queries that read one key are an interval: two compares.
    static void keep_of_zones(uint64_t *keep, const int32_t *zone, long base, long first,
                              long count)
    {
        for (long slot = 0; slot < 4 && zone[0] < zone[1]; slot++, zone += 6) {
            long j = zone[2] > first ? zone[2] : first;
            long end = zone[3] < first + count ? zone[3] : first + count;
            for (; j < end; j++) {
                long low = (zone[0] > j - zone[5] + 1 ? zone[0] : j - zone[5] + 1) - base;
                long high = (zone[1] < j - zone[4] + 1 ? zone[1] : j - zone[4] + 1) - base;
                if (low < 0) low = 0;
                if (high > 64) high = 64;
                if (low < high) keep[j - first] |= bits_from(low, high);
            }
        }
    }

    // Turn 64 rows of 64 bits on their side: halves of ever smaller squares change places.
    static void transposed(uint64_t *rows)
    {
        uint64_t mask = 0x00000000ffffffffull;
        for (int side = 32; side; side >>= 1, mask ^= mask << side)
            for (int k = 0; k < 64; k = ((k | side) + 1) & ~side) {
                uint64_t swap = ((rows[k] >> side) ^ rows[k | side]) & mask;
                rows[k] ^= swap << side;
                rows[k | side] ^= swap;
            }
    }

    // The same of a tile of bits: `words` int32 a row, bit b of word w is key 32 w + b.
    static void keep_of_bits(uint64_t *keep, const uint32_t *bits, long words, long rows, long base,
                             long first, long count)
    {
        for (long j = 0; j < count; j += 64) {
            uint64_t square[64] = {};
            long word = (first + j) / 32;  // `first` is a multiple of 64, or the tile is narrow
            for (long i = 0; i < 64 && base + i < rows; i++) {
                const uint32_t *row = bits + (base + i) * words + word;
                square[i] = row[0] | (word + 1 < words ? (uint64_t)row[1] << 32 : 0);
            }
            transposed(square);
            for (long x = 0; x < 64 && j + x < count; x++) keep[j + x] = square[x];
        }
    }

    // keep[j] for any mask word: 0 full, then zones, then bits.
    static void keep_of(const Call &call, uint64_t *keep, long word, long base, long first,
                        long count)
    {
        for (long j = 0; j < count; j++) keep[j] = word == 0 ? ~0ull : 0;
        if (word > call.zone_count)
            keep_of_bits(keep, (const uint32_t *)call.bits
                             + (word - 1 - call.zone_count) * call.tile_q * call.words,
                         call.words, call.tile_q, base, first, count);
        else if (word > 0)
            keep_of_zones(keep, call.zones + (word - 1) * 24, base, first, count);
    }
"""
