"""Artifact: the layouts of a stack, the readable sources of their kernels, and a manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patterncc.language import PatternFile
    from patterncc.layout import Layout
    from patterncc.stack import Layer, Stack

SCHEMA = "patterncc.artifact/1"


@dataclass(frozen=True, eq=False)
class Artifact:
    """A stack compiled for one length and one target.

    layouts: one a layer; equal layers share one object.
    sources: the kernels' Triton source by file name, for people to read: what runs is emitted anew
    from the plan, so that nothing from a folder is ever executed.
    manifest: what `manifest.json` holds (docs/artifact.md).

    >>> from patterncc import Stack, causal, window
    >>> made = Artifact.build(Stack([causal() & window(63)] * 3), 256, resources=False)
    >>> len(made.layouts), made.layouts[0] is made.layouts[2], len(made.sources)
    (3, True, 7)
    """

    layouts: tuple[Layout, ...]
    sources: dict[str, str]
    manifest: dict[str, Any]

    @staticmethod
    def build(
        what: PatternFile | Stack | Layer,
        n: int,
        *,
        target: str = "sm_90",
        dtype: object = "bf16",
        head_dim: int = 64,
        block: int | tuple[int, int] | None = None,
        order: object = None,
        resources: bool = True,
        progress: Callable[[str], None] | None = None,
        **bindings: Any,
    ) -> Artifact:
        """Compile a pattern file, a stack or a pattern for n tokens.

        target: "sm_80", "sm_90" or "sm_100".  dtype: "fp32", "fp16", "bf16", their
        long names or torch's types.  block, order and bindings: as in `compile`.
        resources: compile the kernels too, to count registers, shared memory, spills and
        tensor-core instructions (a second or so each, no GPU needed).
        progress: called with what is about to be made.

        Raises PatternError and its kinds as `compile` does; PatternValueError for a target, dtype
        or head dim that kernels are not made for.
        """
        from patterncc.artifact.build import build

        return build(
            what,
            n,
            target=target,
            dtype=dtype,
            head_dim=head_dim,
            block=block,
            order=order,
            resources=resources,
            progress=progress or (lambda _: None),
            bindings=bindings,
        )

    def save(self, folder: str | Path) -> None:
        """Write the folder, all files or none; files of an earlier artifact there are replaced.

        Raises PatternError where it cannot be written.
        """
        from patterncc.artifact.folder import save

        save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> Artifact:
        """Read a folder and check all of it: schema, names, hashes, each layout as `Layout.load`
        does, and every figure of the manifest that follows from the layouts.

        Raises LayoutError, naming the file and what is wrong with it.
        """
        from patterncc.artifact.load import load

        return load(Path(folder))

    def stale(self) -> tuple[str, ...]:
        """The sources that this version of patterncc would emit otherwise; it runs its own."""
        from patterncc.artifact.load import plan_of
        from patterncc.kernels.emit import emit

        kernels = self.manifest["kernels"]
        return tuple(
            name for name, text in self.sources.items() if emit(plan_of(name, kernels)) != text
        )
