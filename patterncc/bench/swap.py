"""`patterncc bench swap`: what a swapped attention adds to a transformers model beside its kernel.

Two copies of one Llama take turns in one process.  *swapped* carries a pattern by `pc.hf.apply`;
clocks stand around what is called of the integration (the mask of a pass, the attention of a layer,
the hooks of the model) and around the registered op inside.  What was spent there and not in the op
is what swapping *adds*.  *direct* has no more than the op: its attention hands it the very
arguments that the other copy's did, and nothing is checked, looked up or made.

Goal: swapping adds less than 2% of a step, in prefill, training and decoding.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patterncc.bench.protocol import in_turn, machine, spread, summary, version_of
from patterncc.bench.train import pattern_of
from patterncc.errors import BackendError
from patterncc.integrations import hf
from patterncc.integrations.hf import run as integration
from patterncc.kernels import op

LENGTHS = (2048, 8192)
LAYERS, WIDTH, HEADS, KV_HEADS, VOCABULARY = 4, 512, 8, 4, 512
TOKENS = 16  # decoded in one run
GOAL = 0.02  # of a step
DIRECT = "patterncc_direct"

Step = Callable[[], None]
Phase = Callable[[Any, Tensor], Step]  # a model and a prompt to a step of it
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass
class Clock:
    """Seconds inside the integration and inside the op, and every call of the op."""

    inside: float = 0.0
    op: float = 0.0
    calls: deque[Call] = field(default_factory=deque)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to `inside`."""

        def timed(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*given, **named)
            self.inside += time.perf_counter() - start
            return result

        return timed

    def around_op(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The op, its time added to `op`; what it was called with beside q, k and v is kept."""

        def timed(q: Tensor, k: Tensor, v: Tensor, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()  # first, so that what is kept here is not called added
            self.calls.append((function, given, named))
            result = function(q, k, v, *given, **named)
            self.op += time.perf_counter() - start
            return result

        return timed


def run(
    *,
    n: int | None = None,
    repeats: int = 5,
    width: int = WIDTH,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Seconds of each phase with spread, and the share of a step that swapping adds."""
    say = progress or (lambda _: None)
    found = []
    for length in LENGTHS if n is None else (n,):
        for phase in (_prefill, _training, _decoding):
            name = phase.__name__.removeprefix("_")
            say(f"{name}, {length:,} tokens")
            found.append({"phase": name, "n": length, **_measured(phase, length, repeats, width)})
    return {
        "bench": "swap",
        "machine": {
            **machine(),
            "threads": torch.get_num_threads(),
            "transformers": version_of("transformers"),
        },
        "model": {
            "layers": LAYERS,
            "width": width,
            "heads": HEADS,
            "kv_heads": KV_HEADS,
            "vocabulary": VOCABULARY,
        },
        "cases": found,
    }


def text(result: dict[str, Any]) -> str:
    """The table that a person reads."""
    where, model = result["machine"], result["model"]
    lines = [
        f"{where['processor']}, {where['threads']} threads, torch {where['versions']['torch']}, "
        f"transformers {where['transformers']}",
        f"a Llama of {model['layers']} layers, width {model['width']}, {model['heads']} heads "
        f"({model['kv_heads']} of keys); medians (least to most)",
    ]
    for row in result["cases"]:
        low, mid, high = (f"{row['share'][key]:.2%}" for key in ("min", "median", "max"))
        said = "reached" if row["reached"] else "missed"
        lines.append(f"{row['phase']}, {row['n']:,} tokens: {row['pattern']}")
        lines += [f"  {name:8} {spread(took)}" for name, took in row["seconds"].items()]
        lines.append(f"  added is {mid} ({low} to {high}) of a step; goal below {GOAL:.0%}: {said}")
        lines.append(f"  once, before: {row['first'] * 1e3:.0f} ms to lay out the pattern")
    return "\n".join(lines)


def _measured(phase: Phase, n: int, repeats: int, width: int) -> dict[str, Any]:
    """One phase: both copies in turn; times are those of one step."""
    pattern, clock = pattern_of(n), Clock()
    ids = torch.randint(VOCABULARY, (1, n), generator=torch.Generator().manual_seed(1))
    added, ops, shares = [], [], []
    with ExitStack() as block:
        block.enter_context(_op_clocked(clock))
        swapped, direct = _models(n + TOKENS * (repeats + 1), width)
        block.enter_context(hf.apply(swapped, pattern))
        block.enter_context(_functions_clocked(clock, swapped))
        steps = {"swapped": phase(swapped, ids), "direct": phase(direct, ids)}

        def measured() -> None:
            clock.inside = clock.op = 0.0
            start = time.perf_counter()
            steps["swapped"]()
            whole = time.perf_counter() - start
            added.append(clock.inside - clock.op)
            ops.append(clock.op)
            shares.append(added[-1] / whole)

        seconds = in_turn({"swapped": measured, "direct": steps["direct"]}, repeats)
    count = TOKENS if phase is _decoding else 1
    times = {**seconds, "op": summary(ops[1:]), "added": summary(added[1:])}
    share = summary(shares[1:])
    return {
        "pattern": str(pattern),
        "seconds": {name: _each(found, count) for name, found in times.items()},
        "first": max(0.0, added[0] - times["added"]["median"]),
        "share": share,
        "goal": GOAL,
        "reached": share["median"] < GOAL,
    }


def _each(found: dict[str, float], count: int) -> dict[str, float]:
    """Seconds of one of `count` steps."""
    return {key: x if key == "runs" else x / count for key, x in found.items()}


def _models(longest: int, width: int) -> tuple[Any, Any]:
    """A Llama, and a copy of it whose attention is the direct one."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as missing:
        raise BackendError(
            f"bench swap needs {missing.name}; install it with: pip install 'patterncc[hf]'"
        ) from None
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=longest,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    copy = deepcopy(model)
    copy.set_attn_implementation(DIRECT)
    return model, copy


def _prefill(model: Any, ids: Tensor) -> Step:
    """The prompt through the model, as `generate` does it: a cache, the last token's logits."""

    def step() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=True, logits_to_keep=1)

    return step


