"""AdamW, Muon, and the schedule of their learning rate."""
