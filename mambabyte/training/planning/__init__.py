"""What a run will cost, and the settings that meet a budget."""
