"""What lint says: a stable code, how bad it is, a sentence, and the remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
WORST_FIRST: tuple[Severity, ...] = ("error", "warning", "note")

SEVERITY: dict[str, Severity] = {
    "PCC101": "error",  # a layer without edges
    "PCC102": "warning",  # queries that read no key
    "PCC103": "warning",  # keys that no query reads
    "PCC104": "error",  # a layer or head that reads the future
    "PCC105": "warning",  # never full
    "PCC106": "note",  # shallower than the depth to full
    "PCC107": "warning",  # a part of a union that adds no edge
    "PCC108": "note",  # a part of an intersection that cuts nothing
    "PCC109": "warning",  # tokens that never mix
    "PCC110": "note",  # a relay under causal masking that relays nothing
    "PCC111": "note",  # heads that share keys and values disagree
    "PCC112": "note",  # tiles computed past the last token
    "PCC113": "note",  # tiles nearly empty
    "PCC114": "note",  # what was too large to be looked at
}
"""An error is surely broken, a warning probably not meant, a note costs or limits something."""


@dataclass(frozen=True)
class Finding:
    """One thing found: a stable code, how bad it is, a sentence, and the remedy.

    Only errors make `patterncc check` fail.
    """

    code: str
    severity: Severity
    message: str
    remedy: str

    @staticmethod
    def of(code: str, message: str, remedy: str) -> Finding:
        """A finding with its code's severity."""
        return Finding(code, SEVERITY[code], message, remedy)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}\n    {self.remedy}"
