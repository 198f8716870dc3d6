"""A split on disk: written once, then memory-mapped."""
