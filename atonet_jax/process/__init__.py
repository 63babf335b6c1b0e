"""The process: its devices, its fellows, its progress bar, its signals."""
