"""The content of a workdir: reading and writing it."""
