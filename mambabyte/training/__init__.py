"""Training: the Lightning module, its optimizer and its callbacks."""
