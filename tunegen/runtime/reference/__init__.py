"""What the ops compute, in plain PyTorch: the CPU implementation, the fallback, and the tests' reference."""
