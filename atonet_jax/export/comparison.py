"""Whether an exported network computes what ours does."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.data.synthetic import render_scene
from atonet_jax.errors import ExportError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import network
from atonet_jax.runs.network import TrainedNetwork

_MOST_DIFFERENT = 1e-3  # share of pixels
_MOST_DIFFERENT_IN_BFLOAT16 = 1e-2  # each compiled program rounds in other places


def compare(
    run: Callable[[np.ndarray], np.ndarray],
    trained: TrainedNetwork,
    options: ConfigDict,
    batch_size: int | None = None,
    in_jax: bool = False,
) -> str:
    """Compares labels on synthetic scenes with those of `Segmenter`; returns what came out, in words.

    Args:
        run: the export in its own runtime: images to labels or logits.
        trained: what was exported.
        options: `config.export`: what `run` takes and gives.
        batch_size: of the images; None: as in `options`, or two where it takes any number.
        in_jax: `run` is a program of JAX, with the products of float32 that this device takes by default. Other
            runtimes compute here on the CPU, in true float32.

    Raises:
        ExportError: labels differ in more than a pixel of a thousand; of a hundred in bfloat16.
    """
    batch_size = batch_size or options.batch_size or 2
    images = np.stack([render_scene(0, i, *options.size)[0] for i in range(batch_size)])
    segment = Segmenter.of(trained)
    with contextlib.nullcontext() if in_jax else jax.default_matmul_precision('highest'):
        expected = np.asarray(segment(images))
        ours = np.asarray(segment.logits(images)) if options.outputs == 'logits' else None

    result = run(network_inputs(images, trained, options))
    logits_text = ''
    if ours is not None:
        largest = abs(_channels_last(result, options) - ours).max()
        logits_text = f', logits by at most {largest / np.ptp(ours):.1e} of their range'
    different = float(np.mean(labels_of(result, options) != expected))
    text = f'{100 * different:.4f}% of {expected.size} labels'
    if different > (_MOST_DIFFERENT_IN_BFLOAT16 if trained.model.dtype == jnp.bfloat16 else _MOST_DIFFERENT):
        raise ExportError(f'the export differs from the network in {text}; nothing was written')
    return f'loaded back, it differs from the network in {text}{logits_text}'


def network_inputs(images: np.ndarray, trained: TrainedNetwork, options: ConfigDict) -> np.ndarray:
    """What the export takes for [B, H, W, 3] uint8 RGB images."""
    given = np.asarray(network(trained.model).normalization(images)) if options.inputs == 'normalized' else images
    return np.ascontiguousarray(given.transpose(0, 3, 1, 2)) if options.layout == 'NCHW' else given


def labels_of(result: np.ndarray, options: ConfigDict) -> np.ndarray:
    """[B, H, W] uint8 train ids from what the export gives."""
    if options.outputs == 'labels':
        return np.asarray(result)
    return _channels_last(result, options).argmax(-1).astype(np.uint8)


def _channels_last(logits: np.ndarray, options: ConfigDict) -> np.ndarray:
    return logits.transpose(0, 2, 3, 1) if options.layout == 'NCHW' else logits
