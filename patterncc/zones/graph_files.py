"""Graph files: what is read, what is refused, and how large they may be.

A file is an existing regular file of at most `FILE_LIMIT` bytes with at most `EDGE_LIMIT` edges:

    .npz                  as scipy.sparse.save_npz writes it (csr, csc or coo), or two integer
                          arrays named rows and cols (or i and j); nothing is unpickled
    .graphml              node ids are integers; an undirected edge reads both ways
    .txt .edges .edgelist .csv .tsv
                          two integers a line, "query key"; '#' starts a comment
"""

from __future__ import annotations

import io
import os
import stat
import warnings
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

FILE_LIMIT = 2**29
"""Bytes of a graph file, and of the arrays that an .npz file unpacks to."""
EDGE_LIMIT = 2**25
"""Edges of one graph."""

_TEXT = (".txt", ".edges", ".edgelist", ".csv", ".tsv")


def allow_edges(count: int, owner: str) -> None:
    """Refuse before allocating a graph of more than `EDGE_LIMIT` edges."""
    if count > EDGE_LIMIT:
        raise SizeError(f"{owner}: {count} edges, more than the limit of {EDGE_LIMIT}")


def read(path: str, owner: str) -> Any:
    """The graph in a file: an int64 array [edges, 2] of (query, key), or a networkx graph.

    Raises PatternValueError for a missing, irregular or malformed file; SizeError for a large one.
    """
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PatternValueError(f"{owner}: cannot read {path!r}: {reason}") from None
    if not stat.S_ISREG(info.st_mode):
        raise PatternValueError(f"{owner}: {path!r} is not a regular file")
    if info.st_size > FILE_LIMIT:
        raise SizeError(
            f"{owner}: {path!r} has {info.st_size} bytes, more than {FILE_LIMIT}; "
            "pass the graph as an array in Python"
        )
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".npz", ".graphml", *_TEXT):
        raise PatternValueError(
            f"{owner}: {kind or 'no ending'} is not a known kind of file; "
            f"known: .npz, .graphml, {', '.join(_TEXT)}"
        )
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise PatternValueError(f"{owner}: cannot read {path!r}: {error.strerror}") from None
    if kind == ".npz":
        return _from_npz(data, owner)
    return _from_graphml(data, owner) if kind == ".graphml" else _from_text(data, owner)


