"""The numerics contract: which outputs are right, judged in float64; a module a family."""
