"""Which sparse stack to train: python examples/choose_a_stack.py [OUTPUT.html]

Four candidates, one question: what does the last token get from the first half of its context, and
at what cost?  Reach says whether anything can arrive, influence how much of it does.
"""

import sys

import patterncc as pc

N, LAYERS = 65536, 24
near = pc.causal() & pc.window(1023)
CANDIDATES = {
    "windows": pc.Stack([near] * LAYERS),
    "windows and sinks": pc.Stack([pc.causal() & (pc.window(1019) | pc.sink(4))] * LAYERS),
    "1 full layer in 12": pc.Stack(([near] * 11 + [pc.causal()]) * 2),
    "dilated heads": pc.Stack([pc.heads([near] * 6 + [pc.dilated(1023 * 32, 0, 32)] * 2)] * LAYERS),
}


def main(output: str | None = None) -> dict[str, tuple[int | None, int | None]]:
    """Print the comparison; for each stack its depth to full and half the influence's distance."""
    found = pc.compare(CANDIDATES, N)
    print(found)
    for c in found.candidates:
        far = c.report.influence
        arrives = float(far.row[: N // 2].sum()) if far else 0.0
        print(f"{c.name}: {arrives:.2%} of the last token's influence is from the first half")
    if output:
        print(f"wrote {found.save(output)}")
    return {c.name: (c.report.depth_to_full, c.q50) for c in found.candidates}


if __name__ == "__main__":
    main(*sys.argv[1:2])
