"""Callbacks that act after optimizer steps."""
