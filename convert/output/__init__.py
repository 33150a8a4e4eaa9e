"""Results that appear complete or not at all, and what says which files they are."""
