"""Here PyTorch itself is compared with: processes that never import TensorFlow, whose `pytest` is given this folder."""
