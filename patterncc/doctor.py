"""doctor: what is installed, which backend would run and why, and whether kernels compile here."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patterncc._version import __version__
from patterncc.errors import PatternError

if TYPE_CHECKING:
    from patterncc.kernels.plan import Target

REQUIRED = ("numpy", "scipy", "networkx", "safetensors", "torch")
OPTIONAL = {
    "triton": "pip install 'triton>=3.6' (Linux) for GPU kernels",
    "matplotlib": "pip install 'patterncc[plot]' for pictures",
    "transformers": "pip install 'patterncc[hf]' for patterns inside Hugging Face models",
    "glassllm": "pip install 'patterncc[demo]' for the demo",
}
TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "sm_100")


def examine() -> dict[str, Any]:
    """Every finding as plain values; `ok` is False where a model could not run at all."""
    packages = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    checks = {
        "backend": _guarded(_backend),
        "cache": _guarded(_cache),
        "offline": _guarded(_offline),
    }
    needed = all(packages[name] for name in REQUIRED)
    return {
        "patterncc": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": packages,
        **checks,
        "ok": needed and checks["backend"]["ok"] and checks["cache"]["ok"],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _guarded(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A check's findings, or what stopped it: doctor never fails on a broken installation."""
    try:
        return {"ok": True, **check()}
    except (PatternError, ImportError, OSError, RuntimeError) as error:
        return {"ok": False, "reason": f"{error}" or type(error).__name__}


def _backend() -> dict[str, Any]:
    """What backend="auto" picks for tensors where this machine would put a model."""
    import torch

    from patterncc.kernels.runtime import cpu_kernels, pick_backend, target_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choice = pick_backend("auto", device)
    found: dict[str, Any] = {
        "device": str(device),
        "auto": choice.backend,
        "reason": choice.reason,
        "cpu": cpu_kernels(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "target": target_of(device)}
    return found


def _cache() -> dict[str, Any]:
    """Where kernel sources are kept, and whether they can be."""
    from patterncc.kernels.runtime import cache_dir

    folder = cache_dir()
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        return {
            "ok": False,
            "folder": str(folder),
            "reason": "cannot be written; set PATTERNCC_CACHE to a folder that can",
        }
    kept = sorted(folder.glob("*.py")) if folder.is_dir() else []
    return {"folder": str(folder), "sources": len(kept), "bytes": _bytes(kept)}


def _bytes(files: list[Path]) -> int:
    return sum(f.stat().st_size for f in files)


def _offline() -> dict[str, Any]:
    """Whether a kernel compiles here for GPUs that need not be here."""
    if sys.platform != "linux":
        return {"ok": False, "reason": f"triton has no build for {sys.platform}; use Linux"}
    import triton

    from patterncc.kernels.emit import emit
    from patterncc.kernels.offline import compile_offline
    from patterncc.kernels.plan import Plan

    targets = []
    for target in TARGETS:
        plan = Plan("delta", target, "bfloat16", 64, 64, (64, 64), 64, 16, 4, 1)
        compile_offline(emit(plan), plan)
        targets.append(target)
    return {"targets": targets, "triton": triton.__version__}


def text(found: dict[str, Any]) -> str:
    """The findings for a person, remedies beside what is missing."""
    backend, cache, offline = found["backend"], found["cache"], found["offline"]
    lines = [
        f"patterncc {found['patterncc']}, Python {found['python']}, {found['cores']} cores",
        found["platform"],
        "",
    ]
    for name, version in found["packages"].items():
        remedy = OPTIONAL.get(name, "required: pip install patterncc")
        lines.append(f"  {name:13} {version or 'missing; ' + remedy}")
    lines += ["", f"backend   {_backend_text(backend)}"]
    if backend["ok"]:
        lines.append(f"on CPUs   {backend['cpu']}")
    if cache["ok"]:
        size = f"{cache['sources']} kernel sources, {cache['bytes'] / 1024:.0f} KiB"
        lines.append(f"cache     {cache['folder']} ({size})")
    else:
        lines.append(f"cache     {cache.get('folder', '')} {cache['reason']}")
    if offline["ok"]:
        targets = ", ".join(offline["targets"])
        lines.append(f"kernels   compile here for {targets} (Triton {offline['triton']})")
    else:
        lines.append(f"kernels   do not compile here: {offline['reason']}")
    return "\n".join(lines)


def _backend_text(backend: dict[str, Any]) -> str:
    if not backend["ok"]:
        return f"none: {backend['reason']}"
    on = backend.get("gpu", f"{backend['threads']} threads")
    return f'"auto" picks {backend["auto"]} on {backend["device"]} ({on}): {backend["reason"]}'
