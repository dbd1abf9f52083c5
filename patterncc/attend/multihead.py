"""`MultiheadAttention`: the module of torch.nn, over the edges of a pattern."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from patterncc.attend.checks import AnyLayout, shape
from patterncc.attend.over import Block, How, attend, keys_kept
from patterncc.attend.swap import Choice, Swapped, check_replaceable, configure
from patterncc.errors import TensorError
from patterncc.stack import Layer, Stack

_OWNER = "MultiheadAttention"


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` over the edges of a pattern: same arguments, same state dict.

    query [L, B, E], or [B, L, E] with batch_first, or [L, E]; key and value alike, of L_k tokens.
    Query i reads key j where the pattern has (i, j).  With several lengths the pattern is one over
    two node sets, its rows the queries.

    pattern: a Pattern, or pc.heads([...]) with one pattern for each head.  block, layer: as in
    `compile`.  The rest is as in torch.nn.

    Within nn.TransformerEncoder and its layers torch would compute dense attention of the weights
    alone in evaluation (its "fast path"); this module turns that off.

    >>> from patterncc import causal, window
    >>> m = MultiheadAttention(32, 4, batch_first=True, pattern=causal() & window(15))
    >>> x = torch.randn(2, 50, 32)
    >>> out, weights = m(x, x, x)
    >>> out.shape, weights
    (torch.Size([2, 50, 32]), None)

    Raises PatternValueError for add_bias_kv and add_zero_attn, whose keys stand at no position.
    """

    pattern: Layer
    how: How

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        pattern: Layer,
        block: Block = None,
        layer: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            *(embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn),
            *(kdim, vdim, batch_first, device, dtype),
        )
        configure(self, pattern, How(block, layer, backend))

    @staticmethod
    def of(
        module: nn.MultiheadAttention,
        pattern: Layer,
        *,
        dropout: float | None = None,
        block: Block = None,
        layer: int = 0,
        backend: str = "auto",
    ) -> MultiheadAttention:
        """This module with another's parameters: the same ones, not copies.

        dropout: in place of the module's own, which is of attention weights; 0.0 to train without.

        >>> from patterncc import window
        >>> dense = nn.MultiheadAttention(32, 4)
        >>> sparse = MultiheadAttention.of(dense, window(15, 15))
        >>> sparse.in_proj_weight is dense.in_proj_weight
        True

        Raises PatternError for a subclass, whose own forward would be lost.
        """
        check_replaceable(_OWNER + ".of", module, MultiheadAttention)
        made = MultiheadAttention.__new__(MultiheadAttention)
        made.__dict__.update(module.__dict__)
        if dropout is not None:
            made.dropout = dropout
        configure(made, pattern, How(block, layer, backend))
        return made

    @staticmethod
    def swap(
        model: nn.Module, pattern: Layer | Stack | Choice, *, dropout: float | None = None
    ) -> Swapped:
        """Every nn.MultiheadAttention of a model over a pattern, in place: see `Swapped`.

        pattern: one for all; or a Stack, whose layers go to the modules in their order; or a
        function of a module's name and the module that gives its pattern, or None to leave it.
        dropout: as in `of`.

        A pattern or stack is for self-attention: the cross-attention of nn.TransformerDecoderLayer
        is left as it is, and is listed in `left`; a function may give it a pattern.

        >>> from patterncc import window
        >>> layer = nn.TransformerEncoderLayer(32, 4, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2)
        >>> with MultiheadAttention.swap(model, window(7, 7)) as swapped:
        ...     out = model(torch.randn(1, 20, 32))
        >>> sorted(swapped.replaced), type(model.layers[0].self_attn).__module__
        (['layers.0.self_attn', 'layers.1.self_attn'], 'torch.nn.modules.activation')

        Raises PatternError where there is nothing to replace or a stack of another length, and
        for subclasses.
        """
        return Swapped(model, pattern, dropout, MultiheadAttention)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        layout: AnyLayout | None = None,
    ) -> tuple[Tensor, None]:
        """(out, None): out in query's shape, with embed_dim features; weights are never made.

        key_padding_mask: [B, L_k] or [L_k], True (or -inf) where a key is left out.
        is_causal: of the pattern's edges those of causal() alone.  An attn_mask beside it is taken
        for the causal mask that it is said to be, as torch.nn does.
        layout: in place of the pattern's own, compiled for these lengths.

        Raises TensorError for what a pattern cannot do: need_weights=True, another attn_mask,
        dropout in training.
        """
        if query.is_nested:
            return self._of_nested(query, key, value, key_padding_mask, attn_mask, layout), None
        self._check(query, key, value, need_weights, attn_mask, is_causal)
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        keep = None
        if key_padding_mask is not None:
            gone = key_padding_mask if batched else key_padding_mask[None]
            # a bool mask of torch.nn says which keys are left out, a float one is added
            gone = ~gone if gone.dtype == torch.bool else gone
            keep = keys_kept(_OWNER, "key_padding_mask", gone, k.shape[0], k.shape[2])
        over = self.pattern if layout is None else layout
        o = attend(_OWNER, q, k, v, over, self.how, only_past=is_causal, key_mask=keep)
        return self.out_proj(self._joined(o, batched)), None

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        """Refuse what a pattern cannot do, and tensors that do not fit the module."""
        if need_weights:
            raise TensorError(
                f"{_OWNER}: need_weights=True asks for all L x L_k weights, which are never made; "
                "pass need_weights=False, or undo the swap to look at dense weights"
            )
        if attn_mask is not None and not is_causal:
            raise TensorError(
                f"{_OWNER}: attn_mask of shape {shape(attn_mask)}; say which keys are read by the "
                "pattern instead: causal() & pattern or is_causal=True for a causal mask, "
                "pattern & pc.edges(~mask.numpy()) for a bool one (True leaves out), "
                "pc.heads([...]) where heads differ; padding goes to key_padding_mask"
            )
        if self.training and self.dropout > 0:
            raise TensorError(
                f"{_OWNER}: dropout {self.dropout} of attention weights in training, which are "
                "never made; set module.dropout = 0.0 (or MultiheadAttention.swap(..., "
                "dropout=0.0)); dropout after the module is not concerned"
            )
        widths = self.embed_dim, self.kdim, self.vdim
        given = (("query", query), ("key", key), ("value", value))
        for (name, x), width in zip(given, widths, strict=True):
            if x.dim() not in (2, 3) or x.dim() != query.dim() or x.shape[-1] != width:
                order = "(B, L, " if self.batch_first else "(L, B, "
                raise TensorError(
                    f"{_OWNER}: {name} has shape {shape(x)}, query {shape(query)}; it must be "
                    f"{order}{width}), or all three (L, features) without a batch"
                )

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """q, k and v [B, H, L, D], of inputs in the module's own order."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            made = F.linear(query, weight, bias).chunk(3, -1)
        else:
            separate = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
            weights = separate if weight is None else weight.chunk(3)
            biases = (None, None, None) if bias is None else bias.chunk(3)
            inputs = zip((query, key, value), weights, biases, strict=True)
            made = tuple(F.linear(x, w, b) for x, w, b in inputs)
        return tuple(self._split(x) for x in made)

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, H * D], [L, B, H * D] or [L, H * D] -> [B, H, L, D]."""
        if x.dim() == 2:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def _joined(self, o: Tensor, batched: bool) -> Tensor:
        """[B, H, L, D] -> the shape that inputs came in."""
        if not batched:
            return o[0].transpose(0, 1).flatten(1)
        return (
            o.permute(0, 2, 1, 3).flatten(2)
            if self.batch_first
            else o.permute(2, 0, 1, 3).flatten(2)
        )

    def _of_nested(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        layout: AnyLayout | None,
    ) -> Tensor:
        """Sequences of several lengths, as nn.TransformerEncoder hands them on in evaluation."""
        same = query is key and key is value
        if not same or key_padding_mask is not None or attn_mask is not None or query.requires_grad:
            raise TensorError(
                f"{_OWNER}: a nested tensor in training, beside a mask, or with other keys; give a "
                "padded tensor (x.to_padded_tensor(0.0)) and key_padding_mask=, and build "
                "nn.TransformerEncoder with enable_nested_tensor=False"
            )
        if not self.batch_first or query.layout != torch.strided:
            raise TensorError(
                f"{_OWNER}: a nested tensor of layout {query.layout}, batch_first="
                f"{self.batch_first}; a nested tensor is a batch of sequences, so it needs "
                "batch_first=True and torch.strided, or give a padded tensor and key_padding_mask="
            )
        padded = torch.nested.to_padded_tensor(query, 0.0)
        lengths = query._nested_tensor_size()[:, 0].to(padded.device)
        keep = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        q, k, v = self._projected(padded, padded, padded)
        over = self.pattern if layout is None else layout
        o = attend(_OWNER, q, k, v, over, self.how, key_mask=keep)
        out = self.out_proj(self._joined(o, batched=True))
        return torch._nested_tensor_from_mask(out, keep, mask_check=False)

    def _reset_parameters(self) -> None:
        """As torch.nn does, whose flag for packed weights this module turns off."""
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the projections."""
        return f"{self.embed_dim}, heads={self.num_heads}, pattern={self.pattern}"
