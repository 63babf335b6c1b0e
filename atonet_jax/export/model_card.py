"""What a program that uses an exported network has to know."""

import json
import os
import pathlib
from typing import Any

import flax
import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax import __version__
from atonet_jax.data.labels import ClassTable
from atonet_jax.models import network
from atonet_jax.runs.network import TrainedNetwork
from atonet_jax.runs.scores import read_scores


def model_card(trained: TrainedNetwork, config: ConfigDict, workdir: str) -> dict[str, Any]:
    """JSON-ready: classes, inputs and outputs, scores, and where the network comes from."""
    options, table = config.export, trained.class_table
    is_program = options.format not in ('weights', 'torch')
    contract = network(trained.model)
    params = {name: tree for name, tree in trained.variables['params'].items() if name not in contract.training_only}
    mean, std = contract.normalization.in_pixel_values()
    model, program = config.model.to_dict(), options.to_dict()
    if options.format in ('onnx', 'tflite'):
        model['dtype'] = 'float32'  # whatever the run computes in
    if options.format != 'onnx' or options.dynamic_size or options.precision == 'int8':
        program['winograd'] = False  # needs ONNX of a fixed size; int8 kernels do not compute its products
    if options.precision == 'float32':
        del program['calibration_images'], program['int8_tolerance']
    if options.format == 'tflite':
        program['batch_size'] = options.batch_size or 1
    if options.dynamic_size:
        program['size_multiple_of'] = contract.multiple_of
    published = contract.published
    return {
        'model': model,
        'network': {
            'title': published.title,
            'source': published.source,
            'license_of_source': published.license,
            'notes': published.notes,
        },
        'parameters': sum(array.size for array in jax.tree.leaves(params)),
        'source': config.init_from if trained.step is None else os.path.abspath(workdir),
        'step': trained.step,
        'classes': [
            {'train_id': i, 'name': name, 'color_rgb': list(color), 'raw_id': int(table.train_to_raw[i])}
            for i, (name, color) in enumerate(_outputs(table))
        ],
        'format': options.format,
        'program': program if is_program else None,
        'normalization': {
            'channels': contract.normalization.channels,
            'mean': mean.tolist(),
            'stddev': std.tolist(),
            'of': 'pixel values 0..255: (value - mean) / stddev',
            'within_the_program': is_program and options.inputs == 'uint8',
        },
        'resized_to_height': trained.height or None,  # within the program, where there is one
        'license': 'Apache-2.0: of the code, not of these weights',
        'scores': None if trained.step is None else read_scores(workdir, trained.step),
        'versions': {
            'atonet_jax': __version__,
            'jax': jax.__version__,
            'flax': flax.__version__,
            'numpy': np.__version__,
        },
    }


def _outputs(table: ClassTable) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and colour of each output; of pixels of no class, 'void' and black."""
    outputs = list(zip(table.class_names, table.class_colors, strict=True))
    return [*outputs, ('void', (0, 0, 0))] if table.has_void_output else outputs


def is_model_card(path: str) -> bool:
    """Whether a file is what `model_card` gives."""
    try:
        return {'format', 'classes', 'versions'} <= json.loads(pathlib.Path(path).read_text()).keys()
    except (OSError, ValueError, AttributeError):
        return False
