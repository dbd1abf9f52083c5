"""What all native kernels are made of: vectors, conversions, 2^x and the micro-kernel.

Everything is laid out with *queries along the lanes* of vectors: `G` = 2 * `W` queries are a group,
and a group's tensors are `[row][G]` in fp32, each row two vectors.  So a softmax never reduces
across lanes, K and V are read in place by broadcasts, and no key is ever transposed.

Names that the text defines (W, G, M, D, DV are constants of the plan; M rows fit in registers
beside two vectors each):

    vec, ivec          W floats, W int32
    load(p), iload(p)  a vector from anywhere;  store(p, x), istore(p, x)
    splat(x), isplat(x)  x in every lane
    pick(keep, a, b)   lane by lane keep ? a : b; keep is an ivec of -1 and 0
    larger(a, b), smaller(a, b)  of each lane; NaN where b is NaN
    rounded(x)         x, which the compiler must not fuse with what follows
    exp2_of(x)         2^x for x < 128: relative error below 2e-7, 0 below -126, NaN for NaN
    element            how inputs are stored: float, or uint16_t for bfloat16 and float16
    widened(to, from, count), narrowed(to, from, count)
                       `count` elements to fp32, and back (rounded to nearest even)
    multiply<R, C>(c, depth, a, am, ak, b, bk)
                       vec c[R][C] += sum over k < depth of a[m * am + k * ak] * b[k * bk + n * W]
                       (a: floats to broadcast; b: rows of C vectors, anywhere in memory)
    multiply_pairs<R, C>(c, depth, a, am, ak, b, bk)
                       (plans with `dot`) the same over pairs of bfloat16: a and b are int32_t, each
                       two neighbours along k; depth counts pairs
    paired(x, y)       (dot) two vecs as bfloat16 pairs, x in the low halves: an ivec
    strips<COUNT>(body)  body(rows, first) for row blocks of M, then of COUNT % M;
                       `decltype(rows)::value` is their number at compile time
    stretch(low, high, body)
                       the same over a run-time range: the last block of M overlaps the one before
                       it, ranges shorter than M go row by row: body must be idempotent
    share(call, bytes, work)
                       work(call, scratch, item) for items 0 .. call.items - 1, over call.threads
                       threads that take the next item by an atomic counter, each with `bytes` of
                       scratch memory aligned to 64; gives 0, or 1 if memory ran out

Products of the backward pass in the same terms: S = K Q^T and dP = V dO^T as the forward's (a: rows
of K or V, am = their row stride, ak = 1; b: a group's packed Q^T or dO^T, bk = G); dQ^T += K^T dS
(am = 1, ak = K's row stride; b = dS, bk = G); dK += dS Q (a = dS, am = G, ak = 1; b = rows of Q in
fp32, padded to whole vectors).
"""

from __future__ import annotations

from patterncc.kernels.emit.pieces import join
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.native.plan import NativePlan

TYPES = """
    #include <pthread.h>
    #include <stdint.h>
    #include <stdlib.h>

    #define INLINE static inline __attribute__((always_inline))

    enum : long {
        W = $lanes,    // floats of a vector
        G = 2 * W,  // queries of a group, along the lanes of two vectors
        M = $strip,      // rows that fit in registers beside two vectors each
        D = $head_dim,     // columns of Q and K
        DV = $value_dim,    // columns of V
    };
    typedef float vec __attribute__((vector_size(4 * $lanes)));
    typedef int32_t ivec __attribute__((vector_size(4 * $lanes)));
    typedef uint32_t uvec __attribute__((vector_size(4 * $lanes)));
    typedef float vec_anywhere __attribute__((vector_size(4 * $lanes), aligned(4), may_alias));
    typedef int32_t ivec_anywhere __attribute__((vector_size(4 * $lanes), aligned(4), may_alias));
    typedef $element element;

    static const float NOTHING = -__builtin_inff();  // the score of what is not read
    static const float LOG2E = 1.44269504088896340736f;
    static const double LN2 = 0.69314718055994530942;

    INLINE vec load(const float *p) { return *(const vec_anywhere *)p; }
    INLINE ivec iload(const int32_t *p) { return *(const ivec_anywhere *)p; }
    INLINE void store(float *p, vec x) { *(vec_anywhere *)p = x; }
    INLINE void istore(int32_t *p, ivec x) { *(ivec_anywhere *)p = x; }
    INLINE vec splat(float x) { return x - (vec){}; }
    INLINE ivec isplat(int32_t x) { return x - (ivec){}; }
    INLINE vec pick(ivec keep, vec a, vec b) { return keep ? a : b; }
    INLINE vec larger(vec a, vec b) { return a > b ? a : b; }
    INLINE vec smaller(vec a, vec b) { return a < b ? a : b; }

    // A product as its type holds it: no later sum takes it up unrounded, which for scores of 1e10
    // would be off by hundreds from the same score elsewhere.
    INLINE vec rounded(vec x)
    {
    #if defined(__x86_64__)
        asm("" : "+v"(x));
    #elif defined(__aarch64__)
        asm("" : "+w"(x));
    #else
        asm("" : "+m"(x));
    #endif
        return x;
    }
"""

