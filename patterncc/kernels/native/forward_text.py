"""The pieces of the native forward pass: C++ text with $names, put together by `forward`."""

from __future__ import annotations

STATE = """
    enum : long {
        ROWS = 64,            // queries of an item
        GROUPS = ROWS / G,
        STEP = 128,           // keys of a step
        PAIRS = (D + 1) / 2,  // of columns of Q and K
    };
    static const ivec LANE = {
        $lane_bits,
    };

    struct alignas(64) Group {
        $q_type q[$q_rows * G];  // Q^T
        float out[DV * G];  // O^T, not yet divided by the sum
        vec largest[2];     // score of each query; NOTHING before the first
        vec base[2];        // what scores are less by before their exponential
        vec sum[2];         // of its probabilities, each times e^(base - LSE)
        ivec at[2];         // positions
    };

    struct alignas(64) Scratch {
        Group groups[GROUPS];
        long head;
        float s[STEP * G];
        $k_type k[STEP * $k_row];  // keys that are not read in place
        $v_type v[$v_rows * DV];
        uint64_t keep[STEP];
        int32_t index[STEP];  // keys of the step, counted from its first
        int32_t at[STEP];     // their positions
    };

    // What a step reads: `count` keys, of which some in place.
    struct Keys {
        const $k_type *k;
        const $v_type *v;
        long v_row, count;
    };
"""

LOAD_QUERIES = """
    static void load_queries(const Call &call, Group &g, const element *q, long first, long count)
    {
        float row[D];
        for (long i = 0; i < G; i++) {
            bool there = i < count;
            if (there) widened(row, q + (first + i) * call.q_row, D);
            for (long d = 0; d < D; d++) g.q[d * G + i] = there ? row[d] : 0.0f;
        }
    }
"""

LOAD_QUERY_PAIRS = """
    static void load_queries(const Call &call, Group &g, const element *q, long first, long count)
    {
        for (long i = 0; i < G; i++) {
            const element *row = q + (first + i) * call.q_row;
            for (long d = 0; d < PAIRS; d++) {
                uint32_t low = i < count ? row[2 * d] : 0;
                uint32_t high = i < count && 2 * d + 1 < D ? row[2 * d + 1] : 0;
                g.q[d * G + i] = (int32_t)(low | high << 16);
            }
        }
    }
"""

OPEN_GROUP = """
    static void open_group(const Call &call, Group &g, const element *q, long first, long count)
    {
        load_queries(call, g, q, first, count);
        for (long x = 0; x < DV * G; x++) g.out[x] = 0;
        for (long n = 0; n < 2; n++) {
            g.largest[n] = g.base[n] = splat(NOTHING);
            g.sum[n] = splat(0);
        }$positions
    }
"""

POSITIONS = """
    for (long i = 0; i < G; i++) {
        long slot = first + (i < count ? i : 0);
        ((int32_t *)g.at)[i] = $query_at;
    }
"""

# --- keys of a step


LOAD_IN_PLACE = """
    // Keys and values as they stand where rows of K lie side by side; copied where keys between
    // them are left out, which may hold anything.
    static Keys load_keys(const Call &call, Scratch &s, const element *k, const element *v,
                          long first, long count, bool holes)
    {
        k += first * call.k_row;
        v += first * call.v_row;
        Keys keys = {k, v, call.v_row, count};
        if (holes || call.k_row != D) {
            for (long j = 0; j < count; j++)
                widened(s.k + j * D, k + (holes ? s.index[j] : j) * call.k_row, D);
            keys.k = s.k;
        }
        if (holes) {
            for (long j = 0; j < count; j++)
                widened(s.v + j * DV, v + s.index[j] * call.v_row, DV);
            keys.v = s.v;
            keys.v_row = DV;
        }
        return keys;
    }
"""

LOAD_WIDENED = """
    // Keys and values in fp32; those between them that are left out may hold anything.
    static Keys load_keys(const Call &call, Scratch &s, const element *k, const element *v,
                          long first, long count, bool holes)
    {
        for (long j = 0; j < count; j++) {
            long key = first + (holes ? s.index[j] : j);
            widened(s.k + j * D, k + key * call.k_row, D);
            widened(s.v + j * DV, v + key * call.v_row, DV);
        }
        return {s.k, s.v, DV, count};
    }
"""

