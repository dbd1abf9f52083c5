"""Tables that `patterncc tune` measured on a device, kept in the cache directory.

A table is used on the device it was measured on, with the Triton and the emitted sources it was
measured with, and nowhere else; artifacts never use one.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch

from patterncc.errors import BackendError
from patterncc.kernels.plan import VERSION
from patterncc.kernels.runtime import cache_dir, interpreting, target_of
from patterncc.kernels.tuning.sizes import Key, Table, read, text

log = logging.getLogger("patterncc")

_TRIED: ContextVar[Table | None] = ContextVar("patterncc_sizes", default=None)


def tuned(device: torch.device) -> Table | None:
    """The sizes that kernels on a device run at, where they are not the shipped ones."""
    table = _TRIED.get()
    if table is not None or device.type != "cuda" or interpreting():
        return table
    index = torch.cuda.current_device() if device.index is None else device.index
    return _of_device(index)


@contextmanager
def running_at(table: Table) -> Iterator[None]:
    """Kernels launched within, by this thread, run at the sizes of a table."""
    token = _TRIED.set(table)
    try:
        yield
    finally:
        _TRIED.reset(token)


@cache
def _of_device(index: int) -> Table | None:
    """What is stored for a device, looked up once a process."""
    device = torch.device("cuda", index)
    return usable(path_of(torch.cuda.get_device_name(device)), device)


def usable(path: Path, device: torch.device) -> Table | None:
    """A stored table, or None where there is none for these versions; why is logged."""
    if not path.is_file():
        return None
    try:
        table = read(path, target_of(device))
    except BackendError as error:
        log.warning("%s; the shipped sizes are used", error)
        return None
    here = triton_version(), VERSION
    if (table.triton, table.sources) != here:
        log.warning(
            "%s was measured with Triton %s and sources %d, here are %s and %d: the shipped sizes "
            "are used; run patterncc tune again",
            *(path, table.triton, table.sources, *here),
        )
        return None
    return table


def path_of(device_name: str) -> Path:
    """Where a device's table is kept.

    >>> path_of("NVIDIA H100 80GB HBM3").name
    'nvidia-h100-80gb-hbm3.json'
    """
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    return cache_dir() / "tuned" / f"{'-'.join(words)[:80] or 'device'}.json"


def store(table: Table, path: Path, notes: Mapping[Key, Mapping[str, Any]] | None = None) -> None:
    """Write a table, whole or not at all.

    Raises BackendError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".writing-", delete=False, encoding="utf-8"
        ) as part:
            part.write(text(table, notes))
        os.replace(part.name, path)
    except OSError as error:
        raise BackendError(
            f"{path}: cannot be written: {error.strerror}; set PATTERNCC_CACHE to a directory that "
            "can, or name another file"
        ) from None


def triton_version() -> str:
    """The installed one."""
    from importlib.metadata import version

    return version("triton")
