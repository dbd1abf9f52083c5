"""Plan -> Triton source: a pure function of typed numbers and names; neither torch nor triton."""

from patterncc.kernels.emit.kernels import emit, entry

__all__ = ["emit", "entry"]
