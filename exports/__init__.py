"""The SavedModel: its layout, writing it, loading and calling it."""
