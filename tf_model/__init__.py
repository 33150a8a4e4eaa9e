"""The model and generation, as TensorFlow graph code; nothing here knows a file format."""
