"""`attention`: a layout's edges and nothing else, with gradients; `SparseAttention` around it."""

from patterncc.attend.call import attention
from patterncc.attend.module import SparseAttention

__all__ = ["SparseAttention", "attention"]
