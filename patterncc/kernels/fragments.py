"""Bit masks in the order in which a thread holds a product: bits moved by shifts, never unpacked.

A tile's bits stand row-major in a layout, 32 columns a word.  Kernels want columns in groups of
128, bit 2 t + b of word q of a group being its column 8 t + 2 q + b.  Of the seven binary digits
c6 .. c0 of a column, row-major words are numbered by c6 c5 and their bits by c4 c3 c2 c1 c0; here
words are numbered by c2 c1 and bits by c6 c5 c4 c3 c0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fragment_order(bits: NDArray[np.uint32]) -> NDArray[np.int32]:
    """uint32 [count, rows, words] row-major as int32 [count, rows, 4 x groups of 128 columns].

    >>> bits = np.zeros((1, 1, 1), dtype=np.uint32)
    >>> bits[0, 0, 0] = 1 << 8 + 2 * 3 + 1
    >>> fragment_order(bits)[0, 0].tolist() == [0, 0, 0, 2 ** (2 * 1 + 1)]
    True
    """
    count, rows, words = bits.shape
    groups = -(-words // 4)
    x = np.zeros((count, rows, 4 * groups), dtype="<u4")
    x[..., :words] = bits
    _exchange(x, 12, 0x0000F0F0)  # c4 with c2
    _exchange(x, 6, 0x00CC00CC)  # c3 with c1: a word's bytes are numbered by c2 c1 now
    octets = x.view(np.uint8).reshape(count, rows, groups, 4, 4).swapaxes(-1, -2)
    ordered = np.ascontiguousarray(octets).view("<u4").reshape(count, rows, 4 * groups)
    return ordered.astype(np.uint32, copy=False).view(np.int32)


def _exchange(x: NDArray[np.uint32], shift: int, low: int) -> None:
    """Bits `low` of each word exchanged with those `shift` above them, in place."""
    moved = (x >> np.uint32(shift) ^ x) & np.uint32(low)
    x ^= moved
    x ^= moved << np.uint32(shift)


def on_their_side(bits: NDArray[np.uint32], width: int) -> NDArray[np.uint32]:
    """Tiles turned: uint32 [count, rows, words] of `width` columns as [count, width, ..] of rows.

    Each square of 32 x 32 is turned by exchanging halves, quarters and so on (Hacker's Delight,
    7-3), all squares at once.

    >>> bits = np.array([[[0b01], [0b11]]], dtype=np.uint32)
    >>> on_their_side(bits, 2)[0].tolist()
    [[3], [2]]
    """
    count, rows, words = bits.shape
    squares = -(-rows // 32)
    x = np.zeros((count, squares * 32, words), dtype=np.uint32)
    x[:, :rows] = bits
    half, low = 16, 0x0000FFFF
    while half:
        pairs = x.reshape(count, squares * 16 // half, 2, half, words)
        above, below = pairs[:, :, 0], pairs[:, :, 1]
        moved = (above >> np.uint32(half) ^ below) & np.uint32(low)
        below ^= moved
        above ^= moved << np.uint32(half)
        half //= 2
        low ^= low << half & 0xFFFFFFFF
    turned = x.reshape(count, squares, 32, words).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(turned.reshape(count, words * 32, squares)[:, :width])
