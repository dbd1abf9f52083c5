"""`patterncc demo`: the main job on a real pretrained model and on one long sequence."""

from patterncc.demo.run import main

__all__ = ["main"]
