"""C++ text of one step of the backward pass: queries and keys in panels, masks, five products.

`backward` says what a step is and where it stands.
"""

from __future__ import annotations

from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.native import backward_score as options
from patterncc.kernels.native.plan import NativePlan

PANELS = """
    // `rows` rows of one panel, COUNT of its WIDTH columns, then zeros up to `full` rows.
    template <long COUNT, long WIDTH>
    INLINE void pack_panel(float *to, const element *from, long stride, long rows, long full)
    {
        for (long i = 0; i < rows; i++, to += WIDTH, from += stride) {
            widened(to, from, COUNT);
            for (long x = COUNT; x < WIDTH; x++) to[x] = 0;
        }
        for (long x = 0; x < (full - rows) * WIDTH; x++) to[x] = 0;
    }

    // Rows as panels of `total` rows, from row `at` on; zeros up to `full` rows.
    template <long COUNT, long PADDED>
    static void pack(float *panels, long total, long at, const element *from, long stride,
                     long rows, long full)
    {
        constexpr long WHOLE = COUNT / G * G, REST = PADDED - WHOLE;
        for (long c = 0; c < WHOLE; c += G)
            pack_panel<G, G>(panels + c * total + at * G, from + c, stride, rows, full);
        if constexpr (REST != 0)
            pack_panel<COUNT - WHOLE, REST>(panels + WHOLE * total + at * REST, from + WHOLE,
                                            stride, rows, full);
    }

    // Keys along the lanes: [panel][column][G].
    template <long COUNT>
    static void pack_turned(float *to, const element *from, long stride, long rows, long panels)
    {
        float row[COUNT];
        for (long j = 0; j < panels * G; j++) {
            if (j < rows) widened(row, from + j * stride, COUNT);
            float *lane = to + j / G * COUNT * G + j % G;
            for (long c = 0; c < COUNT; c++) lane[c * G] = j < rows ? row[c] : 0;
        }
    }

    // Rows of panels, scaled, as they leave.
    template <long COUNT, long PADDED>
    static void unpack(element *to, const float *panels, long total, long rows, float scale)
    {
        float row[PADDED];
        for (long i = 0; i < rows; i++, to += COUNT) {
            for (long c = 0; c < PADDED; c += G) {
                long width = PADDED - c < G ? W : G;
                const float *from = panels + c * total + i * width;
                for (long x = 0; x < width; x++) row[c + x] = from[x] * scale;
            }
            narrowed(to, row, COUNT);
        }
    }
"""

KEEP = """
    // Bits low .. high of the row's keys, cut to those of the step.
    INLINE void set_bits(uint32_t *keep, long low, long high)
    {
        for (long w = 0; w < KEYS / 32; w++) {
            long from = low - 32 * w, to = high - 32 * w;
            if (from < 0) from = 0;
            if (to > 32) to = 32;
            if (from < to) keep[w] |= (uint32_t)((1ull << to) - (1ull << from));
        }
    }

    // Who reads what in `rows` rows of a tile from row `base` on, `width` keys from `first` on.
    static void read_mask(const Call &call, Scratch &s, long word, long base, long rows, long first,
                          long width)
    {
        uint32_t (*keep)[KEYS / 32] = s.keep + s.count;
        uint32_t every[KEYS / 32] = {};
        if (word == 0) set_bits(every, 0, width);
        for (long i = 0; i < rows; i++)
            for (long w = 0; w < KEYS / 32; w++) keep[i][w] = every[w];
        if (word > call.zone_count) {
            long line = (word - 1 - call.zone_count) * call.tile_q + base;
            for (long i = 0; i < rows; i++)
                for (long w = 0; w * 32 < width; w++)
                    keep[i][w] = call.bits[(line + i) * call.words + first / 32 + w];
        } else if (word > 0) {
            const int32_t *zone = call.zones + (word - 1) * 24;
            for (long slot = 0; slot < 4 && zone[0] < zone[1]; slot++, zone += 6) {
                long end = zone[1] < base + rows ? zone[1] : base + rows;
                for (long i = zone[0] > base ? zone[0] : base; i < end; i++) {
                    long low = zone[2] > i + zone[4] ? zone[2] : i + zone[4];
                    long high = zone[3] < i + zone[5] ? zone[3] : i + zone[5];
                    low = low > first ? low - first : 0;
                    high = high - first < width ? high - first : width;
                    if (low < high) set_bits(keep[i - base], low, high);
                }
            }
        }
    }

    // What each block of R queries and G keys holds.
    static void classify(Scratch &s, long rows)
    {
        const uint32_t whole = (uint32_t)((1ull << G) - 1);
        for (long panel = 0; panel < s.panels; panel++) {
            long w = panel * G / 32, shift = panel * G % 32;
            for (long i = s.count; i < s.count + rows; i += R) {
                uint32_t any = 0, all = ~0u;
                for (long m = 0; m < R; m++) {
                    uint32_t keep = s.keep[i + m][w] & s.shown[w];
                    s.keep[i + m][w] = keep;
                    any |= keep >> shift;
                    all &= keep >> shift;
                }
                s.state[panel][i / R] = (all & whole) == whole ? ALL : any & whole ? SOME : NONE;
            }
        }
    }
"""

