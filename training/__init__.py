"""Fine-tuning: a model of any format and texts in, a SavedModel that writes such texts out.

Importing this package imports no TensorFlow.
"""
