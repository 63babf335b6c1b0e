"""What a workdir holds, and how it is read and written."""
