"""`attention`: a layout's edges and nothing else, with gradients; packed, and as modules."""

from patterncc.attend.call import attention
from patterncc.attend.module import SparseAttention
from patterncc.attend.multihead import MultiheadAttention
from patterncc.attend.reroute import sdpa_as
from patterncc.attend.sdpa import scaled_dot_product_attention
from patterncc.attend.varlen import attention_varlen

__all__ = [
    "MultiheadAttention",
    "SparseAttention",
    "attention",
    "attention_varlen",
    "scaled_dot_product_attention",
    "sdpa_as",
]
