"""`--mode=benchmark`: the time of a network, its size and its arithmetic."""
