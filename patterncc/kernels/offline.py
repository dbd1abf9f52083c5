"""Compile a generated kernel for a GPU that is not here, and read what it will use.

Triton's wheel carries its own assembler and disassembler, so registers, spills, shared memory and
tensor-core instructions can be asserted on a machine without a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patterncc.errors import BackendError
from patterncc.kernels import runtime
from patterncc.kernels.emit import entry
from patterncc.kernels.emit.pieces import parameters, streamed_block
from patterncc.kernels.plan import SHARED_LIMIT, Plan, Target

TABLES = (
    *("head_pattern", "ptr", "run", "zone", "bits", "position", "items", "parts"),
    *("key_lengths", "block_table", "tickets", "query_at", "key_at"),
)
SUMS = (
    *("lse", "lse2", "delta", "part_out", "part_lse", "part_m", "part_l"),
    *("sum_q", "part_grad_q", "part_grad_k", "part_grad_v", "x"),
    *("slopes", "bias", "sinks", "partial"),
)
TENSOR_CORES = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses.

    registers: of a thread.  stack: bytes of a thread's local memory.  spill_stores, spill_loads:
    instructions that reach it.  shared: bytes of a program.  shared_limit: what the target has.
    tensor_cores: the PTX instruction found and how often.
    """

    target: str
    triton: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    shared_limit: int
    tensor_cores: dict[str, int]

    @property
    def fits(self) -> bool:
        """It can be launched: more shared memory than there is compiles without a word."""
        return self.shared <= self.shared_limit

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


def compile_offline(source: str, plan: Plan, target: Target | None = None) -> Resources:
    """Compile an emitted source as a launch on `target` would, and read its resource use.

    Raises BackendError when triton is missing, interprets, or cannot compile the source.
    """
    made = build(source, plan, target)
    goal = target or plan.target
    return Resources(
        target=goal,
        triton=_triton_version(),
        shared=made.metadata.shared,
        shared_limit=SHARED_LIMIT[goal],
        tensor_cores=_tensor_cores(made.asm["ptx"]),
        **_usage(made.asm["cubin"]),
    )


def build(source: str, plan: Plan, target: Target | None = None) -> Any:
    """What Triton makes of an emitted source: its `asm` holds "ptx" and "cubin".

    Arguments carry the divisibility that real tensors have: aligned pointers, strides in multiples
    of 16 elements.

    Raises BackendError when triton is missing, interprets, or cannot compile the source.
    """
    goal = target or plan.target
    runtime.require_triton()
    if runtime.interpreting():
        raise BackendError("TRITON_INTERPRET is set: unset it to compile kernels for a GPU")
    if goal == "interpreter":
        raise BackendError("offline compilation needs a GPU target: sm_80, sm_90 or sm_100")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with tempfile.TemporaryDirectory() as folder:
        path = runtime.save_source(source, plan.kind, Path(folder))
        kernel = runtime.load_source(path, entry(plan))
        signature, aligned = _signature(kernel.arg_names, plan)
        try:
            return triton.compile(
                ASTSource(kernel, signature, constexprs={}, attrs=aligned),
                target=GPUTarget("cuda", int(goal.removeprefix("sm_")), 32),
                options={
                    "num_warps": plan.warps,
                    "num_stages": plan.stages,
                    "enable_fp_fusion": True,  # the default is about to change
                },
            )
        except Exception as error:
            raise BackendError(
                f"triton {triton.__version__} cannot compile plan {plan.digest} for {goal}: "
                f"{str(error)[:400]}"
            ) from error


def _triton_version() -> str:
    import triton

    version: str = triton.__version__
    return version


def _signature(names: list[str], plan: Plan) -> tuple[dict[str, str], dict[Any, Any]]:
    """Types of all arguments by name, and those known to be multiples of 16."""
    signature, aligned = {}, {}
    pointers, strides, _ = parameters(plan)
    for place, name in enumerate(names):
        signature[name] = _type(plan, name) if name in pointers else "i32"
        if name in strides or signature[name].startswith("*"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    signature.update({name: "fp32" for name in ("scale", "softcap") if name in names})
    return signature, aligned


def _type(plan: Plan, name: str) -> str:
    """The type of a tensor argument."""
    if name in TABLES:
        return "*i32"
    if name == "keys":
        return "*u8"
    element = "fp32" if name in SUMS else _SHORT[plan.dtype]
    if name in plan.streamed:
        rows, width = streamed_block(plan, name)
        return f"tensordesc<{element}[1, 1, {rows}, {width}]>"
    return "*" + element


def _tensor_cores(ptx: str) -> dict[str, int]:
    found = {
        name: len(re.findall(rf"^\s*(?:@\S+ )?{re.escape(name)}\b", ptx, re.M))
        for name in TENSOR_CORES
    }
    return {name: count for name, count in found.items() if count}


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and spills, read from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("--dump-sass", file.name)
    registers, stack = (re.search(rf"\b{key}:(\d+)", usage) for key in ("REG", "STACK"))
    assert registers is not None and stack is not None
    return {
        "registers": int(registers[1]),
        "stack": int(stack[1]),
        "spill_stores": len(re.findall(r"\bSTL(?:\.\S+)? ", code)),
        "spill_loads": len(re.findall(r"\bLDL(?:\.\S+)? ", code)),
    }


def _cuobjdump(what: str, path: str) -> str:
    from triton import knobs

    tool: str = knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, what, path], check=True, capture_output=True, text=True).stdout
