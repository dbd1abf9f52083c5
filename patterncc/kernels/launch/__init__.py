"""The Triton backend: forward, backward and decode as launches of generated kernels.

The same three functions as `patterncc.kernels.cpu`; `tensors` are those of `tables.kernel_tables`.
Nothing here waits for the device.
"""

from patterncc.kernels.launch.backward import backward
from patterncc.kernels.launch.decode import decode, packed_rows
from patterncc.kernels.launch.forward import forward

__all__ = ["backward", "decode", "forward", "packed_rows"]
