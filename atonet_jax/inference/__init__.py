"""From images to label maps: `Segmenter`."""

from atonet_jax.inference.segmenter import Segmenter

__all__ = ['Segmenter']
