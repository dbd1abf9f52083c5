"""Tables of a layout as one tensor, so that a traced graph has few inputs and never looks at sizes.

Tracing tells sizes 0 and 1 from all others, and a layout of one mask is traced once more than one
of two.  In a bundle every table is bytes of one long tensor, and a small tensor in the host's
memory says where each lies; ops take it apart when they run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.int32, torch.int64, torch.bool, torch.uint8)
ALIGNED = 256  # bytes at which tables begin: loads by 16 bytes stay possible
RANK = 4
LEAST = 4 * ALIGNED  # bytes, so that the length is never 0 or 1


def bundled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Two tensors that hold all: places, int64 [tables, 2 + RANK] in the host's memory, and bytes.

    A place is a dtype's number, where the table begins in units of `ALIGNED`, and its shape, -1
    after its last axis.

    >>> parts = [torch.arange(3, dtype=torch.int32), torch.zeros(0, 2, dtype=torch.bool)]
    >>> [x.shape for x in bundled(parts)]
    [torch.Size([2, 6]), torch.Size([1024])]
    """
    rows, end = [], 0
    for x in tensors:
        rows.append([DTYPES.index(x.dtype), end, *x.shape, *[-1] * (RANK - x.dim())])
        end += -(-x.numel() * x.element_size() // ALIGNED)
    data = torch.zeros(max(LEAST, end * ALIGNED), dtype=torch.uint8, device=tensors[0].device)
    places = torch.tensor(rows, dtype=torch.int64)
    for x, part in zip(tensors, taken_apart([places, data]), strict=True):
        part.copy_(x)
    return [places, data]


def taken_apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tables again, views of the bytes; tensors that are no bundle as they are."""
    if tensors[-1].dtype != torch.uint8:
        return list(tensors)
    places, data = tensors
    parts = []
    for kind, start, *sides in places.tolist():
        shape, dtype = [s for s in sides if s >= 0], DTYPES[kind]
        first = start * ALIGNED
        size = math.prod(shape) * dtype.itemsize
        parts.append(data[first : first + size].view(dtype).view(shape))
    return parts
