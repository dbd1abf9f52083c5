"""What each device can do: small tables of figures, measured or published, read from JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from patterncc.errors import PatternValueError, joined

TABLES = Path(__file__).parent / "devices"
SCHEMA = "patterncc.device/1"
LARGEST = 2**20  # bytes of a table that is read
MASKS = ("zones1", "zones2", "zones4", "bits")


@dataclass(frozen=True)
class Device:
    """The figures of one device, for one head.

    pair_ns: time of one processor for one pair of query and key inside a tile, by head dim.
    dense_pair_ns: the same in the best dense attention kernel.
    step: queries and keys that a kernel takes at a time.
    tile_pairs, run_pairs, row_pairs: what a step, a run of tiles and a row of steps cost beyond
    their pairs, in pairs.
    mask_share: what a mask adds to a pair, as a share of it, by class.
    bytes_per_second: of a copy.  call_ns: of one launch.
    measured: whether the figures come from a run on this device; basis says so in words.
    """

    target: str
    device: str
    measured: bool
    basis: str
    sources: tuple[str, ...]
    dtype: str
    bytes_per_value: int
    processors: int
    pair_ns: dict[int, float]
    dense_pair_ns: dict[int, float]
    step: tuple[int, int]
    tile_pairs: float
    run_pairs: float
    row_pairs: float
    mask_share: dict[str, float]
    bytes_per_second: float
    call_ns: float

    @staticmethod
    def of(values: object, where: str = "a table") -> Device:
        """A device from a table as JSON holds it, checked; other keys are notes.

        Raises PatternValueError that names what is missing or wrong.
        """
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise PatternValueError(
                f"{where}: not a table of a device, whose schema is {SCHEMA!r}; "
                "patterncc bench cost --json makes one of this machine"
            )
        missing = [k for k in Device.__dataclass_fields__ if k not in values]
        if missing:
            raise PatternValueError(f"{where}: {', '.join(missing)} missing")
        wrong = [k for k, check in _CHECKS.items() if not check(values[k])]
        if wrong:
            raise PatternValueError(f"{where}: {wrong[0]} cannot be {values[wrong[0]]!r}")
        fields = {k: values[k] for k in Device.__dataclass_fields__}
        fields["sources"], fields["step"] = tuple(values["sources"]), tuple(values["step"])
        for name in ("pair_ns", "dense_pair_ns"):
            fields[name] = {int(k): float(v) for k, v in values[name].items()}
        return Device(**fields)

    def pair(self, head_dim: int, dense: bool = False) -> float:
        """Seconds of one processor for one pair: a line through the head dims of the table."""
        known = self.dense_pair_ns if dense else self.pair_ns
        (a, at), (b, bt) = min(known.items()), max(known.items())
        slope = (bt - at) / (b - a) if b > a else at / a
        return max(at + slope * (head_dim - a), at * 0.25) * 1e-9


def _text(x: object) -> bool:
    return isinstance(x, str) and bool(x)


def _number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < float("inf")


def _positive(x: object) -> bool:
    return _number(x) and x != 0


def _whole(x: object) -> bool:
    return _positive(x) and isinstance(x, int)


def _by_head_dim(x: object) -> bool:
    return (
        isinstance(x, dict)
        and bool(x)
        and all(k.isdigit() and int(k) for k in x)
        and (all(map(_positive, x.values())))
    )


_CHECKS: dict[str, Callable[[object], bool]] = {
    "target": _text,
    "device": _text,
    "measured": lambda x: isinstance(x, bool),
    "basis": _text,
    "sources": lambda x: isinstance(x, list) and all(map(_text, x)),
    "dtype": _text,
    "bytes_per_value": _whole,
    "processors": _whole,
    "pair_ns": _by_head_dim,
    "dense_pair_ns": _by_head_dim,
    "step": lambda x: isinstance(x, list) and len(x) == 2 and all(map(_whole, x)),
    "tile_pairs": _number,
    "run_pairs": _number,
    "row_pairs": _number,
    "mask_share": lambda x: (
        isinstance(x, dict) and set(x) == set(MASKS) and all(map(_number, x.values()))
    ),
    "bytes_per_second": _positive,
    "call_ns": _number,
}
"""What each key of a table may hold."""


def targets() -> tuple[str, ...]:
    """The devices that have a table.

    >>> "sm_90" in targets()
    True
    """
    return tuple(sorted(p.stem for p in TABLES.glob("*.json")))


def device(target: str | Device) -> Device:
    """The table of a target; of an unknown GPU that of the nearest older one, else the oldest.

    target: "cpu", "sm_80", ..., or the path of a table that `patterncc bench cost --json` made; a
    table itself is given back.

    >>> device("sm_90").processors, device("sm_90a").target, device("sm_120").target
    (132, 'sm_90', 'sm_100')

    Raises PatternValueError for what names no device, or a file that is no table.
    """
    if isinstance(target, Device):
        return target
    return _of_file(target) if target.endswith(".json") else _known(target)


@lru_cache(maxsize=16)
def _known(target: str) -> Device:
    """A table that comes along; read once."""
    known = targets()
    name = target if target in known else _nearest(target, known)
    return Device.of(json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8")))


def _of_file(path: str) -> Device:
    """A table of the user's own, by itself or within what `patterncc bench cost --json` prints."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError("it is too large")
        values = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise PatternValueError(f"target {path!r}: cannot read the table: {error}") from None
    if isinstance(values, dict) and "table" in values:
        values = values["table"]
    return Device.of(values, path)


def _nearest(target: str, known: tuple[str, ...]) -> str:
    digits = "".join(c for c in target.removeprefix("sm_") if c.isdigit())
    if not target.startswith("sm_") or not digits:
        raise PatternValueError(
            f"target {target!r} is not a device; write {joined(known)}, or the path of a table"
        )
    versions = sorted(int(k.removeprefix("sm_")) for k in known if k.startswith("sm_"))
    below = [v for v in versions if v <= int(digits)]
    return f"sm_{below[-1] if below else versions[0]}"
