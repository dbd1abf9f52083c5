"""The ways of attention that a GPU benchmark runs in turn: ours, and every peer that is there.

A way is a function of (q, k, v); whatever it needs beside them is made before.  What cannot run
here raises, and the benchmark says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from patterncc.attend import attention
from patterncc.bench.gpu_device import Device
from patterncc.bench.masks import Mask, laid_out
from patterncc.bench.protocol import version_of
from patterncc.errors import PatternError
from patterncc.integrations.flashinfer import to_flashinfer
from patterncc.integrations.flex import to_flex
from patterncc.layout.layout import Layout

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


class UnavailableError(Exception):
    """A peer that does not run this case, with the reason."""


@dataclass(frozen=True)
class Peer:
    """A way by name.

    make: the function.  same: it computes this very mask; else it is dense attention, shown for
    comparison.  rows_first: it wants tensors that stand in memory as [B, L, H, D].
    """

    name: str
    make: Callable[[], Way]
    same: bool = True
    rows_first: bool = False


def peers(mask: Mask, layout: Layout, device: Device, backward: bool) -> Iterator[Peer]:
    """Ours first, then the peers, in the order in which they are shown."""

    def ours(deterministic: bool = True) -> Way:
        return lambda q, k, v: attention(
            q, k, v, layout, enable_gqa=True, backend=device.backend, deterministic=deterministic
        )

    yield Peer("ours", ours)
    if backward:
        yield Peer("ours, single pass", lambda: ours(False))
    yield Peer("flex", lambda: flex(mask, device, 128))
    if 1 < mask.grain < 128:
        yield Peer(f"flex, blocks of {mask.grain}", lambda: flex(mask, device, mask.grain))
    same = mask.band in ((-1, -1), (-1, 0))
    for name, kind in (
        ("sdpa flash", SDPBackend.FLASH_ATTENTION),
        ("sdpa cudnn", SDPBackend.CUDNN_ATTENTION),
    ):
        yield Peer(name, partial(dense, kind, mask.past_only), same)
    if mask.band is not None:
        for name, package in (
            ("flash-attn 2", "flash_attn"),
            ("flash-attn 3", "flash_attn_interface"),
        ):
            make = partial(flash_attn, package, mask)
            yield Peer(name, make, rows_first=True)
    if not backward:
        yield Peer("flashinfer", lambda: flashinfer(mask, device), rows_first=True)


def flex(mask: Mask, device: Device, block: int) -> Way:
    """Compiled FlexAttention with a mask that was built before."""
    if mask.mod is None:
        raise UnavailableError("this mask has no mask function")
    found = to_flex(laid_out(mask, block, "token"), device=device.where, max_bytes=2**33)
    found.mask_mod = mask.mod(device.where)  # to_flex's own is exact too, but slower
    call = device.compiled(flex_attention)

    def way(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        out: Tensor = call(q, k, v, block_mask=found, enable_gqa=gqa)
        return out

    return way


def dense(kind: SDPBackend, causal: bool) -> Way:
    """One kernel of torch's SDPA, without a mask but causality."""

    def way(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        with sdpa_kernel(kind):
            return sdpa(q, k, v, is_causal=causal, enable_gqa=gqa)

    return way


def flash_attn(package: str, mask: Mask) -> Way:
    """FlashAttention 2 or 3, whose tensors are [B, L, H, D]."""
    call = installed(package).flash_attn_func
    assert mask.band is not None
    left, right = mask.band

    def way(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = (x.transpose(1, 2) for x in (q, k, v))
        found = call(*turned, causal=right == 0, window_size=(left, right))
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out.transpose(1, 2)

    return way


def flashinfer(mask: Mask, device: Device) -> Way:
    """FlashInfer's prefill of one sequence, or its block-sparse kernel."""
    library = installed("flashinfer")
    if mask.band is not None:
        left, right = mask.band

        def prefill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            rows = (x[0].transpose(0, 1) for x in (q, k, v))
            found: Tensor = library.single_prefill_with_kv_cache(
                *rows, causal=right == 0, window_left=left
            )
            return found.transpose(0, 1)[None]

        return prefill
    if mask.grain == 1:
        raise UnavailableError("single pairs: its masks take a byte for every pair of every block")
    blocks = to_flashinfer(laid_out(mask, mask.grain, "token"))
    work = torch.empty(2**27, dtype=torch.uint8, device=device.where)
    wrapper = library.BlockSparseAttentionWrapper(work)
    planned: dict[tuple[int, ...], bool] = {}

    def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = (q.shape[1], k.shape[1], q.shape[3])
        if shape not in planned:
            planned[shape] = True
            wrapper.plan(
                **blocks.plan(device.where),
                num_qo_heads=shape[0],
                num_kv_heads=shape[1],
                head_dim=shape[2],
                q_data_type=q.dtype,
            )
        rows = (x[0].transpose(0, 1) for x in (q, k, v))
        found: Tensor = wrapper.run(*rows)
        return found.transpose(0, 1)[None]

    return sparse


def installed(package: str) -> Any:
    """A package that need not be there.

    Raises UnavailableError with its name.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UnavailableError(f"not installed: {error}") from None


def reason(error: Exception) -> str:
    """Why a peer did not run, in one line."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        text
        if isinstance(error, UnavailableError | PatternError)
        else f"{type(error).__name__}: {text}"
    )


def versions() -> dict[str, str | None]:
    """Of the libraries whose kernels run."""
    names = ("torch", "triton", "patterncc", "flash-attn", "flash-attn-3", "flashinfer-python")
    return {name: version_of(name) for name in names}
