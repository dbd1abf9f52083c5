"""patterncc: a compiler for attention topologies.

Write down, as a graph, which token may read which; prove what the graph lets through a stack of
layers; compile the same graph into a block-sparse layout and a kernel that a model runs.

    import patterncc as pc
    p = pc.causal() & (pc.window(511) | pc.sink(4))
    print(pc.analyze(pc.Stack([p] * 12), 65536))
    layout = pc.compile(p, 65536)
    out = pc.attention(q, k, v, layout)

Importing this package loads neither numpy nor torch: what needs them is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patterncc._version import __version__
from patterncc.errors import (
    BackendError,
    LayoutError,
    PatternError,
    PatternSyntaxError,
    PatternValueError,
    PatternWarning,
    SizeError,
    TensorError,
)
from patterncc.pattern import Pattern
from patterncc.primitives import (
    axial,
    boxes,
    butterfly,
    causal,
    chunked,
    clusters,
    convolution,
    dilated,
    documents,
    edges,
    expander,
    full,
    global_tokens,
    grid,
    logsparse,
    longnet,
    prefix,
    random_blocks,
    random_edges,
    recurrent,
    routing,
    sink,
    spans,
    strided,
    summary,
    topk,
    tree,
    window,
)
from patterncc.stack import Stack, heads

if TYPE_CHECKING:
    from patterncc.analysis import Report, analyze, explain
    from patterncc.analysis.compare.comparison import compare
    from patterncc.artifact import Artifact
    from patterncc.attend import (
        MultiheadAttention,
        SparseAttention,
        attention,
        attention_varlen,
        scaled_dot_product_attention,
        sdpa_as,
    )
    from patterncc.cache import CachePlan, cache_plan
    from patterncc.integrations import hf
    from patterncc.integrations.deepspeed import from_deepspeed, to_deepspeed
    from patterncc.integrations.fa4 import to_fa4
    from patterncc.integrations.flashinfer import to_flashinfer
    from patterncc.integrations.flex import to_flex
    from patterncc.integrations.maskmod import from_mask_mod
    from patterncc.integrations.matrix import to_bsr, to_coo, to_csr
    from patterncc.integrations.networkx import from_networkx, to_networkx
    from patterncc.integrations.planned_cache import PlannedCache
    from patterncc.integrations.scipy import from_scipy
    from patterncc.integrations.sdpa import to_sdpa
    from patterncc.kernels.carried import carry
    from patterncc.kernels.dynamic import documents_of
    from patterncc.language import PatternFile, load, loads
    from patterncc.layout import Layout, compile
    from patterncc.layout.packed import compile_packed
    from patterncc.routers import NearestKeys, RoutedAttention, SphericalKMeans, TopBlocks, trace
    from patterncc.zones import Frame, ZoneSet
    from patterncc.zones.lower import lower

_LAZY = {
    "load": "patterncc.language",
    "loads": "patterncc.language",
    "PatternFile": "patterncc.language",
    "lower": "patterncc.zones.lower",
    "Frame": "patterncc.zones",
    "ZoneSet": "patterncc.zones",
    "analyze": "patterncc.analysis",
    "explain": "patterncc.analysis",
    "compare": "patterncc.analysis",
    "Report": "patterncc.analysis",
    "cache_plan": "patterncc.cache",
    "CachePlan": "patterncc.cache",
    "compile": "patterncc.layout",
    "compile_packed": "patterncc.layout.packed",
    "Layout": "patterncc.layout",
    "Artifact": "patterncc.artifact",
    "attention": "patterncc.attend",
    "attention_varlen": "patterncc.attend",
    "carry": "patterncc.kernels.carried",
    "documents_of": "patterncc.kernels.dynamic",
    "SparseAttention": "patterncc.attend",
    "MultiheadAttention": "patterncc.attend",
    "scaled_dot_product_attention": "patterncc.attend",
    "sdpa_as": "patterncc.attend",
    "RoutedAttention": "patterncc.routers",
    "SphericalKMeans": "patterncc.routers",
    "NearestKeys": "patterncc.routers",
    "TopBlocks": "patterncc.routers",
    "trace": "patterncc.routers",
    "PlannedCache": "patterncc.integrations.planned_cache",
    "to_networkx": "patterncc.integrations.networkx",
    "from_networkx": "patterncc.integrations.networkx",
    "from_scipy": "patterncc.integrations.scipy",
    "to_coo": "patterncc.integrations.matrix",
    "to_csr": "patterncc.integrations.matrix",
    "to_bsr": "patterncc.integrations.matrix",
    "to_sdpa": "patterncc.integrations.sdpa",
    "to_flex": "patterncc.integrations.flex",
    "to_flashinfer": "patterncc.integrations.flashinfer",
    "to_fa4": "patterncc.integrations.fa4",
    "to_deepspeed": "patterncc.integrations.deepspeed",
    "from_deepspeed": "patterncc.integrations.deepspeed",
    "from_mask_mod": "patterncc.integrations.maskmod",
}

_MODULES = {"hf": "patterncc.integrations.hf"}

__all__ = [
    "load",
    "loads",
    "PatternFile",
    "Pattern",
    "full",
    "causal",
    "window",
    "dilated",
    "strided",
    "summary",
    "chunked",
    "global_tokens",
    "sink",
    "prefix",
    "random_blocks",
    "random_edges",
    "documents",
    "clusters",
    "routing",
    "topk",
    "butterfly",
    "logsparse",
    "longnet",
    "expander",
    "grid",
    "axial",
    "tree",
    "edges",
    "spans",
    "boxes",
    "recurrent",
    "convolution",
    "Stack",
    "heads",
    "lower",
    "Frame",
    "ZoneSet",
    "analyze",
    "explain",
    "compare",
    "Report",
    "cache_plan",
    "CachePlan",
    "compile",
    "compile_packed",
    "Artifact",
    "Layout",
    "attention",
    "attention_varlen",
    "carry",
    "documents_of",
    "SparseAttention",
    "MultiheadAttention",
    "scaled_dot_product_attention",
    "sdpa_as",
    "RoutedAttention",
    "SphericalKMeans",
    "NearestKeys",
    "TopBlocks",
    "trace",
    "PlannedCache",
    "hf",
    "to_networkx",
    "from_networkx",
    "from_scipy",
    "to_coo",
    "to_csr",
    "to_bsr",
    "to_sdpa",
    "to_flex",
    "to_flashinfer",
    "to_fa4",
    "to_deepspeed",
    "from_deepspeed",
    "from_mask_mod",
    "PatternError",
    "PatternSyntaxError",
    "PatternValueError",
    "PatternWarning",
    "SizeError",
    "TensorError",
    "LayoutError",
    "BackendError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'patterncc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY) | set(_MODULES))
