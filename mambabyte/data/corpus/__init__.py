"""Prepared splits on disk: written once, then memory-mapped."""
