"""A network on a split: scores, pictures and the report."""
