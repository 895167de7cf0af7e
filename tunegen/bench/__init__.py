"""Comparison of tuned kernels with what else could be run."""
