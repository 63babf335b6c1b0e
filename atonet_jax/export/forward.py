"""The function that exports hold: images to labels or logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atonet_jax import ops
from atonet_jax.inference.label_map import argmax, label_map
from atonet_jax.inference.views import resize_to_height
from atonet_jax.models import apply, network, prepare
from atonet_jax.runs.network import TrainedNetwork


def forward_function(
    trained: TrainedNetwork, options: ConfigDict, enlarge_logits: bool = False
) -> Callable[[jax.Array], jax.Array]:
    """Images to labels or logits as `config.export` says, the variables within.

    Args:
        trained: the network.
        options: `config.export`.
        enlarge_logits: takes labels from logits at full resolution: of operations that every converter knows.
    """
    variables = jax.device_get(prepare(trained.model, trained.variables))
    contract = network(trained.model)

    def forward(images):
        if options.layout == 'NCHW':
            images = jnp.moveaxis(images, 1, -1)
        size = images.shape[1:3]
        images = contract.normalization(images) if options.inputs == 'uint8' else images
        logits = apply(trained.model, variables, resize_to_height(images, trained.height))['logits']
        if options.outputs == 'labels' and not enlarge_logits:
            return label_map(logits, size, contract.upsampling)
        logits = ops.resize(logits, size, contract.upsampling)
        if options.outputs == 'labels':
            return argmax(logits)
        return jnp.moveaxis(logits, -1, 1) if options.layout == 'NCHW' else logits

    def plain_forward(images):
        with ops.cpu.fast_paths(False):  # converters know the plain programs
            return forward(images)

    return plain_forward


def images_shape(options: ConfigDict, any_batch) -> tuple:
    """[B, H, W, 3] or [B, 3, H, W] as `config.export` says; `any_batch` is B where it may be any number."""
    batch = options.batch_size or any_batch
    return (batch, 3, *options.size) if options.layout == 'NCHW' else (batch, *options.size, 3)


def images_dtype(options: ConfigDict) -> np.dtype:
    return np.dtype(np.uint8 if options.inputs == 'uint8' else np.float32)
