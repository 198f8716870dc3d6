"""A run's directory: written by training, read by reporting."""
