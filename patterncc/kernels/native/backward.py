"""C++ text of the backward pass: one walk over the tiles, column by column, five products a tile.

An item is a stretch of tile columns of one key head.  A column's keys are packed once, and its
gradients stay with the thread while the tiles that read it pass by, up to `ROWS` queries at a time
(of several small tiles, of every query head of the group in turn):

    S = Q K^T    dP = dO V^T    P = exp(S - LSE)    dS = P * (dP - delta)
    dV += P^T dO    dK += dS^T Q    dQ += dS K

Items share queries, so each adds dQ to rows of its own, and `gather` sums those in the order of the
items: which items there are depends on the layout and the heads alone (`parts`), so the result is
the same bit by bit for any number of threads.

Matrices of a step stand in *panels*: columns in groups of `G` (a last one of `W` where that is
enough), each `[rows][G]` in fp32.  Every operand of every product is then read side by side, with
keys along the lanes of S and P, and columns of the head along those of the gradients.  Blocks of
`R` queries and `G` keys which no query reads are left out of all five products.
"""

from __future__ import annotations

from patterncc.kernels.emit.pieces import join
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.native import backward_score as options
from patterncc.kernels.native.backward_step import after, step
from patterncc.kernels.native.call import INPUTS, LAYOUT, SCORE, SHARED, Field, struct_text
from patterncc.kernels.native.micro import micro
from patterncc.kernels.native.plan import NativePlan

PARTS: tuple[Field, ...] = (
    ("units", "const int32_t *"),  # [unit_count, 5]: first and last column, tile row, and a slot
    ("touched_ptr", "const int32_t *"),  # [patterns * unit_count + 1]
    ("touched", "const int32_t *"),  # the tile rows of each unit, ascending
    ("adders_ptr", "const int32_t *"),  # [patterns * rows + 1]
    ("adders", "const int32_t *"),  # the places in `touched` of each tile row, less the pattern's
    ("cut", "const int32_t *"),  # [cut_count, 3]: a column cut in several units, its slots
    ("starts", "const void *"),  # int64 [batch, heads]: where a head's rows of `sums` start
    ("sums", "float *"),  # of dQ, [touched tile rows of all heads, tile_q, padded D]
    ("key_sums", "float *"),  # of dK and dV, [key heads of all sequences, slots, ...]
    ("unit_count", "long"),
    ("cut_count", "long"),
    ("slot_count", "long"),
    ("rows", "long"),  # tile rows of one pattern
)
"""How the work is cut: see `parts.Parts`."""

FIELDS: tuple[Field, ...] = (
    *INPUTS,
    ("out", "const void *"),
    ("grad", "const void *"),
    *((f"{x}_{axis}", "long") for x in ("out", "grad") for axis in ("batch", "head", "row")),
    ("lse", "const float *"),
    ("delta", "float *"),
    ("dq", "void *"),
    ("dk", "void *"),
    ("dv", "void *"),
    ("dslopes", "void *"),
    ("dbias", "void *"),
    *LAYOUT,
    *SCORE,
    *PARTS,
    *SHARED,
)
"""Of the struct that `patterncc_backward` takes.

out, grad: as `q`, with DV columns; out is null where delta is given.  lse and delta are fp32
[batch, heads, n], dq, dk and dv contiguous.  dslopes: double [batch, key_heads, unit_count, group],
or null where not asked for; dbias the same with 2 reach + 1 numbers each.  ptr, run and lines are
those of columns; order is not read.
"""

STEP_KEYS = 128

STATE = """
    enum : long {
        R = $block,       // rows of the micro-kernel's block
        ROWS = 128,  // queries of a step
        KEYS = $step_keys,  // and its keys
        PANELS = KEYS / G,
        PD = (D + W - 1) / W * W,  // columns padded to whole vectors
        PDV = (DV + W - 1) / W * W,
        PIECES = ROWS / 16,  // parts of tiles that a step may hold
    };
    static const ivec LANE = {$lane_bits};

    struct alignas(64) Scratch {
        float kt[D * KEYS], vt[DV * KEYS];  // K^T and V^T, panels of keys
        float k[PD * KEYS], dk[PD * KEYS], dv[PDV * KEYS];
        float q[PD * ROWS], grad[PDV * ROWS];
        float p[ROWS * KEYS], ds[ROWS * KEYS];
        float lse[ROWS], delta[ROWS];
        uint32_t keep[ROWS][KEYS / 32];     // which keys a query reads
        uint32_t shown[KEYS / 32];          // which keys may be read at all
        uint8_t state[PANELS][ROWS / R];    // of a block: 0 nobody reads it, 1 all do, 2 masked
        float *dq[PIECES];                  // where the rows of a piece add up
        long count, panels;                 // rows so far; panels of the column$options
    };

    enum : uint8_t { NONE, ALL, SOME };
"""

