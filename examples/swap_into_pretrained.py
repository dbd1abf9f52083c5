"""A pattern in a pretrained model: python examples/swap_into_pretrained.py

The model is glassllm's, a real one of 0.85 million parameters that installs from the package index.

    27 tokens of prompt; dense attention goes on:
      the road, and the Queen was down to the table, and she found herself to the Queen, ...
    window of 32 and 4 sinks, 17 of 40 tokens the same:
      the road, and the Queen was down to the table, and she was down the conversation, ...
    window of 16 and 4 sinks, 35 of 40 tokens the same:
      the road, and the Queen was down to the table, and she found herself to the Queen, ...
    window of 8 and 4 sinks, 0 of 40 tokens the same:
      the conversation, and the Queen was downing to see the Queen's-puthog, ...
    taken out again, the model writes what it wrote before

Greedy text parts at the first near tie, and a wider window may part earlier by chance: judge a
pattern by `patterncc fidelity`, which averages over text, not by one continuation.
"""

import torch

import patterncc as pc
from patterncc.fidelity import open_model

PROMPT = "Alice was beginning to get very tired of sitting by her sister on the bank, and of"


def main() -> dict[str, int]:
    """Print what three windows change in what the model writes; returns tokens until it differs."""
    opened = open_model("glassllm")  # any transformers model will do
    model, tokens = opened.model, torch.tensor([opened.encode(PROMPT)])

    def write() -> list[int]:
        out = model.generate(tokens, max_new_tokens=40, do_sample=False, pad_token_id=0)
        return out[0, tokens.shape[1] :].tolist()

    dense = write()
    print(f"{tokens.shape[1]} tokens of prompt; dense attention goes on:\n  {said(dense)}")
    same = {}
    for window in (32, 16, 8):
        pattern = pc.causal() & (pc.window(window) | pc.sink(4))
        with pc.hf.apply(model, pattern):  # or: handle = pc.hf.apply(...); handle.undo()
            sparse = write()
        pairs = zip(dense, sparse, strict=True)
        first = next((k for k, (a, b) in enumerate(pairs) if a != b), len(dense))
        same[str(window)] = first
        print(f"window of {window} and 4 sinks, {first} of {len(dense)} tokens the same:")
        print(f"  {said(sparse)}")
    assert write() == dense, "undone without a trace"
    print("taken out again, the model writes what it wrote before")
    return same


def said(ids: list[int]) -> str:
    """glassllm's tokens as text."""
    import glassllm

    _, tokenizer = glassllm.load_pretrained("en")
    return tokenizer.decode(ids).replace("\n", " ").strip()


if __name__ == "__main__":
    main()
