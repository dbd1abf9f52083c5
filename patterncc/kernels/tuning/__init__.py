"""The sizes of kernels' steps: shipped tables, candidates, and what measures or compares them."""
