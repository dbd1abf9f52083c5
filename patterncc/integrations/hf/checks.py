"""What a call of a transformers model may bring that a pattern cannot serve, refused by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from patterncc.errors import BackendError
from patterncc.integrations.hf.placement import Placement

_SERVED = {"softcap", "s_aux", "position_bias"}
HARMLESS = {
    *("position_ids", "cache_position", "num_items_in_batch", "labels", "input_ids"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    *("token_type_ids", "mm_token_type_ids", "encoder_hidden_states", "encoder_attention_mask"),
    *("inputs_embeds", "position_embeddings", "logits_to_keep", "past_key_values"),
}
"""Tensors that models pass along and that change no score where a pattern runs."""


def check_call(
    name: str, module: Any, mask: object, dropout: float, ignore_dropout: bool, given: Any
) -> None:
    """Refuse what would be left out without a word.

    Raises BackendError.
    """
    if mask is not None and not isinstance(mask, Placement):
        shape = f" of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else ""
        raise BackendError(
            f"{name}: a mask{shape} was given by hand; state it as a pattern (pc.from_mask_mod, "
            "pc.from_scipy), and give attention_mask as [batch, tokens]"
        )
    if dropout and not ignore_dropout:
        raise BackendError(
            f"{name}: attention dropout {dropout} while training is not supported; set "
            f"{_dropout_field(module, dropout)} to 0, or say that it is to be left out: "
            'pc.hf.apply(model, pattern, dropout="ignore")'
        )
    if given.get("output_attentions"):
        raise BackendError(
            f"{name}: output_attentions asks for weights, which are never formed; leave it out"
        )
    for key, value in given.items():
        if isinstance(value, Tensor) and key not in _SERVED and key not in HARMLESS:
            raise BackendError(
                f"{name}: the model gives its attention a tensor {key} of shape "
                f"{tuple(value.shape)}, which may change the scores and is not known here; leave "
                "it out, or pass fallback='dense' to run those calls as the model did before"
            )


def _dropout_field(module: Any, value: float) -> str:
    """The field of the config that holds the value."""
    fields = getattr(getattr(module, "config", None), "__dict__", {})
    names = [k for k, v in fields.items() if v == value and ("drop" in k or k.endswith("_pdrop"))]
    named = [k for k in names if "att" in k]
    return " or ".join(f"config.{k}" for k in named or names) or "the config's attention dropout"
