"""Several stacks side by side, and which of them no other beats."""