LOAD_PAIRS = """
    // Keys are pairs of columns as they stand; values become pairs of neighbouring keys.
    static Keys load_keys(const Call &call, Scratch &s, const element *k, const element *v,
                          long first, long count, bool holes)
    {
        k += first * call.k_row;
        v += first * call.v_row;
        Keys keys = {(const int32_t *)k, s.v, DV, count};
        if (holes || call.k_row != D || D % 2) {
            element *copy = (element *)s.k;
            for (long j = 0; j < count; j++, copy += 2 * PAIRS) {
                const element *row = k + (holes ? s.index[j] : j) * call.k_row;
                for (long d = 0; d < D; d++) copy[d] = row[d];
                if (D % 2) copy[D] = 0;
            }
            keys.k = s.k;
        }
        for (long j = 0; j < count; j += 2) {
            const element *even = v + (holes ? s.index[j] : j) * call.v_row;
            bool two = j + 1 < count;
            const element *odd = two ? v + (holes ? s.index[j + 1] : j + 1) * call.v_row : even;
            uint32_t here = two ? 0xffff0000u : 0;
            uint32_t *pair = (uint32_t *)s.v + j / 2 * DV;
            for (long d = 0; d < DV; d++) pair[d] = even[d] | ((uint32_t)odd[d] << 16 & here);
        }
        return keys;
    }
"""

# --- the step of one group


SCORES = """
    // S of keys low .. high, masked, and the largest score of each query.
    template <bool MASKED>
    INLINE void scores(const Call &call, Scratch &s, Group &g, const Keys &keys, long low,
                       long high, long shift)
    {
        vec largest[2] = {g.largest[0], g.largest[1]};$opening
        stretch(low, high, [&](auto rows, long j) __attribute__((always_inline)) {
            constexpr long R = decltype(rows)::value;
            vec c[R][2] = {};
            $product
            for (long m = 0; m < R; m++) {
                int32_t keep = MASKED ? (int32_t)(s.keep[j + m] >> shift) : -1;
                for (long n = 0; n < 2; n++) {
                    vec x = c[m][n];$lines
                    if (MASKED) x = pick((isplat(keep >> n * W) & LANE) != 0, x, splat(NOTHING));
                    largest[n] = larger(largest[n], x);
                    store(s.s + (j + m) * G + n * W, x);
                }
            }
        });
        for (long n = 0; n < 2; n++) g.largest[n] = largest[n];
    }
"""

PROBABILITIES = """
    // P = 2^((S - base) * to_base_2) in place of S, exactly 1 at the largest; gives what the sums
    // and outputs so far are multiplied by.
    INLINE void probabilities(Scratch &s, Group &g, long low, long high, float to_base_2,
                              vec (&fade)[2])
    {
        vec base[2], sum[2];  // the step's own sum: fewer roundings than one long chain
        for (long n = 0; n < 2; n++) {
            ivec none = g.largest[n] == NOTHING;
            base[n] = pick(none, splat(0), g.largest[n]);
            fade[n] = exp2_of((g.base[n] - base[n]) * to_base_2);
            sum[n] = splat(0);
            g.base[n] = pick(none, splat(NOTHING), base[n]);
        }
        $body
        for (long n = 0; n < 2; n++) g.sum[n] = g.sum[n] * fade[n] + sum[n];
    }
"""

IN_FP32 = """
    for (long j = low; j < high; j++)
        for (long n = 0; n < 2; n++) {
            float *p = s.s + j * G + n * W;
            vec x = exp2_of((load(p) - base[n]) * to_base_2);
            sum[n] += x;
            store(p, x);
        }
"""

IN_PAIRS = """
    for (long j = low; j < high; j += 2)  // low is even; the key past an odd end counts nothing
        for (long n = 0; n < 2; n++) {
            float *p = s.s + j * G + n * W;
            vec x = exp2_of((load(p) - base[n]) * to_base_2);
            vec y = j + 1 < high ? exp2_of((load(p + G) - base[n]) * to_base_2) : splat(0);
            sum[n] += x + y;
            istore((int32_t *)s.s + j / 2 * G + n * W, paired(x, y));
        }
"""

VALUES = """
    // O^T = O^T * fade + V^T P
    INLINE void values(Scratch &s, Group &g, const Keys &keys, long low, long high, vec (&fade)[2])
    {
        strips<DV>([&](auto rows, long d) __attribute__((always_inline)) {
            constexpr long R = decltype(rows)::value;
            vec c[R][2] = {};
            $product
            for (long m = 0; m < R; m++)
                for (long n = 0; n < 2; n++) {
                    float *out = g.out + (d + m) * G + n * W;
                    store(out, load(out) * fade[n] + c[m][n]);
                }
        });
    }
"""