EXP2 = """
    // 2^x = 2^n 2^f, n the nearest integer, |f| <= 1/2: a minimax polynomial of degree 6 (relative
    // error 2e-9 before rounding), n added to the exponent.  Exactly 0 below -126.
    INLINE vec exp2_of(vec x)
    {
        const float to_integer = 12582912.0f;  // 1.5 * 2^23: the sum has no room for a fraction
        vec shifted = x + to_integer;
        vec f = x - (shifted - to_integer);
        vec p = splat($c6);
        p = p * f + $c5;
        p = p * f + $c4;
        p = p * f + $c3;
        p = p * f + $c2;
        p = p * f + $c1;
        p = p * f + 1.0f;
        vec scaled = (vec)((ivec)p + ((ivec)shifted << 23));
        return x < -126.0f ? splat(0.0f) : scaled;
    }
"""

MULTIPLY = """
    // c[m][n] += sum over k of a[m, k] b[k, n]: a is broadcast, c stays in registers.
    template <long R, long C>
    INLINE void multiply(vec (&c)[R][C], long depth, const float *a, long am, long ak,
                         const float *b, long bk)
    {
        for (long k = 0; k < depth; k++, a += ak, b += bk) {
            vec row[C];
            for (long n = 0; n < C; n++) row[n] = load(b + n * W);
            for (long m = 0; m < R; m++) {
                vec x = splat(a[m * am]);
                for (long n = 0; n < C; n++) c[m][n] += x * row[n];
            }
        }
    }
"""

DOT = """
    // The same over pairs of bfloat16, two neighbours along k in each int32.
    template <long R, long C>
    INLINE void multiply_pairs(vec (&c)[R][C], long depth, const int32_t *a, long am, long ak,
                               const int32_t *b, long bk)
    {
        for (long k = 0; k < depth; k++, a += ak, b += bk) {
            ivec row[C];
            for (long n = 0; n < C; n++) row[n] = iload(b + n * W);
            for (long m = 0; m < R; m++)
                for (long n = 0; n < C; n++)
                    asm("vdpbf16ps %2%{1to16%}, %1, %0"
                        : "+v"(c[m][n]) : "v"(row[n]), "m"(a[m * am]));
        }
    }

    // Two vectors as pairs, x in the low halves; halves round away from zero, NaN stays NaN.
    INLINE ivec paired(vec x, vec y)
    {
        uvec low = ((uvec)x + 0x8000u) >> 16, high = ((uvec)y + 0x8000u) & 0xffff0000u;
        return (ivec)(low | high);
    }
"""

STRIPS = """
    template <long R> struct rows_of { enum : long { value = R }; };

    template <long COUNT, class Body> INLINE void strips(Body body)
    {
        for (long row = 0; row + M <= COUNT; row += M) body(rows_of<M>(), row);
        if constexpr (COUNT % M != 0) body(rows_of<COUNT % M>(), COUNT - COUNT % M);
    }

    // The last block overlaps the one before it, so body must be idempotent.
    template <class Body> INLINE void stretch(long low, long high, Body body)
    {
        long row = low;
        for (; row + M <= high; row += M) body(rows_of<M>(), row);
        if (row < high && high - low >= M) body(rows_of<M>(), high - M);
        else for (; row < high; row++) body(rows_of<1>(), row);
    }
"""

