"""Vectors carried through the layers: influence by rollout, and hub load."""
