"""Files to batches. The only package here that imports TensorFlow."""
