"""The commands that generate: options in, text out."""
