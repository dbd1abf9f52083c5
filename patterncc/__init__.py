"""patterncc: a compiler for attention topologies."""

from patterncc.primitives import *  # noqa: F403
