"""Checkpoints split over model-parallel ranks: CPM's, and those of newer Megatron-LM."""
