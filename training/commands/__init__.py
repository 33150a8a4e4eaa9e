"""The commands: options in, results printed."""
