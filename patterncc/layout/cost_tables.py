"""What each device can do: small tables of figures, measured or published, read from JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from patterncc.errors import PatternValueError

TABLES = Path(__file__).parent / "tables"
SCHEMA = "patterncc.device/1"
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
    def of(values: dict[str, object]) -> Device:
        """A device from a table as JSON holds it; keys it does not know are notes."""
        fields = {k: values[k] for k in Device.__dataclass_fields__}
        fields["sources"] = tuple(values["sources"])  # type: ignore[arg-type]
        fields["step"] = tuple(values["step"])  # type: ignore[arg-type]
        for name in ("pair_ns", "dense_pair_ns"):
            fields[name] = {int(k): v for k, v in values[name].items()}  # type: ignore[attr-defined]
        return Device(**fields)  # type: ignore[arg-type]

    def pair(self, head_dim: int, dense: bool = False) -> float:
        """Seconds of one processor for one pair: a line through the head dims of the table."""
        known = self.dense_pair_ns if dense else self.pair_ns
        (a, at), (b, bt) = min(known.items()), max(known.items())
        slope = (bt - at) / (b - a) if b > a else at / a
        return max(at + slope * (head_dim - a), at * 0.25) * 1e-9


def targets() -> tuple[str, ...]:
    """The devices that have a table.

    >>> "sm_90" in targets()
    True
    """
    return tuple(sorted(p.stem for p in TABLES.glob("*.json")))


@lru_cache(maxsize=16)
def device(target: str) -> Device:
    """The table of a target; of an unknown GPU that of the nearest older one, else the oldest.

    >>> device("sm_90").processors, device("sm_90a").target, device("sm_99").target
    (132, 'sm_90', 'sm_90')

    Raises PatternValueError for what names no device.
    """
    known = targets()
    name = target if target in known else _nearest(target, known)
    values = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return Device.of(values)


def _nearest(target: str, known: tuple[str, ...]) -> str:
    digits = "".join(c for c in target.removeprefix("sm_") if c.isdigit())
    if not target.startswith("sm_") or not digits:
        raise PatternValueError(
            f"target {target!r} is not a device; write cpu, sm_80, sm_90 or sm_100"
        )
    versions = sorted(int(k.removeprefix("sm_")) for k in known if k.startswith("sm_"))
    below = [v for v in versions if v <= int(digits)]
    return f"sm_{below[-1] if below else versions[0]}"