def _from_text(data: bytes, owner: str) -> I64:
    allow_edges(data.count(b"\n"), owner)
    try:
        lines = data.decode("utf-8").replace(",", " ").splitlines()
    except UnicodeDecodeError as error:
        raise PatternValueError(f"{owner}: not UTF-8 text at byte {error.start}") from None
    if not any(line.partition("#")[0].strip() for line in lines):
        return np.zeros((0, 2), dtype=np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # 1.5 for an integer is only a warning
            pairs = np.loadtxt(lines, dtype=np.int64, comments="#", ndmin=2)
        if pairs.shape[1] == 2:
            return pairs
    except (ValueError, OverflowError, Warning):
        pass
    number, line = _first_wrong_line(lines)
    raise PatternValueError(
        f"{owner}: line {number} is {line[:60]!r}; each line is two integers, 'query key'"
    )


def _first_wrong_line(lines: list[str]) -> tuple[int, str]:
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words and not (len(words) == 2 and all(_is_int64(word) for word in words)):
            return number, line
    return 1, lines[0]


def _is_int64(word: str) -> bool:
    try:
        return -(2**63) <= int(word) < 2**63
    except ValueError:
        return False


def _from_graphml(data: bytes, owner: str) -> Any:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise PatternValueError(
            f"{owner}: GraphML with a document type, entities or wide characters is refused; "
            "write it with networkx.write_graphml"
        )
    import networkx  # here, since it takes longer to load than most patterns to lower

    try:
        graph = networkx.read_graphml(io.BytesIO(data))
    except Exception as error:  # the XML parser and networkx raise many kinds
        raise PatternValueError(f"{owner}: not a GraphML file: {error}") from None
    names = {}
    for node in graph:
        if not (isinstance(node, str) and node.isdecimal() and _is_int64(node)):
            raise PatternValueError(
                f"{owner}: node id {node!r} is not a position; number the nodes 0 .. n - 1, for "
                "instance with networkx.convert_node_labels_to_integers"
            )
        names[node] = int(node)
    return networkx.relabel_nodes(graph, names)


def _from_npz(data: bytes, owner: str) -> I64:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = _read_arrays(archive, owner)
    except PatternError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise PatternValueError(f"{owner}: not a readable .npz file: {error}") from None
    for query, key in (("rows", "cols"), ("i", "j")):
        if query in arrays and key in arrays:
            return _ends(arrays[query], arrays[key], owner)
    if "format" in arrays:
        return _sparse(arrays, owner)
    raise PatternValueError(
        f"{owner}: holds {joined(arrays) or 'no arrays'}; needs rows and cols, i and j, or what "
        "scipy.sparse.save_npz writes"
    )


def _read_arrays(archive: zipfile.ZipFile, owner: str) -> dict[str, NDArray[Any]]:
    """Every .npy member; declared sizes are checked before anything is unpacked."""
    members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
    size = sum(m.file_size for m in members)
    if size > FILE_LIMIT:
        raise SizeError(f"{owner}: unpacks to {size} bytes, more than {FILE_LIMIT}")
    arrays = {}
    for member in members:
        with archive.open(member) as file:
            arrays[member.filename[:-4]] = _read_array(file.read(FILE_LIMIT + 1), owner)
    return arrays


def _read_array(data: bytes, owner: str) -> NDArray[Any]:
    """One .npy file: a header and plain numbers, as many as the header says."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(file)
    except ValueError as error:
        raise PatternValueError(f"{owner}: a damaged array: {error}") from None
    count, held = int(np.prod(shape, dtype=object)), len(data) - file.tell()
    if dtype.hasobject or dtype.names or dtype.itemsize == 0 or count * dtype.itemsize != held:
        raise PatternValueError(
            f"{owner}: an array declares {count} entries of {dtype} and holds {held} bytes; "
            "only plain numbers are read"
        )
    array = np.frombuffer(data, dtype=dtype, count=count, offset=file.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def _sparse(arrays: dict[str, NDArray[Any]], owner: str) -> I64:
    """What scipy.sparse.save_npz wrote; checked here, since scipy trusts index pointers."""
    kind = arrays["format"].reshape(-1)[:1].tolist()
    name = kind[0].decode("ascii", "replace") if kind and isinstance(kind[0], bytes) else str(kind)
    wanted = ("row", "col") if name == "coo" else ("indptr", "indices")
    if name not in ("csr", "csc", "coo") or any(x not in arrays for x in (*wanted, "data")):
        raise PatternValueError(f"{owner}: a sparse matrix of format {name}; save it as csr or coo")
    data = arrays["data"]
    if name == "coo":
        pairs = _ends(arrays["row"], arrays["col"], owner)
    else:
        pointer, index = arrays["indptr"], arrays["indices"]
        for array in (pointer, index):
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise PatternValueError(f"{owner}: indptr and indices must be integers")
        counts = pointer[1:].astype(np.int64) - pointer[:-1].astype(np.int64)
        if not len(pointer) or pointer[0] != 0 or pointer[-1] != len(index) or (counts < 0).any():
            raise PatternValueError(f"{owner}: indptr does not ascend from 0 to the edge count")
        allow_edges(len(index), owner)
        line = np.repeat(np.arange(len(counts)), counts)
        pairs = _ends(line, index, owner) if name == "csr" else _ends(index, line, owner)
    if data.shape != (len(pairs),) or data.dtype.kind not in "biufc":
        raise PatternValueError(
            f"{owner}: {len(pairs)} edges and weights {data.dtype} {list(data.shape)}"
        )
    kept: NDArray[np.bool_] = data != 0
    return pairs[kept]


def _ends(query: NDArray[Any], key: NDArray[Any], owner: str) -> I64:
    """Two integer arrays of one length as pairs."""
    for array in (query, key):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise PatternValueError(
                f"{owner}: queries and keys are integers in one dimension, not "
                f"{array.dtype} {list(array.shape)}"
            )
    if len(query) != len(key):
        raise PatternValueError(f"{owner}: {len(query)} queries and {len(key)} keys; give pairs")
    allow_edges(len(query), owner)
    return np.stack([query.astype(np.int64), key.astype(np.int64)], axis=1)
