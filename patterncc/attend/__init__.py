"""`attention`: a layout's edges and nothing else, with gradients; packed, and as a module."""

from patterncc.attend.call import attention
from patterncc.attend.module import SparseAttention
from patterncc.attend.varlen import attention_varlen

__all__ = ["SparseAttention", "attention", "attention_varlen"]
