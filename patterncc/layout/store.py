"""Layout files: safetensors of int32 with text metadata, written whole and checked when read.

The tensors are `Layout.arrays` by name, those of further terms as `1.rows_ptr` and so on; where
keys stand in the order of the queries, `order_keys` is left out.  The metadata says the sizes, and
for each term its block, its edges, its pattern's text and the name of its order.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from patterncc.errors import LayoutError
from patterncc.layout.checks import check
from patterncc.layout.layout import Layout, Runs
from patterncc.zones.orders.order import Order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.int32]]

KIND, VERSION = "patterncc.layout", 2
SCHEMA = f"{KIND}/{VERSION}"

MAX_HEADER = 2**22  # bytes of the file's header

NAMES = ("head_pattern", "row_ptr", "row_run", "col_ptr", "col_run", "zones", "bits")
NUMBERS = ("n", "n_k", "q_offset", "k_offset", "sequences")
TEXTS = ("pattern", "block", "edges")  # of a term; and "order"


def save(layout: Layout, path: str | Path) -> None:
    """Write a layout file; a reader never sees half of one.

    Raises LayoutError when the file cannot be written, and for a layout with positions of its own.
    """
    if layout.positions is not None:
        raise LayoutError(
            f"the layout of {layout.pattern[:100]} has positions for each sequence, which files do "
            "not hold; keep cu_seqlens and cu_seqlens_k and compile it again"
        )
    tensors, metadata = _contents(layout)
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(_parts(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else can read
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise LayoutError(f"cannot write the layout to {target}: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the path, say
        raise LayoutError(f"cannot write the layout to {str(target)!r}: {error}") from None


def _contents(layout: Layout) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of all terms."""
    metadata = {"schema": SCHEMA, "hash": layout.hash}
    metadata |= {name: str(getattr(layout, name)) for name in NUMBERS}
    tensors: Tensors = {}
    for number, term in enumerate(layout.terms):
        texts = {
            "pattern": term.pattern,
            "block": " ".join(map(str, term.block)),
            "edges": " ".join(map(str, term.edges)),
        }
        if term.order is not None:
            texts["order"] = term.order.name
        tensors |= {_name(number, name): array for name, array in term.arrays.items()}
        metadata |= {_name(number, name): text for name, text in texts.items()}
    return tensors, metadata


def _name(term: int, name: str) -> str:
    """What a tensor or text of a term is called in a file."""
    return f"{term}.{name}" if term else name


