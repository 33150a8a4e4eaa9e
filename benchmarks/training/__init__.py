"""How long a step of training takes, and how much memory, beside PyTorch: ``python -m benchmarks.training --help``."""
