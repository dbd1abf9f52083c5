"""Generate through a cache that forgets: python examples/decode_with_eviction.py

The model is glassllm's, a real one that installs from the package index; its patterns are a window
of 24 tokens and 4 sinks in three layers, and all earlier tokens in the last.

    90 tokens after 27, the same as through a full cache
      102,912 bytes of buffers, of 237,568 that all keys take
      layer 0 holds 0-3, 92-115, layer 3 0-115
    tokens  bytes of keys that are held (#) and that are not (.)
        27  ############ 55,296 of 55,296
        47  ##############...... 67,072 of 96,256
        67  ################............. 77,312 of 137,216
        87  ##################.................... 87,552 of 178,176
       107  #####################......................... 97,792 of 219,136

Only the last layer's cache still grows; the others' stand at 28 keys a head.
"""

import torch
from transformers import DynamicCache

import patterncc as pc
from patterncc.fidelity import open_model

PROMPT = "Alice was beginning to get very tired of sitting by her sister on the bank, and of"
NEW = 90
WIDTH = 50  # columns of the picture


def main() -> dict[str, int]:
    """Print the bytes of both caches, step by step; returns those at the end."""
    opened = open_model("glassllm")  # any transformers model will do
    model, prompt = opened.model, torch.tensor([opened.encode(PROMPT)])
    local = pc.causal() & (pc.window(23) | pc.sink(4))
    most = prompt.shape[1] + NEW

    with pc.hf.apply(model, pc.Stack([local, local, local, pc.causal()])):
        cache = pc.hf.EvictingCache(model, tokens=most)
        tokens = model.generate(prompt, past_key_values=cache, max_new_tokens=NEW, do_sample=False)
        whole = model.generate(
            prompt, past_key_values=DynamicCache(), max_new_tokens=NEW, do_sample=False
        )
        assert torch.equal(tokens, whole), "the same tokens as with every key kept"
        print(f"{NEW} tokens after {prompt.shape[1]}, the same as through a full cache")
        print(f"  {cache.nbytes:,} bytes of buffers, of {cache.full_nbytes:,} that all keys take")
        print(f"  layer 0 holds {_stretches(cache.held(0))}, layer 3 {_stretches(cache.held(3))}")

        cache.reset()
        curve = [_bytes(model, cache, prompt)]
        for t in range(prompt.shape[1], tokens.shape[1] - 1):
            curve.append(_bytes(model, cache, tokens[:, t : t + 1]))
    last = curve[-1][1]
    print("tokens  bytes of keys that are held (#) and that are not (.)")
    for held, full in curve[::20]:
        bar = "#" * round(WIDTH * held / last)
        rest = "." * (round(WIDTH * full / last) - len(bar))
        print(f"{prompt.shape[1] + curve.index((held, full)):>6}  {bar}{rest} {held:,} of {full:,}")
    return {"evicting": curve[-1][0], "full": last}


def _bytes(
    model: torch.nn.Module, cache: "pc.hf.EvictingCache", ids: torch.Tensor
) -> tuple[int, int]:
    """Bytes held after some more tokens, and of all keys so far."""
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache.held_nbytes, cache.full_nbytes


def _stretches(keys: list[int]) -> str:
    """Positions as stretches: 0-3, 10-12."""
    ends = [k for k in keys if k + 1 not in keys]
    begins = [k for k in keys if k - 1 not in keys]
    return ", ".join(f"{a}-{b}" for a, b in zip(begins, ends, strict=True))


if __name__ == "__main__":
    main()
