"""How good a kernel is: right by the numerics contract, and measured or predicted."""