ATTEND = """
    template <bool MASKED>
    static void attend(const Call &call, Scratch &s, Group &g, const Keys &keys, long low,
                       long high, long shift)
    {
        vec fade[2];
        scores<MASKED>(call, s, g, keys, low, high, shift);
        probabilities(s, g, low, high, $to_base_2, fade);
        values(s, g, keys, low, high, fade);
    }

    // Keys first .. of one step for all groups; under a mask s.keep holds who reads them.
    static void step(const Call &call, Scratch &s, const element *k, const element *v, long first,
                     long count, long rows, bool masked)
    {
        long kept = count;
        bool holes = false;
        if (masked) {
            kept = 0;
            for (long j = 0; j < count; j++)
                if (s.keep[j] & bits_from(0, rows)) {
                    s.keep[kept] = s.keep[j];
                    s.index[kept++] = (int32_t)j;
                }
            if (kept == 0) return;
            holes = s.index[kept - 1] - s.index[0] + 1 != kept;
            if (!holes) first += s.index[0];
        }$key_positions
        Keys keys = load_keys(call, s, k, v, first, kept, holes);
        for (long x = 0; x * G < rows; x++) {
            long low = 0, high = kept;
            bool all = true;
            if (masked) {
                uint64_t mine = bits_from(x * G, x * G + G) & bits_from(0, rows), every = ~0ull;
                while (high > low && !(s.keep[high - 1] & mine)) high--;
                while (low < high && !(s.keep[low] & mine)) low++;
                for (long j = low; j < high; j++) every &= s.keep[j];
                all = (every & mine) == mine;
            }
            $even
            if (low == high) continue;
            if (all) attend<false>(call, s, s.groups[x], keys, low, high, x * G);
            else attend<true>(call, s, s.groups[x], keys, low, high, x * G);
        }
    }
"""

FINISH = """
    // The output and LSE of a group; a query that read nothing: 0 and -inf, or what its sink says.
    static void finish(const Call &call, const Scratch &s, const Group &g, element *out, float *lse,
                       long count)
    {
        const double unit = $unit;  // of scores
        for (long i = 0; i < count; i++) {
            double sum = ((float *)g.sum)[i], base = ((float *)g.base)[i], fade = 1;$sink
            float over = sum == 0 ? 0 : (float)(fade / sum);
            float row[DV];
            for (long d = 0; d < DV; d++) row[d] = g.out[d * G + i] * over;
            narrowed(out + i * DV, row, DV);
            lse[i] = sum == 0 ? -__builtin_inff() : (float)(base * unit + __builtin_log(sum));
        }
    }
"""

WALK_FULL = """
    if (run[2] == 0) {
        for (long j = start; j < stop; j += STEP)
            step(call, s, k, v, j, stop - j < STEP ? stop - j : STEP, rows, false);
        continue;
    }
"""

WALK = """
    for (long tile = start; tile < stop; tile += call.tile_k)
        for (long j = 0; j < call.tile_k; j += STEP) {
            long count = call.tile_k - j < STEP ? call.tile_k - j : STEP;
            keep_of(call, s.keep, run[2], base, j, count);$padding
            step(call, s, k, v, tile + j, count, rows, true);
        }
"""

PADDING = """
    for (long x = 0; x < count; x++)
        if (s.keep[x] && !keys[tile + j + x]) s.keep[x] = 0;
"""

