"""TensorFlow's checkpoint of version 2 ("tensor bundle"), written one tensor at a time."""
