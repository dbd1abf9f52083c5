"""Sizes of kernels compared: compiled for a GPU that is not here, or timed on the one that is.

Without a GPU a size is judged by what it uses: registers, spills, shared memory; the likeliest that
fits and hardly spills is taken.  With one, those that fit are timed.  Either way the
result is a `Table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from patterncc.errors import BackendError
from patterncc.kernels.emit import emit
from patterncc.kernels.offline import Resources, compile_offline
from patterncc.kernels.plan import Plan, Target
from patterncc.kernels.tuning.candidates import candidates, plan_for_key
from patterncc.kernels.tuning.sizes import TILES, Key, Size, Table, shipped

SLIGHT = 32
"""Bytes of a thread's memory that a size may use and still count as clean: a few values that are
kept beside the loop cost less than a smaller step."""

OFFLINE = (
    "offline: a row with registers holds the likeliest size that fits and spills at most "
    f"{SLIGHT} bytes a thread, or else spills least; others are as they were; speed unmeasured"
)
"""What a table made without a GPU rests on."""

Compile = Callable[[str, Plan], Resources]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One size of a key: what it uses, or why it does not compile; its time where it was run."""

    size: Size
    used: Resources | None
    note: str = ""
    seconds: float | None = None

    @property
    def clean(self) -> bool:
        """It can be launched, and a thread's values stay in registers but for a few."""
        return self.used is not None and self.used.fits and self.used.stack <= SLIGHT

    @property
    def spills(self) -> int:
        """Instructions that reach a thread's memory."""
        return self.used.spill_stores + self.used.spill_loads if self.used else 0


@dataclass(frozen=True)
class Found:
    """What was found for a key: the size to take, and every trial, in order."""

    key: Key
    best: Trial
    trials: tuple[Trial, ...]


def sweep(
    target: Target,
    wanted: Iterable[Key],
    say: Say = lambda _: None,
    compiler: Compile | None = None,
) -> list[Found]:
    """For each key the likeliest size that fits and hardly spills, or the one that spills least.

    Raises BackendError where triton is missing, and where no size of a key compiles and fits.
    """
    known: dict[tuple[Key, Size], Trial] = {}

    def compiled(key: Key, size: Size) -> Trial:
        # a step uses the same in every tile that holds it: each is compiled once
        place = key._replace(tile=TILES[0]), size
        if place not in known:
            say(f"{_named(key)}, {_shown(size)}")
            known[place] = tried(key, size, target, compiler)
        return known[place]

    return [_swept(key, target, compiled) for key in wanted]


def _swept(key: Key, target: Target, compiled: Callable[[Key, Size], Trial]) -> Found:
    trials: list[Trial] = []
    for size in candidates(key, target):
        trials.append(compiled(key, size))
        if trials[-1].clean:
            return Found(key, trials[-1], tuple(trials))
    left = [t for t in trials if t.used is not None and t.used.fits]
    if not left:
        raise BackendError(
            f"{_named(key)} on {target}: none of {len(trials)} sizes compiles and fits; the first: "
            f"{trials[0].note or 'too much shared memory'}"
        )
    best = min(left, key=lambda t: (t.used.stack if t.used else 0, t.spills))
    return Found(key, best, tuple(trials))


def tried(key: Key, size: Size, target: Target, compiler: Compile | None = None) -> Trial:
    """One size compiled."""
    plan = plan_for_key(key, size, target)
    try:
        return Trial(size, (compiler or compile_offline)(emit(plan), plan))
    except BackendError as error:
        return Trial(size, None, str(error))


def table_of(target: Target, found: Iterable[Found], basis: str = OFFLINE) -> Table:
    """The shipped table with what was found in its place."""
    rows = dict(shipped(target).rows) | {f.key: f.best.size for f in found}
    return Table(target, basis, rows)


def measured(target: Target, found: Iterable[Found], device: str, triton: str) -> Table:
    """What was timed on a device, and nothing else: other keys keep their shipped sizes."""
    basis = f"measured on {device}: the fastest of the sizes that fit and hardly spill"
    return Table(target, basis, {f.key: f.best.size for f in found}, device, triton)


def notes_of(found: Iterable[Found]) -> dict[Key, dict[str, Any]]:
    """What is written beside a row: resources, and times where they were taken."""
    return {f.key: _note(f.best) for f in found}


def _note(trial: Trial) -> dict[str, Any]:
    used: dict[str, Any] = {}
    if trial.used is not None:
        names = ("registers", "stack", "spill_stores", "spill_loads", "shared")
        used = {name: getattr(trial.used, name) for name in names}
    return used | ({} if trial.seconds is None else {"microseconds": round(trial.seconds * 1e6, 1)})


def report(found: Iterable[Found]) -> list[dict[str, Any]]:
    """Plain values of all trials, for --json."""
    return [
        {
            **f.key._asdict(),
            "best": list(f.best.size),
            "trials": [
                {"size": list(t.size), "note": t.note, "clean": t.clean, **_note(t)}
                for t in f.trials
            ],
        }
        for f in found
    ]


def text(found: Iterable[Found]) -> str:
    """One line a key: the size taken, what it uses, and how many were tried before."""
    lines = [
        "kind     width    dim  tile     masks  size           registers  stack  shared  tried"
    ]
    for f in found:
        used = f.best.used
        numbers = f"{used.registers:>9}  {used.stack:>5}  {used.shared:>6}" if used else " " * 24
        time = "" if f.best.seconds is None else f"  {f.best.seconds * 1e6:.1f} us"
        tile = "{}x{}".format(*f.key.tile)
        key = f"{f.key.kind:<8} {f.key.width:<8} {f.key.head_dim:>3}  {tile:<7}  {f.key.masks:<5}"
        size = f"{_shown(f.best.size):<13}"
        lines.append(f"{key}  {size}  {numbers}  {len(f.trials):>5}{time}")
    return "\n".join(lines)


def _named(key: Key) -> str:
    return f"{key.kind}, {key.width}, head dim {key.head_dim}, {key.masks}"


def _shown(size: Size) -> str:
    return f"{size.bm}x{size.bn} w{size.warps} s{size.stages}"
