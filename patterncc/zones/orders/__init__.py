"""Token orders in which a pattern is dense, and the terms that it falls into."""
