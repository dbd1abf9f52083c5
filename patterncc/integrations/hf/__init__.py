"""Patterns inside Hugging Face transformers models: training, prefill and decoding.

with pc.hf.apply(model, pc.causal() & (pc.window(511) | pc.sink(4))):
    model.generate(...)
"""

from patterncc.integrations.hf.apply import NAME, Applied, apply, register

__all__ = ["NAME", "Applied", "apply", "register"]
