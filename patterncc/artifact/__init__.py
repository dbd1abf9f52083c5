"""Artifacts: a stack compiled for one GPU, as a folder that another machine loads and checks."""

from patterncc.artifact.artifact import Artifact

__all__ = ["Artifact"]
