"""Patterns inside Hugging Face transformers models: training, prefill and decoding.

with pc.hf.apply(model, pc.causal() & (pc.window(511) | pc.sink(4))):
    model.generate(...)

Importing this makes `attn_implementation="patterncc"` known to transformers, where that is
installed: a model that asks for it runs its own mask sparsely.
"""

from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from patterncc.errors import BackendError
from patterncc.integrations.hf.apply import Applied, apply, register, undo
from patterncc.integrations.hf.state import NAME, Fallback

if TYPE_CHECKING:
    from patterncc.integrations.hf.evicting import EvictingCache

__all__ = ["NAME", "Applied", "EvictingCache", "Fallback", "apply", "register", "undo"]

if find_spec("transformers") is not None:
    with suppress(BackendError):  # too old; `apply` says so
        register()


def __getattr__(name: str) -> Any:
    if name != "EvictingCache":  # a class of transformers': made when it is asked for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from patterncc.integrations.hf.evicting import EvictingCache

    globals()[name] = EvictingCache
    return EvictingCache
