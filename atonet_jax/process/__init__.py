"""The process: devices, several processes, whole files, the progress bar, signals."""
