"""Time and memory of the parts that matter; run one with ``python -m benchmarks.<name>``."""
