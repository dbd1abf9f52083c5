"""From a model's config to what its layers reach and cost: python examples/read_a_config.py

A config.json says who may read whom in every layer, and nothing else is needed: no weights, no
download.  Here a model in the manner of gpt-oss: every other layer sees 128 tokens.

    gpt-oss-like: Stack of 24 layers
      0, 2, 4, ...: causal() & window(127)
      1, 3, 5, ...: causal()

        tokens  full at   FLOPs   KV read
        4,096        2   53.1%    51.6%
       65,536        2   50.2%    50.1%
    1,048,576        2   50.0%    50.0%

    without the full layers 24 layers reach 3,048 tokens back: 4.6% of the pairs at 131,072 tokens
"""

import json
import tempfile
from pathlib import Path

import patterncc as pc

CONFIG = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
}


def main() -> int | None:
    """Print reach and cost at three lengths; returns the depth to full at the longest."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(CONFIG))
        stack = pc.Stack.from_hf(file)  # a dict does as well
    print(f"gpt-oss-like: Stack of {len(stack)} layers")
    for pattern in stack.patterns:
        where = [str(l) for l in range(len(stack)) if stack.layer(l) == pattern]
        print(f"  {', '.join(where[:3])}, ...: {pattern}")

    print(f"\n{'tokens':>9}  full at   FLOPs   KV read")
    for n in (4096, 65536, 1048576):
        report = pc.analyze(stack, n)
        cost = report.to_json()["cost_total"]
        print(
            f"{n:>9,}  {report.depth_to_full:>7}  {cost['flops_share']:>6.1%}   "
            f"{cost['kv_share']:>6.1%}"
        )
    depth = report.depth_to_full

    local = pc.Stack([pc.causal() & pc.window(127)] * 24)
    report = pc.analyze(local, 131072)
    print(
        f"\nwithout the full layers 24 layers reach {24 * 127:,} tokens back: "
        f"{report.reach[24].share:.1%} of the pairs at 131,072 tokens"
    )
    return depth


if __name__ == "__main__":
    main()
