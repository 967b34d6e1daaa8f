"""Sampling on benchmarks, grading, and pass@k with its interval."""
