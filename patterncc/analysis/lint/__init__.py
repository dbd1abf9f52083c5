"""Findings about a stack, one file for each kind of them."""
