"""The process: devices, several processes, the progress bar, signals."""
