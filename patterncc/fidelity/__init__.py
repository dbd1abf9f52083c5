"""How close a pretrained model stays to itself when patterns take the place of its attention."""

from patterncc.fidelity.model import Pretrained, open_model
from patterncc.fidelity.result import Candidate, Fidelity, Foreseen, Row, Spread
from patterncc.fidelity.run import fidelity
from patterncc.fidelity.texts import (
    NAMED,
    Sequences,
    Text,
    default_text,
    named_text,
    read_text,
    sequences,
)

__all__ = [
    "Pretrained",
    "open_model",
    "Text",
    "read_text",
    "named_text",
    "default_text",
    "NAMED",
    "Sequences",
    "sequences",
    "Candidate",
    "fidelity",
    "Fidelity",
    "Foreseen",
    "Row",
    "Spread",
]
