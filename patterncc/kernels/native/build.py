"""From a plan to a loaded kernel: compiled once by the machine's own compiler, kept in the cache.

A library is named by a hash of its source, the compiler, its flags and the processor's features.
Beside it stands a small file that says which library was made under that name and its sha256; a
library whose bytes differ is not loaded but made again.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from patterncc.kernels.native.emit import emit
from patterncc.kernels.native.plan import NativePlan
from patterncc.kernels.runtime import cache_dir, native_compiler

log = logging.getLogger("patterncc")

SECONDS = 120  # that a compiler may take


@cache
def features() -> frozenset[str]:
    """The processor's features as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, values = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return frozenset(values.split())
    except OSError:
        pass
    return frozenset()


def lanes() -> int:
    """Floats of the widest vectors that this processor has."""
    has = features()
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= has:
        return 16
    return 8 if {"avx2", "fma", "f16c"} <= has else 4


def flags(plan: NativePlan) -> tuple[str, ...]:
    """What the compiler is told."""
    target = {16: "-march=native", 8: "-march=haswell", 4: "-march=native"}[plan.lanes]
    plain = ("-fno-math-errno", "-fno-strict-aliasing")  # memory is read as floats, pairs and bits
    return ("-std=c++17", "-O3", target, *plain, "-fPIC", "-shared", "-pthread")


@lru_cache(maxsize=256)
def kernel(plan: NativePlan) -> Any:
    """The C function of a plan, or None where it cannot be made; each reason is logged once."""
    compiler = native_compiler()
    if compiler is None:
        _without_compiler()
        return None
    try:
        return _function(plan, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        loading = isinstance(error, UnloadableError)
        said = getattr(error, "stderr", None) or str(error)
        log.warning(
            "%s %s the CPU kernel of %s, so torch's own kernels run: %s",
            compiler,
            "makes a library that cannot be loaded of" if loading else "cannot compile",
            plan,
            said.strip()[:800],
        )
        return None


class UnloadableError(OSError):
    """A library that is there and cannot be loaded, or lacks its function."""


@cache
def _without_compiler() -> None:
    log.info(
        "no C++ compiler (c++, g++ or clang++, or $CXX), or PATTERNCC_NATIVE=0: "
        "attention on the CPU runs torch's own kernels"
    )


def _function(plan: NativePlan, compiler: str) -> Any:
    """A plan's function from the library in the cache, or from one that is made."""
    source = emit(plan)
    folder, name = cache_dir(), f"{plan.kind}-{_digest(source, compiler, flags(plan))}"
    found = _kept(folder, name)
    if found is not None:
        try:
            return _loaded(found, plan)
        except UnloadableError as error:  # made by another machine's linker, say, or cut short
            log.warning("CPU kernel %s cannot be loaded (%s); it is made again", found, error)
    log.info(
        "compiling the CPU kernel %s of %s, head dim %d, by %s: once, then kept in %s",
        *(plan.kind, plan.dtype, plan.head_dim, compiler, folder),
    )
    with tempfile.TemporaryDirectory(prefix="patterncc-") as place:
        made = _compiled(source, compiler, flags(plan), Path(place))
        try:
            found = _keep(folder, name, source, made)
        except OSError as error:
            log.info(
                "%s cannot be written (%s): CPU kernels are made anew each time", folder, error
            )
            found = made  # a loaded library outlives its file
        try:
            return _loaded(found, plan)
        except UnloadableError as error:  # where nothing may be executed from the cache
            log.warning("CPU kernel %s cannot be loaded (%s)", found, error)
            return _loaded(made, plan)


def _loaded(path: Path, plan: NativePlan) -> Any:
    """The function of a plan in its library; raises UnloadableError."""
    try:
        function = getattr(ctypes.CDLL(str(path)), f"patterncc_{plan.kind}")
    except (OSError, AttributeError) as error:
        raise UnloadableError(str(error)) from None
    function.restype = ctypes.c_int
    return function


def _digest(source: str, compiler: str, options: tuple[str, ...]) -> str:
    """Names a library: everything that its machine code depends on."""
    real = os.path.realpath(compiler)
    state = os.stat(real)  # stands for the compiler's version, which would take a process to ask
    parts = [
        source,
        real,
        str(state.st_size),
        str(state.st_mtime_ns),
        *options,
        platform.machine(),
        *sorted(features()),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _compiled(source: str, compiler: str, options: tuple[str, ...], place: Path) -> Path:
    """Run the compiler; raises OSError or SubprocessError with what it said."""
    text, made = place / "kernel.cpp", place / "kernel.so"
    text.write_text(source, encoding="utf-8")
    command = [compiler, *options, text.name, "-o", made.name]
    subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=SECONDS)
    return made


def _kept(folder: Path, name: str) -> Path | None:
    """The library that stands under a name, if its bytes are those that were written."""
    try:
        digest = (folder / f"{name}.sha256").read_text(encoding="ascii").strip()
        path = folder / f"{name}-{digest[:12]}.so"
        if len(digest) == 64 and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
        log.warning("CPU kernel %s does not match its sha256; it is made again", path)
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _keep(folder: Path, name: str, source: str, made: Path) -> Path:
    """Write the library, its source and then its sha256, each at once or not at all."""
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    path = folder / f"{name}-{digest[:12]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, made.read_bytes())
    _write(folder / f"{name}.cpp", source.encode())
    _write(folder / f"{name}.sha256", digest.encode())
    return path


def _write(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as part:
        part.write(content)
    if path.suffix == ".so":
        os.chmod(part.name, 0o700)
    os.replace(part.name, path)