ITEM = """
    // Which query head of which sequence, and its pattern.
    struct Head {
        long batch, head, row, pattern;
    };

    INLINE Head head_of(const Call &call, long batch, long head)
    {
        long sequence = call.sequences > 1 ? batch : 0;
        long pattern = call.head_pattern[sequence * call.listed + head % call.listed];
        return {batch, head, batch * call.heads + head, pattern};
    }

    // Where the rows of a head which unit `u` touches add up; they stand in the order of tiles.
    INLINE float *sums_of(const Call &call, const Head &h, long u)
    {
        const int32_t *ptr = call.touched_ptr + h.pattern * call.unit_count;
        long slot = ((const int64_t *)call.starts)[h.row] + ptr[u] - ptr[0];
        return call.sums + slot * call.tile_q * PD;
    }

    // Rows `base` .. of a tile join the step.
    static void gather_rows(const Call &call, Scratch &s, const Head &h, long tile, long base,
                            long each, float *sums)
    {
        long first = tile * call.tile_q + base, left = call.n - first;
        long rows = left < each ? left : each;
        const element *q = (const element *)call.q + h.batch * call.q_batch + h.head * call.q_head
                           + first * call.q_row;
        const element *grad = (const element *)call.grad + h.batch * call.grad_batch
                              + h.head * call.grad_head + first * call.grad_row;
        pack<D, PD>(s.q, ROWS, s.count, q, call.q_row, rows, each);
        pack<DV, PDV>(s.grad, ROWS, s.count, grad, call.grad_row, rows, each);
        for (long i = 0; i < each; i++) {  // of a row that is not there, or reads nothing, P is 0
            float lse = i < rows ? call.lse[h.row * call.n + first + i] : -__builtin_inff();
            s.lse[s.count + i] = lse == -__builtin_inff() ? __builtin_inff() : lse;
            s.delta[s.count + i] = i < rows ? call.delta[h.row * call.n + first + i] : 0;
        }$positions
        s.dq[s.count / each] = sums + base * PD;
    }

    // One column of keys, `width` from `first` on within tile column `column`, and all its readers.
    static void read_column(const Call &call, Scratch &s, const int32_t *unit, long u, long batch,
                            long key_head, long column, long first)
    {
        long key = column * call.tile_k + first, width = call.tile_k < KEYS ? call.tile_k : KEYS;
        long keys = call.n_k - key < width ? call.n_k - key : width;
        const element *k = (const element *)call.k + batch * call.k_batch + key_head * call.k_head;
        const element *v = (const element *)call.v + batch * call.v_batch + key_head * call.v_head;
        s.panels = (width + G - 1) / G;
        pack_turned<D>(s.kt, k + key * call.k_row, call.k_row, keys, s.panels);
        pack_turned<DV>(s.vt, v + key * call.v_row, call.v_row, keys, s.panels);
        pack<D, PD>(s.k, KEYS, 0, k + key * call.k_row, call.k_row, keys, KEYS);
        for (long x = 0; x < PD * KEYS; x++)  // 0 * NaN must not reach queries that do not read it
            s.k[x] = s.k[x] - s.k[x] == 0 ? s.k[x] : 0;
        for (long x = 0; x < PD * KEYS; x++) s.dk[x] = 0;
        for (long x = 0; x < PDV * KEYS; x++) s.dv[x] = 0;
        for (long w = 0; w < KEYS / 32; w++) s.shown[w] = ~0u;$key_options
        long each = call.tile_q < ROWS ? call.tile_q : ROWS, group = call.heads / call.key_heads;
        for (long member = 0; member < group; member++) {
            Head h = head_of(call, batch, key_head * group + member);$head_options
            const int32_t *row = call.touched + call.touched_ptr[h.pattern * call.unit_count + u];
            const int32_t *run = call.run + 3 * call.ptr[h.pattern * call.lines + column];
            const int32_t *end = call.run + 3 * call.ptr[h.pattern * call.lines + column + 1];
            float *sums = sums_of(call, h, u);
            for (; run < end; run += 3)
                for (long tile = run[0]; tile < run[0] + run[1]; tile++) {
                    if (tile < unit[2] || tile >= unit[3]) continue;
                    for (; *row < tile; row++) sums += call.tile_q * PD;
                    for (long base = 0; base < call.tile_q; base += each) {
                        if (tile * call.tile_q + base >= call.n) break;
                        read_mask(call, s, run[2], base, each, first, width);
                        classify(s, each);
                        gather_rows(call, s, h, tile, base, each, sums);
                        s.count += each;
                        if (s.count + each > ROWS) step(call, s, each);
                    }
                }
            if (s.count) step(call, s, each);
        }
    }

    // The columns of one unit, of one key head.
    static void item(const Call &call, char *memory, long index)
    {
        Scratch &s = *(Scratch *)memory;
        long pairs = call.batch * call.key_heads, u = index / pairs, pair = index % pairs;
        long batch = pair / call.key_heads, key_head = pair % call.key_heads;
        long group = call.heads / call.key_heads;
        const int32_t *unit = call.units + 5 * u;
        for (long member = 0; member < group; member++) {
            Head h = head_of(call, batch, key_head * group + member);
            float *end = sums_of(call, h, u + 1);
            for (float *x = sums_of(call, h, u); x < end; x++) *x = 0;
        }
        s.count = 0;$item_options
        for (long column = unit[0]; column < unit[1]; column++)
            for (long first = 0; first < call.tile_k; first += KEYS) {
                long key = column * call.tile_k + first, left = call.n_k - key;
                if (left <= 0) break;
                read_column(call, s, unit, u, batch, key_head, column, first);
                long width = call.tile_k < KEYS ? call.tile_k : KEYS;
                long keys = left < width ? left : width, row = pair * call.n_k + key;
                if (unit[4] < 0) {
                    unpack<D, PD>((element *)call.dk + row * D, s.dk, KEYS, keys, call.scale);
                    unpack<DV, PDV>((element *)call.dv + row * DV, s.dv, KEYS, keys, 1);
                    continue;
                }
                long steps = (call.tile_k + KEYS - 1) / KEYS;
                long slot = (pair * call.slot_count + unit[4]) * steps + first / KEYS;
                float *to = call.key_sums + slot * KEYS * (PD + PDV);
                for (long x = 0; x < PD * KEYS; x++) to[x] = s.dk[x];
                for (long x = 0; x < PDV * KEYS; x++) to[PD * KEYS + x] = s.dv[x];
            }
    }
"""

