"""The CPU backend: forward, backward and decode."""

from patterncc.kernels.cpu.decode import decode
from patterncc.kernels.cpu.run import backward, forward

__all__ = ["backward", "decode", "forward"]
