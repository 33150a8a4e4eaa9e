"""How fast texts are generated, beside other engines with the same weights: ``python -m benchmarks.decode --help``."""
