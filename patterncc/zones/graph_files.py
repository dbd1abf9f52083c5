"""Graph files: what is read, what is refused, and how large they may be.

A file is an existing regular file of at most `FILE_LIMIT` bytes with at most `EDGE_LIMIT` edges:

    .npz                  as scipy.sparse.save_npz writes it (csr, csc or coo), or two integer
                          arrays named rows and cols (or i and j); nothing is unpickled
    .graphml              node ids are integers; an undirected edge reads both ways
    .txt .edges .edgelist .csv .tsv
                          two integers a line, "query key"; '#' starts a comment

A third column of a text, and a "weight" in GraphML, are weights: refused unless the caller says
what they mean.
"""

from __future__ import annotations

import io
import os
import stat
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
        raise SizeError(
            f"{owner}: {count} edges, more than the limit of {EDGE_LIMIT}; give the edges of a "
            "part of the tokens, or a pattern that makes them (window, random_blocks, clusters)"
        )


def with_weights(
    row: NDArray[Any], col: NDArray[Any], values: NDArray[Any], owner: str, weights: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The edges that are meant, of edges that carry weights.

    weights: "nonzero" for those whose weight is not 0, "ignore" for all, "refuse" for an error.
    """
    if weights == "refuse":
        raise PatternValueError(
            f"{owner}: the edges carry weights, and an edge of attention is there or not; "
            'pass weights="nonzero" for an edge wherever the weight is not 0, or weights="ignore" '
            "for an edge wherever one is listed"
        )
    for nodes in (row, col):
        if nodes.dtype.kind == "f" and not (np.abs(nodes) < 2**53).all():
            raise PatternValueError(f"{owner}: a node is no finite number")
        if nodes.dtype.kind == "f" and (nodes != np.floor(nodes)).any():
            where = int(np.argmax(nodes != np.floor(nodes)))
            raise PatternValueError(
                f"{owner}: node {nodes[where]} of edge {where} is not an integer; the first two "
                "columns are query and key, the third is the weight"
            )
    row, col = (x.astype(np.int64) if x.dtype.kind == "f" else x for x in (row, col))
    if weights == "ignore":
        return row, col
    if values.dtype.kind not in "biuf" or values.ndim != 1:
        raise PatternValueError(f"{owner}: weights are numbers, not {values.dtype}")
    if np.isnan(values).any():
        where = int(np.argmax(np.isnan(values)))
        raise PatternValueError(
            f"{owner}: the weight of edge {where} is not a number (NaN); give 0 for no edge"
        )
    kept = values != 0
    return row[kept], col[kept]


def read(path: str, owner: str, weights: str | None = None) -> Any:
    """The graph in a file: an integer array [edges, 2] of (query, key), or a networkx graph.

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
        return _from_npz(data, owner, weights)
    return _from_graphml(data, owner) if kind == ".graphml" else _from_text(data, owner, weights)


def _from_text(data: bytes, owner: str, weights: str | None = None) -> NDArray[Any]:
    allow_edges(data.count(b"\n"), owner)
    pairs = _plain_text(data)
    if pairs is not None:
        return pairs
    try:
        lines = data.decode("utf-8").replace(",", " ").splitlines()
    except UnicodeDecodeError as error:
        raise PatternValueError(f"{owner}: not UTF-8 text at byte {error.start}") from None
    number, line = _first_wrong_line(lines, 2 if weights is None else 3)
    if number:
        raise PatternValueError(
            f"{owner}: line {number} is {line[:60]!r}; each line is two integers, 'query key'"
            + _remedy(line, weights)
        )
    words = [line.partition("#")[0].split() for line in lines]
    words = [w for w in words if w]
    pairs = np.array([[int(w[0]), int(w[1])] for w in words], dtype=np.int64).reshape(-1, 2)
    if weights is None or all(len(w) == 2 for w in words):
        return pairs
    values = np.array([float(w[2]) if len(w) > 2 else 1.0 for w in words])
    return np.stack(with_weights(pairs[:, 0], pairs[:, 1], values, owner, weights), axis=1)


def _plain_text(data: bytes) -> NDArray[np.int64] | None:
    """Lines of two short numbers without signs, read all at once; None for any other text.

    A number is placed by where its digits stand, so nothing but arrays as long as the text is made.
    """
    if b"\r" in data.replace(b"\r\n", b"\n"):
        return None
    text = np.frombuffer(data, dtype=np.uint8)
    digit = (text >= ord("0")) & (text <= ord("9"))
    gaps = np.isin(text[~digit], np.frombuffer(b" ,\t\r\n", dtype=np.uint8))
    if not gaps.all():
        return None
    edge = np.diff(digit, prepend=False, append=False)
    ends = np.flatnonzero(edge).reshape(-1, 2)
    lines = np.append(np.flatnonzero(text == ord("\n")), len(text))
    held = np.diff(np.searchsorted(ends[:, 0], lines), prepend=0)
    size = ends[:, 1] - ends[:, 0]
    if not ((held == 0) | (held == 2)).all() or int(size.max(initial=0)) > 18:
        return None
    numbers = np.zeros(len(ends), dtype=np.int64)
    for place in range(int(size.max(initial=0))):
        some = np.flatnonzero(size > place)
        numbers[some] *= 10
        numbers[some] += text[ends[some, 0] + place] - np.uint8(ord("0"))
    return numbers.reshape(-1, 2)


def _first_wrong_line(lines: list[str], most: int) -> tuple[int, str]:
    """Number and text of the first line that is not two integers, or as asked a weight behind them;
    0 where all are."""
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        good = 2 <= len(words) <= most and all(map(_is_int64, words[:2]))
        if words and not (good and all(map(_is_number, words[2:]))):
            return number, line
    return 0, ""


def _remedy(line: str, weights: str | None) -> str:
    words = line.partition("#")[0].split()
    if weights is None and len(words) == 3 and all(map(_is_number, words)):
        return (
            '; a third column is a weight: pass weights="nonzero" for an edge wherever it is not '
            '0, or weights="ignore" for an edge a line'
        )
    if line.rstrip().endswith("}") and "{" in line:
        return (
            "; a third column {...} holds a graph's attributes: write the file with "
            "networkx.write_edgelist(G, path, data=False), or give G itself"
        )
    if not line.isascii() or "_" in line:
        return "; a number is written in the digits 0 to 9"
    return ""


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return _plain(word)


def _plain(word: str) -> bool:
    """Without the underscores and the digits of other scripts that Python reads too."""
    return word.isascii() and "_" not in word


def _is_int64(word: str) -> bool:
    try:
        return _plain(word) and -(2**63) <= int(word) < 2**63
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


def _from_npz(data: bytes, owner: str, weights: str | None = None) -> NDArray[Any]:
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
        return _sparse(arrays, owner, weights)
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


def _sparse(arrays: dict[str, NDArray[Any]], owner: str, weights: str | None) -> NDArray[Any]:
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
    return pairs if weights == "ignore" or kept.all() else pairs[kept]


def _ends(query: NDArray[Any], key: NDArray[Any], owner: str) -> NDArray[Any]:
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
    kind = np.int32 if query.dtype == key.dtype == np.int32 else np.int64
    return np.stack([query, key], axis=1, dtype=kind, casting="unsafe")
