"""Sparse matrices of scipy as patterns."""

from __future__ import annotations

from typing import Any

import numpy as np

from patterncc.errors import PatternError
from patterncc.pattern import Pattern
from patterncc.primitives import Edges
from patterncc.zones import graphs


def from_scipy(matrix: Any) -> Pattern:
    """The pattern of a sparse matrix [queries, keys]: an edge wherever its entry is not 0.

    The edges are copied: the matrix may change afterwards.  A pattern has no length; lower it at
    n = the number of rows.

    >>> import scipy.sparse
    >>> from patterncc import lower
    >>> lower(from_scipy(scipy.sparse.eye_array(3, k=-1)), 3).count()
    2

    Raises PatternError for what is no sparse matrix, PatternValueError for one that has not two
    dimensions, SizeError for more than 2**25 entries.
    """
    if not graphs.is_scipy(matrix):
        raise PatternError(
            f"from_scipy: give a scipy.sparse matrix, not a {type(matrix).__name__}; "
            "pc.edges(mask) takes a bool array, pc.from_networkx(G) a graph"
        )
    return Edges(np.stack(graphs.from_scipy(matrix, "from_scipy"), axis=1))
