"""Declare a topology and see what it lets through: python examples/declare_and_analyze.py"""

import patterncc as pc


def main() -> None:
    """Compare five local layers and one full layer with local layers alone, at 65,536 tokens."""
    n = 65536
    local = pc.causal() & (pc.window(1023) | pc.sink(4))
    for name, stack in (
        ("local layers only", pc.Stack([local] * 24)),
        ("every sixth layer full", pc.Stack(([local] * 5 + [pc.causal()]) * 4)),
    ):
        report = pc.analyze(stack, n)
        print(f"{name}: full at {report.depth_to_full} layers")
        print(f"  after 24 layers {report.reach[24].share:.1%} of all causal pairs are connected")
        print(f"  ({report.reach[24].badge}, by the {report.reach[24].engine} engine)")


if __name__ == "__main__":
    main()
