"""The commands that convert: options in, a line out."""
