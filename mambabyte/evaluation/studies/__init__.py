"""Measurements beside bits per byte."""
