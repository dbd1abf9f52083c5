"""From a plan to a running kernel: sources in a cache, layouts on a device, launches.

The cache directory is PATTERNCC_CACHE or ~/.cache/patterncc; the environment is read here and
nowhere below.  A source file is named by the hash of its content, written at once or not at all,
and checked against its name before it is imported.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patterncc.errors import BackendError, suggest
from patterncc.kernels.emit import emit, entry
from patterncc.kernels.plan import Plan, Target
from patterncc.kernels.spec import Backend

if TYPE_CHECKING:
    pass

log = logging.getLogger("patterncc")


def cache_dir() -> Path:
    """Where kernels are kept: $PATTERNCC_CACHE, else ~/.cache/patterncc.

    A user without a home has a folder in the system's one for temporary files, which nobody else
    may write to: kernels are loaded from it.
    """
    named = os.environ.get("PATTERNCC_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "patterncc"
    except RuntimeError:  # HOME is not set, and the user is not listed
        return _temporary_cache()


def _temporary_cache() -> Path:
    """A folder in the one for temporary files, of this user alone; else one new in each process."""
    try:
        folder = Path(tempfile.gettempdir()) / f"patterncc-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if own and stat.S_IMODE(found.st_mode) & 0o077 == 0:
            return folder
    except (OSError, AttributeError):  # no system of users, perhaps
        pass
    return _process_cache()


@cache
def _process_cache() -> Path:
    """A folder that lives as long as this process; what is kept in it is not found again."""
    folder = tempfile.TemporaryDirectory(prefix="patterncc-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def native_compiler() -> str | None:
    """The C++ compiler for CPU kernels: $CXX, else the first of c++, g++ and clang++ that is there.

    None without one, or with PATTERNCC_NATIVE=0.
    """
    if _native_off():
        return None
    names = (os.environ.get("CXX") or "c++", "c++", "g++", "clang++")
    return next((path for path in map(shutil.which, names) if path), None)


def _native_off() -> bool:
    return os.environ.get("PATTERNCC_NATIVE", "1").lower() in ("0", "false", "no", "off", "n")


def cpu_kernels() -> str:
    """Whose kernels run on the CPU wherever native ones take a call, and why, in a few words."""
    compiler = native_compiler()
    if compiler is not None:
        return f"native kernels by {compiler}"
    why = "PATTERNCC_NATIVE=0" if _native_off() else "no C++ compiler (c++, g++, clang++ or $CXX)"
    return f"torch's kernels: {why}"


def interpreting() -> bool:
    """Triton runs its kernels in Python (TRITON_INTERPRET=1), on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def save_source(source: str, name: str, directory: Path | None = None) -> Path:
    """Keep a source as ``name-<hash of the text>.py``; an equal file that is there already is kept.

    Raises BackendError when the directory cannot be written.
    """
    folder = directory or cache_dir()
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    path = folder / f"{name}-{digest}.py"
    try:
        if path.exists() and path.read_text(encoding="utf-8") == source:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix=".writing-", suffix=".py", delete=False, encoding="utf-8"
        ) as part:
            part.write(source)
        os.replace(part.name, path)
    except OSError as error:
        raise BackendError(
            f"kernel source {path} cannot be written: {error}; "
            "set PATTERNCC_CACHE to a directory that can"
        ) from None
    return path


def load_source(path: Path, name: str) -> Any:
    """Import a saved source and return its kernel, after checking the text against the file's name.

    Raises BackendError for a file that was altered.
    """
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:24]
    if not path.stem.endswith(f"-{digest}"):
        raise BackendError(f"kernel source {path} does not match its hash; delete it and run again")
    module_name = f"patterncc_generated_{path.stem.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return getattr(module, name)


@dataclass(frozen=True)
class Choice:
    """Which backend runs, and why, in one sentence."""

    backend: Backend
    reason: str


def pick_backend(requested: str, device: torch.device) -> Choice:
    """The backend for tensors on a device.

    "auto" is the Triton kernels on CUDA and "cpu" on the CPU (`cpu_kernels`); any other device is
    refused, and nothing ever goes to dense attention by itself.

    >>> pick_backend("auto", torch.device("cpu")).backend
    'cpu'

    Raises BackendError, with the remedy, for a backend that cannot run there.
    """
    kind = device.type
    match requested:
        case "auto" if kind == "cuda":
            require_triton()
            return Choice("triton", "tensors are on CUDA")
        case "auto" | "cpu" if kind == "cpu":
            return Choice("cpu", "tensors are on the CPU")
        case "auto":
            raise BackendError(f"no backend for tensors on {device}; move them to CUDA or the CPU")
        case "cpu":
            raise BackendError(f'backend="cpu" takes CPU tensors; these are on {device}')
        case "triton" if kind == "cuda" or (kind == "cpu" and interpreting()):
            require_triton()
            return Choice("triton", "asked for" + (", interpreted" if interpreting() else ""))
        case "triton":
            raise BackendError(
                f'backend="triton" needs CUDA tensors; these are on {device}.  Move them, use '
                'backend="cpu", or set TRITON_INTERPRET=1 before Python starts, to run the kernels '
                "slowly on the CPU"
            )
        case "reference":
            return Choice("reference", "asked for; dense, for small inputs only")
        case _:
            known = ("auto", "triton", "cpu", "reference")
            raise BackendError(f"no backend {requested!r}; {suggest(str(requested), known)}")


@lru_cache(maxsize=256)
def kernel(plan: Plan) -> Any:
    """The Triton kernel of a plan: emitted, saved and imported once a process."""
    require_triton()
    return load_source(save_source(emit(plan), plan.kind), entry(plan))


@cache
def require_triton() -> None:
    """Raises BackendError, with the remedy, when triton cannot be imported."""
    if importlib.util.find_spec("triton") is None:
        raise BackendError('triton is not installed; pip install "triton>=3.6", or backend="cpu"')


def target_of(device: torch.device) -> Target:
    """The target whose default sizes fit a device: sm_80, sm_90, sm_100 or interpreter."""
    if interpreting() or device.type != "cuda":
        return "interpreter"
    major, _ = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        raise BackendError(
            f"{name} is below compute capability 8.0, the least that kernels support"
        )
    return "sm_80" if major == 8 else "sm_90" if major == 9 else "sm_100"
