"""Training: the Lightning module, its optimizer, and one small callback for each thing beside a step."""