MERGE = """
    // Keep what one item of a cut line found.
    static void leave(const Scratch &s, float *part, long rows)
    {
        for (long x = 0; x * G < rows; x++, part += (DV + 2) * G) {
            const Group &g = s.groups[x];
            __builtin_memcpy(part, g.out, sizeof g.out);
            __builtin_memcpy(part + DV * G, g.base, sizeof g.base);
            __builtin_memcpy(part + (DV + 1) * G, g.sum, sizeof g.sum);
        }
    }

    // Put together what all items of a line found, in their order whoever was last.
    static void merge(const Call &call, Scratch &s, const float *parts, long rows)
    {
        const long each = ROWS * (DV + 2);
        for (long x = 0; x * G < rows; x++, parts += (DV + 2) * G) {
            Group &g = s.groups[x];
            for (long n = 0; n < 2; n++) {
                const float *at = parts + n * W, *base = at + DV * G, *sum = base + G;
                g.base[n] = splat(NOTHING);
                for (long c = 0; c < call.cuts; c++)
                    g.base[n] = larger(g.base[n], load(base + c * each));
                g.sum[n] = splat(0);
                for (long d = 0; d < DV; d++) store(g.out + d * G + n * W, splat(0));
                for (long c = 0; c < call.cuts; c++) {
                    vec less = load(base + c * each) - g.base[n];  // NaN where nothing was read
                    vec fade = pick(less <= 0.0f, exp2_of(less * $to_base_2), splat(0));
                    g.sum[n] += load(sum + c * each) * fade;
                    for (long d = 0; d < DV; d++) {
                        float *out = g.out + d * G + n * W;
                        store(out, load(out) + load(at + c * each + d * G) * fade);
                    }
                }
            }
        }
    }
"""

ITEM = """
    struct Place { long unit, rank, part, cut, cuts, row; };

    // Which item is number `index`: first the cut lines of all heads, then head by head, so that
    // keys stay near, the longest lines first.
    static Place place(const Call &call, long index)
    {
        long split = (call.tile_q + ROWS - 1) / ROWS, units = call.batch * call.heads;
        long heavy = units * call.heavy * split * call.cuts, of = call.heavy, cuts = call.cuts;
        bool cut = index < heavy;
        if (!cut) index -= heavy, of = call.lines - call.heavy, cuts = 1;
        long row = index / cuts, rank = row / split % of + (cut ? 0 : call.heavy);
        return {row / split / of, rank, row % split, index % cuts, cuts, row};
    }

    // Item `index`: up to 64 queries of one head, of a cut line a share of its tiles.
    static void item(const Call &call, char *memory, long index)
    {
        Scratch &s = *(Scratch *)memory;
        Place at = place(call, index);
        long batch = at.unit / call.heads, head = at.unit % call.heads;
        long sequence = call.sequences > 1 ? batch : 0;
        long pattern = call.head_pattern[sequence * call.listed + head % call.listed];
        long line = call.order[pattern * call.lines + at.rank], base = at.part * ROWS;
        long first = line * call.tile_q + base, rows = call.tile_q - base;
        rows = rows < ROWS ? rows : ROWS;
        rows = rows < call.n - first ? rows : call.n - first;
        if (rows <= 0) return;
        long key_head = head / (call.heads / call.key_heads);
        const element *q = (const element *)call.q, *k = (const element *)call.k;
        const element *v = (const element *)call.v;
        q += batch * call.q_batch + head * call.q_head;
        k += batch * call.k_batch + key_head * call.k_head;
        v += batch * call.v_batch + key_head * call.v_head;$keys
        s.head = head;
        for (long x = 0; x * G < rows; x++)
            open_group(call, s.groups[x], q, first + x * G, rows - x * G);
        const int32_t *run = call.run + 3 * call.ptr[pattern * call.lines + line];
        const int32_t *end = call.run + 3 * call.ptr[pattern * call.lines + line + 1];
        long tiles = 0;
        for (const int32_t *r = run; r < end; r += 3) tiles += r[1];
        long skip = tiles * at.cut / at.cuts, left = tiles * (at.cut + 1) / at.cuts - skip;
        for (; run < end && left > 0; run += 3) {
            if (skip >= run[1]) {
                skip -= run[1];
                continue;
            }
            long count = run[1] - skip < left ? run[1] - skip : left;
            long start = (run[0] + skip) * call.tile_k, stop = start + count * call.tile_k;
            skip = 0;
            left -= count;
            $walk
        }
        if (at.cuts > 1) {
            float *parts = call.parts + at.row * at.cuts * ROWS * (DV + 2);
            leave(s, parts + at.cut * ROWS * (DV + 2), rows);
            if (__atomic_add_fetch(call.done + at.row, 1, __ATOMIC_ACQ_REL) < at.cuts) return;
            merge(call, s, parts, rows);
        }
        for (long x = 0; x * G < rows; x++) {
            long row = at.unit * call.n + first + x * G, some = rows - x * G;
            finish(call, s, s.groups[x], (element *)call.out + row * DV, call.lse + row,
                   some < G ? some : G);
        }
    }

    extern "C" int patterncc_forward(const Call *call)
    {
        return share(*call, sizeof(Scratch), item);
    }
"""
