"""fidelity: patterns in place of a model's attention, each held to the model as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from patterncc.analysis.flow.rollout import check_alpha
from patterncc.errors import PatternError, PatternSyntaxError, PatternValueError
from patterncc.fidelity.foresee import ALPHA, agreement, foresee, reference
from patterncc.fidelity.measure import apart, batch_size, run
from patterncc.fidelity.model import Pretrained
from patterncc.fidelity.result import Candidate, Fidelity, Foreseen, Row, Spread
from patterncc.fidelity.texts import Sequences
from patterncc.integrations.hf import apply
from patterncc.primitives import causal, full
from patterncc.stack import Stack

Measured = dict[str, list[float]]
Say = Callable[[str], None]


def fidelity(
    model: Pretrained,
    candidates: Mapping[str, Candidate],
    sequences: Sequences,
    *,
    alpha: float = ALPHA,
    progress: Say = lambda _: None,
) -> Fidelity:
    """Run every candidate in place of the model's attention and hold it to the model as it is.

    A stack of another depth than the model's is repeated, or cut, to it; a note says so.  alpha is
    the weight of the residual stream in rollout.

    Raises PatternValueError for no candidates, one that reads later tokens in a causal model, one
    of another number of heads, and whatever lowering it raises, with its name.
    """
    if not candidates:
        raise PatternValueError("fidelity: no pattern given; name at least one")
    alpha, length = check_alpha(alpha), sequences.length
    notes = list(sequences.notes)
    fitted = {name: _fitted(name, c, model, notes) for name, c in candidates.items()}
    own = _own(model, notes)
    rollout = reference(model, own, length, alpha)
    foreseen: dict[str, Foreseen] = {}
    for name, candidate in fitted.items():
        progress(f"{name}: analysis")
        with _named(name):
            foreseen[name] = foresee(model, candidate, length, alpha, rollout)
        if foreseen[name].figures["density"] == 1:
            notes.append(
                f"{name}: reads every pair at {length} tokens; a longer --length or a smaller "
                "pattern would tell more"
            )
    measured = _measure(model, fitted, sequences, progress)
    rows = tuple(
        _row(name, fitted[name].stack, foreseen[name], measured[name], sequences.sources)
        for name in fitted
    )
    return Fidelity(
        model=model.name,
        kind=model.kind,
        layers=model.layers,
        length=length,
        sequences=len(sequences.sources),
        texts=tuple(dict.fromkeys(sequences.sources)),
        alpha=alpha,
        rows=rows,
        agreement=agreement(list(foreseen.values()), [row.score for row in rows]),
        notes=tuple(notes),
    )


class _named:  # noqa: N801  (read as a statement)
    """Errors inside the block begin with the candidate's name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, PatternError) and not isinstance(error, PatternSyntaxError):
            raise type(error)(f"{self.name}: {error}") from None


def _fitted(name: str, candidate: Candidate, model: Pretrained, notes: list[str]) -> Candidate:
    """The candidate with one layer for each of the model's, which makes its own keys and values."""
    stack, layers = candidate.stack, model.layers
    if len(stack) not in (1, layers):
        how = "the first are taken" if len(stack) > layers else "they repeat"
        notes.append(f"{name}: {len(stack)} layers for the model's {layers}; {how}")
    each = [stack.layer(l) for l in range(layers)]
    return replace(candidate, stack=Stack(each, memory=stack.memory))


def _own(model: Pretrained, notes: list[str]) -> Stack:
    """What the patterns are held to: the model's own attention."""
    dense = causal() if model.kind == "causal" else full()
    found = model.own_stack()
    if found is None or set(found.patterns) == {dense}:
        return Stack(dense)
    notes.append(
        f"{model.name} is not dense itself ({found.patterns[0]}...); all is held to the model "
        "as it is"
    )
    return found


def _measure(
    model: Pretrained, candidates: Mapping[str, Candidate], sequences: Sequences, progress: Say
) -> dict[str, Measured]:
    """The figures of each candidate, sequence by sequence; the dense pass is made once a batch."""
    found: dict[str, Measured] = {name: defaultdict(list) for name in candidates}
    count, size = len(sequences.ids), batch_size(model, sequences.length)
    for start in range(0, count, size):
        ids = sequences.ids[start : start + size]
        place = f"sequence {start + 1} of {count}"
        progress(f"the model as it is, {place}")
        dense = run(model, ids)
        for name, c in candidates.items():
            progress(f"{name}, {place}")
            with _named(name), apply(model.model, c.stack, **dict(c.bindings)):
                sparse = run(model, ids)
            for figure, values in apart(model, ids, dense, sparse).items():
                found[name][figure] += values
    return found


def _row(
    name: str, stack: Stack, foreseen: Foreseen, measured: Measured, sources: tuple[str, ...]
) -> Row:
    judged = next(iter(measured.values()))
    by_text: dict[str, list[float]] = defaultdict(list)
    for source, value in zip(sources, judged, strict=True):
        by_text[source].append(value)
    return Row(
        name=name,
        stack=tuple(str(stack).splitlines()),
        foreseen=foreseen,
        measured={figure: Spread.of(values) for figure, values in measured.items()},
        by_text={source: Spread.of(values) for source, values in by_text.items()},
    )
