"""Functions with the arguments and returns of other libraries, on the ops of a pack."""
