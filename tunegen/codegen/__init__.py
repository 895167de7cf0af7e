"""Op + shape + target + config -> source -> compiled kernel and its resources."""
