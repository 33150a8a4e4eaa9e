"""Texts into batches: documents of files, token ids, packed rows. No TensorFlow is imported."""
