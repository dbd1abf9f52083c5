"""From a native plan to its C++ source: text to text, pure."""

from __future__ import annotations

import hashlib
import textwrap
from dataclasses import fields
from typing import assert_never

from patterncc.kernels.native.backward import backward
from patterncc.kernels.native.forward import forward
from patterncc.kernels.native.plan import NativePlan


def emit(plan: NativePlan) -> str:
    """The source of one kernel: a header that names the plan and the hash, then the code."""
    match plan.kind:
        case "forward":
            body = forward(plan)
        case "backward":
            body = backward(plan)
        case _:
            assert_never(plan.kind)
    values = ", ".join(f"{f.name} {getattr(plan, f.name)}" for f in fields(plan))
    named = textwrap.fill(
        f"patterncc {plan.kind}: {values}", 96, initial_indent="// ", subsequent_indent="//     "
    )
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    return f"{named}\n// source {digest}\n\n{body}"
