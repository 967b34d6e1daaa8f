"""Comparing arms over training seeds and problems: scores, intervals, tests, verdicts."""
