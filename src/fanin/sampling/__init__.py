"""Values: the stream behind (seed, name, index), and the distributions drawn from it."""
