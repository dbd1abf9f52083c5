"""The one argument of a native kernel: a C struct, and the same struct for ctypes.

Strides count elements; the last axis of every tensor is contiguous.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

CType = Literal[
    "const void *",
    "void *",
    "const int32_t *",
    "int32_t *",
    "const float *",
    "float *",
    "long",
    "float",
    "team",
]
Field = tuple[str, CType]

TEAM = "void (*team)(void (*)(void *), void *, unsigned, unsigned)"

INPUTS: tuple[Field, ...] = (
    ("q", "const void *"),
    ("k", "const void *"),
    ("v", "const void *"),
    *((f"{x}_{axis}", "long") for x in "qkv" for axis in ("batch", "head", "row")),
)
"""Queries, keys and values, `[batch, heads, length, columns]`, and their strides."""

LAYOUT: tuple[Field, ...] = (
    ("head_pattern", "const int32_t *"),  # [sequences * listed]
    ("ptr", "const int32_t *"),  # [patterns * lines + 1]
    ("run", "const int32_t *"),  # [runs, 3]: first tile, tiles, mask word
    ("zones", "const int32_t *"),  # [zone_count, 4, 6]
    ("bits", "const int32_t *"),  # [count, tile_q, words]
    ("order", "const int32_t *"),  # [patterns, lines]: the lines of a pattern, longest first
    *(
        (name, "long")
        for name in (
            "batch",
            "heads",
            "key_heads",
            "n",
            "n_k",
            "q_offset",
            "k_offset",
            "tile_q",
            "tile_k",
            "lines",
            "listed",
            "sequences",
            "zone_count",
            "words",
        )
    ),
)
"""The layout's tables and sizes; `ptr`, `run`, `order` and `lines` of rows or of columns."""

SCORE: tuple[Field, ...] = (
    ("scale", "float"),
    ("softcap", "float"),
    ("slopes", "const float *"),  # [heads]
    ("bias", "const float *"),  # [heads, 2 reach + 1]
    ("sinks", "const float *"),  # [heads]
    ("keys", "const void *"),  # [batch, n_k], bytes: 1 may be read
    ("query_at", "const int32_t *"),  # [n], tokens at slots
    ("key_at", "const int32_t *"),  # [n_k]
    ("reach", "long"),
)
"""The options of a score; pointers that a plan does not use are null."""

SHARED: tuple[Field, ...] = (("items", "long"), ("threads", "long"), ("team", "team"))
"""How the work is shared; `team` runs a function on all threads of torch's pool, or is null."""

_CTYPES = {"long": ctypes.c_long, "float": ctypes.c_float}


def struct_text(fields: Sequence[Field]) -> str:
    """The C declaration.

    >>> print(struct_text((("q", "const void *"), ("n", "long"))))
    struct Call {
        const void *q;
        long n;
    };
    """
    lines = [
        TEAM if kind == "team" else f"{kind}{'' if '*' in kind else ' '}{name}"
        for name, kind in fields
    ]
    return "\n".join(["struct Call {", *(f"    {line};" for line in lines), "};"])


def struct_type(fields: Sequence[Field]) -> type[ctypes.Structure]:
    """The same struct for ctypes; every pointer is an address."""
    listed = [(name, _CTYPES.get(kind, ctypes.c_void_p)) for name, kind in fields]
    return type("Call", (ctypes.Structure,), {"_fields_": listed})