FLOAT32 = """
    INLINE void widened(float *to, const element *from, long count)
    {
        for (long x = 0; x < count; x++) to[x] = from[x];
    }

    INLINE void narrowed(element *to, const float *from, long count)
    {
        for (long x = 0; x < count; x++) to[x] = from[x];
    }
"""

BFLOAT16 = """
    INLINE void widened(float *to, const element *from, long count)
    {
        uint32_t *bits = (uint32_t *)to;
        for (long x = 0; x < count; x++) bits[x] = (uint32_t)from[x] << 16;
    }

    INLINE void narrowed(element *to, const float *from, long count)
    {
        for (long x = 0; x < count; x++) {
            uint32_t bits;
            __builtin_memcpy(&bits, from + x, 4);
            uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
            to[x] = from[x] != from[x] ? 0x7fc0 : rounded;
        }
    }
"""

FLOAT16 = """
    struct halves { element x[W]; };

    INLINE void widened(float *to, const element *from, long count)
    {
        long x = 0;
    #ifdef __F16C__
        for (; x + W <= count; x += W) {
            vec y;
            asm("vcvtph2ps %1, %0" : "=v"(y) : "m"(*(const halves *)(from + x)));
            store(to + x, y);
        }
    #endif
        for (; x < count; x++) to[x] = (float)from[x];
    }

    INLINE void narrowed(element *to, const float *from, long count)
    {
        for (long x = 0; x < count; x++) to[x] = (element)from[x];
    }
"""

SHARE = """
    // Items over threads: each takes the next one when it is done, so none waits for a heavy row.
    template <class Call> struct Shared {
        const Call *call;
        void (*work)(const Call &, char *, long);
        long bytes, next;
        int failed;
    };

    template <class Call> static void take_items(void *with)
    {
        Shared<Call> *s = (Shared<Call> *)with;
        void *scratch = nullptr;
        if (posix_memalign(&scratch, 64, s->bytes)) {
            __atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
            return;
        }
        for (;;) {
            long item = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
            if (item >= s->call->items) break;
            s->work(*s->call, (char *)scratch, item);
        }
        free(scratch);
    }

    template <class Call> static void *on_thread(void *with)
    {
        take_items<Call>(with);
        return nullptr;
    }

    template <class Call>
    static int share(const Call &call, long bytes, void (*work)(const Call &, char *, long))
    {
        Shared<Call> s = {&call, work, bytes, 0, 0};
        long threads = call.threads < call.items ? call.threads : call.items;
        if (threads > 1 && call.team) {  // the threads that torch itself computes with
            call.team(take_items<Call>, &s, (unsigned)threads, 0);
            return s.failed;
        }
        pthread_t *others = (pthread_t *)calloc(threads, sizeof(pthread_t));
        long started = 0;
        while (others && started + 1 < threads &&
               !pthread_create(others + started, nullptr, on_thread<Call>, &s))
            started++;
        take_items<Call>(&s);  // all items are done even if no other thread could start
        while (started > 0) pthread_join(others[--started], nullptr);
        free(others);
        return s.failed;
    }
"""

# of 2^f = 1 + c1 f + ... on [-1/2, 1/2]: reweighted least squares of the relative error
EXP2_COEFFICIENTS = (
    1.0,
    0.693147182,
    0.240226477,
    0.0555033237,
    0.00961843692,
    0.00133988739,
    0.000153533620,
)


def micro(plan: NativePlan) -> str:
    """The text that every kernel of a plan starts with, after its header comment."""
    elements = {"float32": "float", "bfloat16": "uint16_t", "float16": "_Float16"}
    converting = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
    names = {
        "lanes": plan.lanes,
        "strip": plan.strip,
        "head_dim": plan.head_dim,
        "value_dim": plan.value_dim,
        "element": elements[plan.dtype],
    }
    powers = {f"c{k}": f"{c:.9g}f" for k, c in enumerate(EXP2_COEFFICIENTS)}
    parts = [
        piece(TYPES, **names),
        piece(EXP2, **powers),
        piece(MULTIPLY),
        piece(DOT) if plan.dot else "",
        piece(STRIPS),
        piece(converting[plan.dtype]),
        piece(SHARE),
    ]
    return join(*(f"{p}\n" for p in parts if p)).rstrip("\n")