GATHER = """
    // delta = rowsum(out * grad) of 64 rows, in fp64: dP - delta may be a small rest of both.
    static void delta_item(const Call &call, char *, long index)
    {
        long each = (call.n + 63) / 64, unit = index / each, first = index % each * 64;
        long batch = unit / call.heads, head = unit % call.heads;
        const element *out =
            (const element *)call.out + batch * call.out_batch + head * call.out_head;
        const element *grad =
            (const element *)call.grad + batch * call.grad_batch + head * call.grad_head;
        float x[DV], y[DV];
        for (long i = first; i < first + 64 && i < call.n; i++) {
            widened(x, out + i * call.out_row, DV);
            widened(y, grad + i * call.grad_row, DV);
            double sum[4] = {};
            for (long c = 0; c < DV; c++) sum[c % 4] += (double)x[c] * y[c];
            call.delta[unit * call.n + i] = (float)(sum[0] + sum[1] + sum[2] + sum[3]);
        }
    }

    // dQ of one tile row: what the units that touch it added, in their order.
    static void query_item(const Call &call, char *memory, long index)
    {
        float *total = ((Scratch *)memory)->q;
        Head h = head_of(call, index / call.rows / call.heads, index / call.rows % call.heads);
        long tile = index % call.rows, each = call.tile_q < ROWS ? call.tile_q : ROWS;
        const int32_t *ptr = call.adders_ptr + h.pattern * call.rows + tile;
        const float *sums = call.sums + ((const int64_t *)call.starts)[h.row] * call.tile_q * PD;
        for (long base = 0; base < call.tile_q; base += each) {
            long first = tile * call.tile_q + base;
            long rows = call.n - first < each ? call.n - first : each;
            if (rows <= 0) break;
            for (long c = 0; c < PD; c += G) {
                long width = PD - c < G ? W : G;
                float *to = total + c * each;
                for (long x = 0; x < each * width; x++) to[x] = 0;
                for (long a = ptr[0]; a < ptr[1]; a++) {
                    const float *from =
                        sums + (call.adders[a] * call.tile_q + base) * PD + c * each;
                    for (long x = 0; x < each * width; x++) to[x] += from[x];
                }
            }
            unpack<D, PD>((element *)call.dq + (h.row * call.n + first) * D, total, each, rows,
                          call.scale);
        }
    }

    // dK and dV of a column that is cut into several units.
    static void key_item(const Call &call, char *memory, long index)
    {
        Scratch &s = *(Scratch *)memory;
        const int32_t *cut = call.cut + 3 * (index % call.cut_count);
        long pair = index / call.cut_count, steps = (call.tile_k + KEYS - 1) / KEYS;
        for (long part = 0; part < steps; part++) {
            long key = cut[0] * call.tile_k + part * KEYS;
            long width = call.tile_k < KEYS ? call.tile_k : KEYS;
            long left = call.n_k - key, row = pair * call.n_k + key;
            long keys = left < width ? left : width;
            if (left <= 0) break;
            for (long x = 0; x < PD * KEYS; x++) s.dk[x] = 0;
            for (long x = 0; x < PDV * KEYS; x++) s.dv[x] = 0;
            for (long slot = cut[1]; slot < cut[1] + cut[2]; slot++) {
                long at = (pair * call.slot_count + slot) * steps + part;
                const float *from = call.key_sums + at * KEYS * (PD + PDV);
                for (long x = 0; x < PD * KEYS; x++) s.dk[x] += from[x];
                for (long x = 0; x < PDV * KEYS; x++) s.dv[x] += from[PD * KEYS + x];
            }
            unpack<D, PD>((element *)call.dk + row * D, s.dk, KEYS, keys, call.scale);
            unpack<DV, PDV>((element *)call.dv + row * DV, s.dv, KEYS, keys, 1);
        }
    }

    extern "C" int patterncc_backward(const Call *given)
    {
        Call call = *given;
        long pairs = call.batch * call.key_heads;
        call.items = call.batch * call.heads * ((call.n + 63) / 64);
        if (call.out && share(call, 64, delta_item)) return 1;
        call.items = pairs * call.unit_count;
        if (share(call, sizeof(Scratch), item)) return 1;
        call.items = pairs * call.cut_count;
        if (share(call, sizeof(Scratch), key_item)) return 1;
        call.items = call.batch * call.heads * call.rows;
        return share(call, sizeof(Scratch), query_item);
    }
"""


def backward(plan: NativePlan) -> str:
    """The whole text of a plan's kernel, without its header comment."""
    block = 4 if plan.lanes == 8 else 8  # 16 registers of AVX2; 32 elsewhere
    bits = ", ".join(f"{1 << lane}" for lane in range(plan.lanes))
    parts = (
        struct_text(FIELDS),
        piece(
            STATE,
            block=block,
            lane_bits=bits,
            step_keys=STEP_KEYS,
            options=after(options.fields(plan), 1),
        ),
        step(plan),
        piece(
            ITEM,
            positions=after(options.of_rows(plan), 1),
            key_options=after(options.of_keys(plan), 1),
            head_options=after(options.of_head(plan), 2),
            item_options=after(options.opening(plan), 1),
        ),
        piece(GATHER),
    )
    return join(micro(plan), *(f"\n{part}" for part in parts if part)) + "\n"