def _parts(tensors: Tensors, metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The file in pieces.  Written here, not by the safetensors package: its order of metadata
    changes from file to file, and equal layouts shall be equal files."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        shape = list(array.shape)
        header[name] = {"dtype": "I32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise LayoutError(
            f"the layout's header has {len(text)} bytes, more than {MAX_HEADER}: it has too many "
            "patterns for a file; save fewer sequences"
        )
    yield len(text).to_bytes(8, "little")
    yield text
    for array in tensors.values():
        yield np.ascontiguousarray(array, dtype="<i4").reshape(-1).data


def load(path: str | Path) -> Layout:
    """Read a layout file and check sizes, shapes, ranges, both directions, orders, counts and hash
    before use.

    Raises LayoutError, with the file and what is wrong in it.
    """
    source = Path(path)
    try:
        if source.exists() and not source.is_file():  # opening a pipe would wait for a writer
            raise LayoutError("it is a folder, a pipe or a device")
        with source.open("rb") as file:
            return _load(file, source.stat().st_size)
    except OSError as error:
        raise LayoutError(f"cannot read the layout {source}: {error.strerror}") from None
    except LayoutError as error:
        raise LayoutError(f"{source} is not a sound layout file: {error}") from None
    except ValueError as error:  # a zero byte in the path, say
        raise LayoutError(f"cannot read the layout {str(source)!r}: {error}") from None


def _load(file: BinaryIO, size: int) -> Layout:
    header, start = _header(file, size)
    metadata, version = _metadata(header.pop("__metadata__", None))
    terms = sum(name.rpartition(".")[2] == NAMES[0] for name in header)
    _check_names(header, metadata, terms)
    numbers = {name: _number(name, metadata[name]) for name in NUMBERS}
    tensors = _tensors(file, header, size - start)
    each = [_term(number, tensors, metadata, numbers) for number in range(terms)]
    layout = replace(each[0], rest=tuple(each[1:])) if terms > 1 else each[0]
    check(layout)
    first = version == 1 and layout.order is None and not layout.rest
    found = _first_hash(layout) if first else layout.hash
    if found != metadata["hash"]:
        raise LayoutError(
            f"its contents have hash {found[:16]}, it says {metadata['hash'][:16]}: it was altered"
        )
    return layout


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the tensors begin."""
    beginning = file.read(8)
    length = int.from_bytes(beginning, "little")
    if len(beginning) < 8 or length > min(MAX_HEADER, size - 8):
        raise LayoutError(f"its header does not fit in the file of {size} bytes")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise LayoutError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise LayoutError("its header is not a JSON object")
    return header, 8 + length


def _metadata(metadata: object) -> tuple[dict[str, str], int]:
    """The texts of the file, and the version of its schema; one of version 1 is completed."""
    schema = metadata.get("schema") if isinstance(metadata, dict) else None
    kind, _, number = str(schema).partition("/")
    version = int(number) if kind == KIND and re.fullmatch("[1-9][0-9]{0,8}", number) else 0
    if version > VERSION:
        raise LayoutError(
            f"its schema is {schema!r}, newer than {SCHEMA!r}, the newest that this version of "
            "patterncc reads; update patterncc, or compile the pattern again"
        )
    if not version or not isinstance(metadata, dict):
        raise LayoutError(f"its schema is {schema!r}, not {SCHEMA!r}; compile the pattern again")
    if version == 1:
        metadata = {**metadata, "sequences": "1"}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise LayoutError("its metadata has entries that are not text; compile the pattern again")
    return metadata, version


def _check_names(header: dict[str, Any], metadata: dict[str, str], terms: int) -> None:
    """The header holds the tensors and the texts of so many terms, and nothing else."""
    tensors: set[str] = set()
    texts = {"schema", "hash", *NUMBERS}
    for number in range(max(1, terms)):
        own, told = set(NAMES), set(TEXTS)
        if _name(number, "order") in metadata:
            told.add("order")
            own |= {
                "order_queries",
                *({"order_keys"} if _name(number, "order_keys") in header else ()),
            }
        tensors |= {_name(number, name) for name in own}
        texts |= {_name(number, name) for name in told}
    for what, found, wanted in (
        ("tensors", set(header), tensors),
        ("metadata", set(metadata), texts),
    ):
        if found != wanted:
            wrong = min(found ^ wanted)
            verb = "lacks" if wrong in wanted else "has"
            raise LayoutError(f"its {what} {verb} {wrong!r}; a layout's are {sorted(wanted)}")


def _tensors(file: BinaryIO, header: dict[str, Any], length: int) -> Tensors:
    """The tensors, views of one array, after shapes and places were compared with the length."""
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for first, last, _ in sorted(places.values()):
        if first != end:
            raise LayoutError("its tensors overlap or leave gaps")
        end = last
    if end != length:
        raise LayoutError(f"its tensors have {length} bytes; its header describes {end}")
    data = np.empty(length // 4, dtype="<i4")
    if file.readinto(data.data) != length:  # type: ignore[attr-defined]
        raise LayoutError("the file became shorter while it was read")
    native = data.astype(np.int32, copy=False)
    return {
        name: native[first // 4 : last // 4].reshape(shape)
        for name, (first, last, shape) in places.items()
    }


def _place(name: str, entry: object) -> tuple[int, int, tuple[int, ...]]:
    """Where a tensor's bytes begin and end, and its shape, which fills them."""
    match entry:
        case {"dtype": "I32", "shape": [*shape], "data_offsets": [int(first), int(last)], **rest}:
            sound = not rest and len(shape) <= 3
            sound &= all(type(x) is int and 0 <= x < 2**31 for x in shape)
            if sound and last - first == 4 * math.prod(shape):
                return first, last, tuple(shape)
    raise LayoutError(f"{name} is not a tensor of int32 whose shape fills its bytes")


def _term(
    number: int, tensors: Tensors, metadata: dict[str, str], numbers: dict[str, int]
) -> Layout:
    """One term of the file, not yet checked."""

    def of(name: str) -> NDArray[np.int32]:
        return tensors[_name(number, name)]

    def told(name: str) -> str:
        return metadata[_name(number, name)]

    block = _numbers("block", told("block"))
    if len(block) != 2 or min(block) < 1:
        raise LayoutError(f"block is {told('block')!r}; two positive numbers stand there")
    order = None
    if _name(number, "order") in metadata:
        keys = tensors.get(_name(number, "order_keys"), of("order_queries"))
        order = Order(told("order"), of("order_queries"), keys)
    return Layout(
        n=numbers["n"],
        n_k=numbers["n_k"],
        q_offset=numbers["q_offset"],
        k_offset=numbers["k_offset"],
        block=(block[0], block[1]),
        head_pattern=of("head_pattern"),
        rows=Runs(-(-numbers["n"] // block[0]), of("row_ptr"), of("row_run")),
        cols=Runs(-(-numbers["n_k"] // block[1]), of("col_ptr"), of("col_run")),
        zones=of("zones"),
        bits=of("bits").view(np.uint32),
        edges=_numbers("edges", told("edges")),
        pattern=told("pattern"),
        sequences=numbers["sequences"],
        order=order,
    )


def _first_hash(layout: Layout) -> str:
    """The hash that files of version 1 hold."""
    numbers = [layout.n, layout.n_k, layout.q_offset, layout.k_offset, *layout.block]
    digest = hashlib.sha256(json.dumps([*numbers, layout.edges, layout.pattern]).encode())
    for array in layout.arrays.values():
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise LayoutError(f"{name} is {text[:40]!r}, not a number")
    return int(text)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    return tuple(_number(name, part) for part in text.split(" "))
