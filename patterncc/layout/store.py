"""Layout files: safetensors of int32 with text metadata, written whole and checked when read."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from patterncc.errors import LayoutError
from patterncc.layout.checks import check
from patterncc.layout.layout import Layout, Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SCHEMA = "patterncc.layout/1"

MAX_HEADER = 2**20  # bytes of the file's header

NAMES = ("head_pattern", "row_ptr", "row_run", "col_ptr", "col_run", "zones", "bits")
NUMBERS = ("n", "n_k", "q_offset", "k_offset")
TEXTS = ("schema", "pattern", "hash", "block", "edges", *NUMBERS)


def save(layout: Layout, path: str | Path) -> None:
    """Write a layout file; a reader never sees half of one.

    Raises LayoutError when the file cannot be written.
    """
    metadata = {
        "schema": SCHEMA,
        "pattern": layout.pattern,
        "hash": layout.hash,
        "block": " ".join(map(str, layout.block)),
        "edges": " ".join(map(str, layout.edges)),
        **{name: str(getattr(layout, name)) for name in NUMBERS},
    }
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(_parts(layout.arrays, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else can read
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise LayoutError(f"cannot write the layout to {target}: {error.strerror}") from None


def _parts(arrays: dict[str, NDArray[np.int32]], metadata: dict[str, str]) -> Iterator[bytes]:
    """The file in pieces.  Written here, not by the safetensors package: its order of metadata
    changes from file to file, and equal layouts shall be equal files."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        shape = list(array.shape)
        header[name] = {"dtype": "I32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for array in arrays.values():
        yield np.ascontiguousarray(array, dtype="<i4").tobytes()


def load(path: str | Path) -> Layout:
    """Read a layout file and check sizes, shapes, ranges, both directions, counts and hash before
    use.

    Raises LayoutError, with the file and what is wrong in it.
    """
    source = Path(path)
    try:
        return _load(source)
    except OSError as error:
        raise LayoutError(f"cannot read the layout {source}: {error.strerror}") from None
    except (LayoutError, SafetensorError) as error:
        raise LayoutError(f"{source} is not a sound layout file: {error}") from None


def _load(path: Path) -> Layout:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _header(file.read(8 + MAX_HEADER), size)
        metadata = _metadata(header)
        _tensors(header)
        file.seek(0)
        tensors = {name: a.copy() for name, a in parse(file.read(size)).items()}  # writable
    edges = _numbers("edges", metadata["edges"])
    block = _numbers("block", metadata["block"])
    n, n_k, q_offset, k_offset = (_number(name, metadata[name]) for name in NUMBERS)
    if len(block) != 2 or min(block) < 1:
        raise LayoutError(f"block is {metadata['block']!r}; two positive numbers stand there")
    layout = Layout(
        n=n,
        n_k=n_k,
        q_offset=q_offset,
        k_offset=k_offset,
        block=(block[0], block[1]),
        head_pattern=tensors["head_pattern"],
        rows=Runs(-(-n // block[0]), tensors["row_ptr"], tensors["row_run"]),
        cols=Runs(-(-n_k // block[1]), tensors["col_ptr"], tensors["col_run"]),
        zones=tensors["zones"],
        bits=tensors["bits"].view(np.uint32),
        edges=edges,
        pattern=metadata["pattern"],
    )
    check(layout)
    if layout.hash != metadata["hash"]:
        raise LayoutError(
            f"its contents have hash {layout.hash[:16]}, it says {metadata['hash'][:16]}: "
            "it was altered"
        )
    return layout


def _header(beginning: bytes, size: int) -> dict[str, Any]:
    """The parsed header, after its length and that of the file have been compared."""
    length = int.from_bytes(beginning[:8], "little")
    if len(beginning) < 8 or length > min(MAX_HEADER, size - 8):
        raise LayoutError(f"its header does not fit in the file of {size} bytes")
    try:
        header = json.loads(beginning[8 : 8 + length])
    except (ValueError, RecursionError):
        raise LayoutError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise LayoutError("its header is not a JSON object")
    if set(header) != {"__metadata__", *NAMES}:
        raise LayoutError(f"it holds {sorted(header)}; a layout holds {sorted(NAMES)} and metadata")
    if 8 + length + max(_end(header[name]) for name in NAMES) != size:
        raise LayoutError(f"the file has {size} bytes; its header describes another length")
    return header


def _end(tensor: object) -> int:
    """Where a tensor's bytes end, or -1 where its entry does not say."""
    match tensor:
        case {"data_offsets": [int(), int(end)]}:
            return end
        case _:
            return -1


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header["__metadata__"]
    if not isinstance(metadata, dict) or metadata.get("schema") != SCHEMA:
        found = metadata.get("schema") if isinstance(metadata, dict) else None
        raise LayoutError(f"its schema is {found!r}, not {SCHEMA!r}; compile the pattern again")
    if set(metadata) != set(TEXTS) or not all(isinstance(v, str) for v in metadata.values()):
        raise LayoutError(f"its metadata has {sorted(metadata)}; a layout has {sorted(TEXTS)}")
    return {name: str(value) for name, value in metadata.items()}


def _tensors(header: dict[str, Any]) -> None:
    for name in NAMES:
        tensor = header[name]
        if not isinstance(tensor, dict) or tensor.get("dtype") != "I32":
            raise LayoutError(f"{name} is not a tensor of int32")


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise LayoutError(f"{name} is {text!r}, not a number")
    return int(text)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    return tuple(_number(name, part) for part in text.split(" ")[: 2**16])