EXP = """
    // e^x = 2^n e^f, n the integer nearest to x / ln 2.  ln 2 is in two parts, the first times n is
    // exact, so f keeps what 2^(x / ln 2) would lose where x / ln 2 is rounded.  A minimax
    // polynomial (relative error 3e-9 before rounding); exactly 0 below -87.
    INLINE vec exp_of(vec x)
    {
        const float to_integer = 12582912.0f;  // 1.5 * 2^23: the sum has no room for a fraction
        vec shifted = x * LOG2E + to_integer, n = shifted - to_integer;
        vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
        vec p = splat(0.00138131448f);
        p = p * f + 0.00836941879f;
        p = p * f + 0.041668456f;
        p = p * f + 0.166665152f;
        p = p * f + 0.49999994f;
        p = p * (f * f) + f + 1.0f;
        vec scaled = (vec)((ivec)p + ((ivec)shifted << 23));
        return x < -87.0f ? splat(0.0f) : scaled;
    }
"""

PRODUCTS = """
    // c += rows i .. of panels times packed columns of keys.
    template <long COUNT, long PADDED>
    INLINE void along_columns(vec (&c)[R][2], const float *rows, long i, const float *turned)
    {
        for (long d = 0; d < COUNT; d += G) {
            long width = PADDED - d < G ? W : G, depth = COUNT - d < G ? COUNT - d : G;
            multiply<R, 2>(c, depth, rows + d * ROWS + i * width, width, 1, turned + d * G, G);
        }
    }

    // S, P, dP and dS of one block.
    template <bool MASKED>
    static void scores(const Call &call, Scratch &s, long panel, long i, long each)
    {
        float *p = s.p + (panel * ROWS + i) * G, *ds = s.ds + (panel * ROWS + i) * G;
        vec c[R][2] = {}, dp[R][2] = {};
        along_columns<D, PD>(c, s.q, i, s.kt + panel * D * G);
        for (long m = 0; m < R; m++) {
            uint32_t keep = MASKED ? s.keep[i + m][panel * G / 32] >> panel * G % 32 : 0;
            for (long n = 0; n < 2; n++) {
                vec x = rounded(c[m][n] * call.scale);$scores
                x = exp_of(smaller(splat(0), x - s.lse[i + m]));  // of large scores LSE is coarse
                if (MASKED) x = pick((isplat(keep >> n * W) & LANE) != 0, x, splat(0));
                store(p + m * G + n * W, x);
            }
        }
        along_columns<DV, PDV>(dp, s.grad, i, s.vt + panel * DV * G);
        for (long m = 0; m < R; m++)
            for (long n = 0; n < 2; n++) {
                vec x = load(p + m * G + n * W);  // where it is 0, dP may be anything
                vec d = pick(x == 0, splat(0), x * (dp[m][n] - s.delta[i + m]));$d_scores
                store(ds + m * G + n * W, d);
            }
    }

    // sums [keys of a panel][C vectors] += A^T B over the blocks of queries that read the panel.
    template <long C>
    static void add_to_keys(float *sums, const float *a, const float *b, const uint8_t *state,
                            long strips)
    {
        for (long j = 0; j < G; j += R) {
            vec c[R][C] = {};
            for (long x = 0; x < strips; x++) {
                long first = x;
                while (x < strips && state[x] != NONE) x++;
                multiply<R, C>(c, (x - first) * R, a + first * R * G + j, 1, G,
                               b + first * R * C * W, C * W);
            }
            for (long m = 0; m < R; m++)
                for (long n = 0; n < C; n++) {
                    float *to = sums + (j + m) * C * W + n * W;
                    store(to, load(to) + c[m][n]);
                }
        }
    }

    // dV += P^T dO, or dK += dS^T Q
    template <long PADDED>
    static void of_keys(float *sums, const float *a, const float *b, const Scratch &s)
    {
        for (long panel = 0; panel < s.panels; panel++)
            for (long d = 0; d < PADDED; d += G) {
                const float *from = a + panel * ROWS * G;
                if (PADDED - d < G)
                    add_to_keys<1>(sums + d * KEYS + panel * G * W, from, b + d * ROWS,
                                   s.state[panel], s.count / R);
                else
                    add_to_keys<2>(sums + d * KEYS + panel * G * G, from, b + d * ROWS,
                                   s.state[panel], s.count / R);
            }
    }

    // R rows of dQ += dS K over the panels that they read.
    template <long C>
    INLINE void add_to_queries(float *sums, const Scratch &s, const float *k, long i)
    {
        vec c[R][C] = {};
        for (long panel = 0; panel < s.panels; panel++)
            if (s.state[panel][i / R] != NONE)
                multiply<R, C>(c, G, s.ds + (panel * ROWS + i) * G, G, 1, k + panel * G * C * W,
                               C * W);
        for (long m = 0; m < R; m++)
            for (long n = 0; n < C; n++) {
                float *to = sums + m * C * W + n * W;
                store(to, load(to) + c[m][n]);
            }
    }

    static void of_queries(const Scratch &s, long each)
    {
        for (long d = 0; d < PD; d += G)
            for (long i = 0; i < s.count; i += R) {
                float *sums = s.dq[i / each] + d * each;
                if (PD - d < G) add_to_queries<1>(sums + i % each * W, s, s.k + d * KEYS, i);
                else add_to_queries<2>(sums + i % each * G, s, s.k + d * KEYS, i);
            }
    }

    // All that the rows gathered so far add; `each`: rows of one piece of them.
    static void step(const Call &call, Scratch &s, long each)
    {
        for (long panel = 0; panel < s.panels; panel++)
            for (long i = 0; i < s.count; i += R) {
                uint8_t state = s.state[panel][i / R];
                if (state == ALL) scores<false>(call, s, panel, i, each);
                else if (state == SOME) scores<true>(call, s, panel, i, each);
            }
        of_keys<PDV>(s.dv, s.p, s.grad, s);
        of_keys<PD>(s.dk, s.ds, s.q, s);
        of_queries(s, each);$after_step
        s.count = 0;
    }
"""


def step(plan: NativePlan) -> str:
    """Functions that pack, mask and multiply."""
    products = piece(
        PRODUCTS,
        scores=after(options.scores(plan), 4),
        d_scores=after(options.d_scores(plan), 3),
        after_step=after(options.after_step(plan), 1),
    )
    tools = options.tools(plan)
    texts = piece(PANELS), piece(KEEP), tools, piece(EXP), products
    return "\n\n".join(text for text in texts if text)


def after(lines: str, levels: int) -> str:
    """Lines that follow one in a piece, at its depth; none leave no trace."""
    return "\n" + indented(lines, levels) if lines else ""