def _training(model: Any, ids: Tensor) -> Step:
    """Forward, loss, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        torch.autograd.backward(model(input_ids=ids, labels=ids, use_cache=False).loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _decoding(model: Any, ids: Tensor) -> Step:
    """TOKENS more tokens, one a call, each at a position that was not seen before."""
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def step() -> None:
        with torch.no_grad():
            for _ in range(TOKENS):
                model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)

    return step


@contextmanager
def _op_clocked(clock: Clock) -> Iterator[None]:
    """Clocks around the registered ops, and the attention that calls them directly made known."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def direct(
        module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any
    ) -> tuple[Any, None]:
        if not clock.calls:
            raise BackendError("bench swap: the patterned copy did not call the op once a layer")
        function, given, named = clock.calls.popleft()
        out = function(q, k, v, *given, **named)[0]
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(DIRECT, direct)
    AttentionMaskInterface.register(DIRECT, lambda *_, **__: None)
    own = {name: getattr(op, name) for name in ("attention", "decode")}
    for name, function in own.items():
        setattr(op, name, clock.around_op(function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(op, name, function)


@contextmanager
def _functions_clocked(clock: Clock, model: Any) -> Iterator[None]:
    """Clocks around what is called of the integration: the two functions, and hooks of a model."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(hf.NAME, clock.around(integration.attention))
    AttentionMaskInterface.register(hf.NAME, clock.around(integration.mask))
    hooks = [h for m in model.modules() for h in (m._forward_pre_hooks, m._forward_hooks)]
    own = [dict(held) for held in hooks]
    for held in hooks:
        held.update({key: clock.around(hook) for key, hook in held.items()})
    try:
        yield
    finally:
        hf.register()
        for held, before in zip(hooks, own, strict=True):
            held.update(before)
