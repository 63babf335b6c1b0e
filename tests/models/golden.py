"""What published networks give, computed by other code: tests/golden/NAME.npz.

The weights are in no file: each follows from its name (`_drawn`), but for the running statistics of batch
normalisations. These are what one forward pass in training mode finds on the two pictures of tests/golden/images.npz,
dropout off. So they tell whether a network's training mode is right, too. That file also holds the images that most
goldens share.

Outputs are of the inference mode, but for those named 'train_...', and all images are normalised by ImageNet's mean and
standard deviation. To copy goldens from the folder of the complete ones:

    python -m tests.models.golden FOLDER NAME=64x128,96x72 ...
"""

import json
import pathlib
import sys
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models import apply, create_model, network
from atonet_jax.models.blocks import BatchNorm
from atonet_jax.models.contract import IMAGENET
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.torch_weights import from_torch, to_torch

FOLDER = pathlib.Path(__file__).parent.parent / 'golden'
PIXELS = 400  # of each output that a copy keeps
RAISED = 0.5  # the least variance of those that `Golden.raised` names
ALLOWED = 10  # the largest `Output.error` of a match: times what rounding alone does


class Output(NamedTuple):
    """Some pixels of an output.

    Attributes:
        values: [..., pixels, C] float32.
        places: [pixels, 2], their rows and columns.
        shape: (height, width, channels) of the whole output.
        rounding: the largest difference to the same network in float64, of the code that made the golden.
    """

    values: np.ndarray
    places: np.ndarray
    shape: tuple[int, int, int]
    rounding: float

    def error(self, output: jax.Array) -> float:
        """The largest difference of an output, [..., H, W, C], in units of `rounding`. Up to `ALLOWED` is a match."""
        assert output.shape[-3:] == self.shape
        return np.abs(np.asarray(output)[..., *self.places.T, :] - self.values).max() / self.rounding


class Golden(NamedTuple):
    """One network's golden.

    Attributes:
        name: of the network.
        num_classes: of its logits.
        state_dict: weights and running statistics, in torch's names and layouts.
        inputs: {'64x128': [1, 64, 128, 3] float32 normalised}, and 'train' of two images where there is such a key.
        outputs: {'logits_64x128': ...}.
        statistics: names in `state_dict` of running means and variances.
        raised: variances that were raised to `RAISED`: of few values.
    """

    name: str
    num_classes: int
    state_dict: dict[str, np.ndarray]
    inputs: dict[str, jax.Array]
    outputs: dict[str, Output]
    statistics: list[str]
    raised: list[str]


def is_there(name: str, folder: pathlib.Path) -> bool:
    """Whether `load` can read it. The file of ATONet is another one, of tests/models/test_atonet.py alone."""
    path, complete = folder / f'{name}.npz', folder / f'{name}.json'
    if not path.exists():
        return False
    with np.load(path) as file:
        return 'description' in file or (complete.exists() and 'outputs' in json.loads(complete.read_text()))


def load(name: str, folder: pathlib.Path = FOLDER) -> Golden:
    """The golden `name`. `folder` may also be one of complete goldens."""
    with np.load(folder / f'{name}.npz') as file:
        arrays = dict(file)
    if 'description' in arrays:
        description = json.loads(arrays.pop('description').tobytes())
        arrays |= _split(arrays.pop('statistics'), description)
        with np.load(folder / 'images.npz') as file:
            arrays = {key: image for key, image in file.items() if key.startswith('input_')} | arrays
    else:
        description = json.loads((folder / f'{name}.json').read_text())
    outputs = {}
    for key, facts in description['outputs'].items():
        if key not in arrays:
            continue
        *_, channels, height, width = facts['shape']
        values, places = _pixels(arrays, key)
        outputs[key] = Output(
            values.swapaxes(-1, -2), places.astype(int), (height, width, channels), facts['float64_diff']
        )
    sizes = {key.split('_')[-1] for key in outputs if not key.startswith('train_')}
    inputs = {size: IMAGENET(arrays[f'input_{size}'][None]) for size in sizes}
    if 'train_input' in arrays:
        inputs['train'] = IMAGENET(arrays['train_input'])
    state_dict = {entry: _drawn(entry, shape, description, arrays) for entry, shape in description['state_dict']}
    return Golden(
        name,
        description['num_classes'],
        state_dict,
        inputs,
        outputs,
        description['buffers'],
        description['raised_var'],
    )


def _pixels(arrays: Mapping[str, np.ndarray], key: str) -> tuple[np.ndarray, np.ndarray]:
    """An output as [..., C, pixels], and their rows and columns, [pixels, 2]."""
    values = arrays[key]
    if f'{key}_at' in arrays:
        return values, arrays[f'{key}_at']
    size = values.shape[-2:]
    places = np.stack(np.unravel_index(np.arange(np.prod(size)), size), -1).astype(np.int16)
    return values.reshape(*values.shape[:-2], -1), places


def _drawn(name: str, shape: list[int], description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weight of a name, [shape] float32."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if name in description['buffers']:
        return arrays[name]
    if name in description['bilinear']:
        channels, side = shape[0], shape[2]
        factor = (side + 1) // 2
        line = 1 - np.abs(np.arange(side) - (factor - 1 if side % 2 else factor - 0.5)) / factor
        weight = np.zeros(shape)
        weight[range(channels), range(channels)] = np.outer(line, line)
    elif len(shape) >= 2:
        stride = description['transposed'].get(name)
        fan_in = shape[0] * shape[2] * shape[3] / stride**2 if stride else np.prod(shape[1:])
        weight = generator.standard_normal(shape) * np.sqrt(2 / fan_in)
    else:
        bounds = (0.8, 1.2) if name in description['bn_weight'] else (-0.1, 0.1)
        weight = generator.uniform(*((0.1, 0.4) if name in description['prelu'] else bounds), shape)
    return weight.astype(np.float32)


def _split(statistics: np.ndarray, description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    shapes = dict(map(tuple, description['state_dict']))
    ends = np.cumsum([np.prod(shapes[name], dtype=int) for name in description['buffers']])
    return dict(zip(description['buffers'], np.split(statistics, ends[:-1]), strict=True)) if len(ends) else {}


def train_mode(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> tuple[dict, dict]:
    """Outputs of the training mode without dropout, and {'batch_stats': those of this batch alone}."""

    def intercept(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            return args[0]
        if isinstance(context.module, BatchNorm):
            object.__setattr__(context.module, 'momentum', 0.0)  # a module called for one pass
        return next_fun(*args, **kwargs)

    @jax.jit
    def run(variables, images):
        with nn.intercept_methods(intercept):
            return apply(model, variables, images, train=True, mutable=['batch_stats'])

    return jax.device_get(run(variables, images))


def statistics_errors(golden: Golden, model: nn.Module, variables: Mapping[str, Any]) -> dict[str, float]:
    """How far the statistics of the calibration pictures are off, by name.

    Of a mean in units of its channel's standard deviation, of a variance in units of itself. Up to 1e-4 is a match.
    """
    with np.load(FOLDER / 'images.npz') as file:
        images = IMAGENET(file['calibration'])
    found = to_torch(dict(variables) | train_mode(model, variables, images)[1], model)
    return {name: statistic_error(golden, name, found[name]) for name in golden.statistics}


def statistic_error(golden: Golden, name: str, found: np.ndarray) -> float:
    """The error of one of `statistics_errors`."""
    variance = golden.state_dict[name.replace('running_mean', 'running_var')]
    unit = np.sqrt(variance) if name.endswith('running_mean') else variance
    ours = np.maximum(found, RAISED) if name in golden.raised else found
    return float(np.max(np.abs(ours - golden.state_dict[name]) / unit))


def with_weights(name: str, folder: pathlib.Path = FOLDER) -> tuple[Golden, nn.Module, dict[str, Any]]:
    """The golden `name`, its network, and the network's variables, with the golden's weights.

    The network has all that its files hold: ERFNet has the encoder's head too, which only training reads.
    """
    golden = load(name, folder)
    model = create_model(name, golden.num_classes)
    names = network(model).weights[0]
    whole = names.whole(model)
    return golden, whole, from_torch(golden.state_dict, whole)


def logits_errors(golden: Golden, variables: Mapping[str, Any]) -> dict[str, float]:
    """How far the logits of the registered network are off, by the name of the output. Up to `ALLOWED` is a match."""
    model = create_model(golden.name, golden.num_classes)
    run = jax.jit(lambda variables, images: apply(model, variables, images)['logits'])
    errors = {}
    for size, images in golden.inputs.items():
        if size == 'train':
            continue
        logits = run(variables, images)
        for output, of_original in golden.outputs.items():
            if output.startswith('logits') and output.endswith(f'_{size}'):
                # The original's logits are those of the network, or enlarged to the image.
                enlarged = ops.resize(logits, of_original.shape[:2], network(model).upsampling)
                errors[output] = float(of_original.error(enlarged[0]))
    return errors


def assert_names(golden: Golden, model: nn.Module, variables: Mapping[str, Any]) -> None:
    """`to_torch` gives the golden's names and arrays, and no others but what files hold whatever was learned."""
    back = to_torch(variables, model)
    fixed = set(network(model).weights[0].fixed(model.num_classes))
    names = {name for name in back if not name.endswith('num_batches_tracked')}
    assert names - (fixed - set(golden.state_dict)) == set(golden.state_dict)
    for name, array in golden.state_dict.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def assert_counts(
    name: str, num_classes: int, size: tuple[int, int], parameters: int, macs: int, **options: Any
) -> None:
    """The network has these counts at an image of `size`, and with 19 classes its contract tells them."""
    model = create_model(name, num_classes, **options)
    assert count_parameters(model)['parameters'] == parameters
    assert count_macs(model, size) == macs
    if num_classes == 19:
        published = network(model).published
        assert (published.parameters, published.macs) == (parameters, (size, macs))


def copy(source: pathlib.Path, name: str, sizes: list[str]) -> None:
    """Writes tests/golden/NAME.npz from a complete golden: outputs of images of `sizes`, at up to `PIXELS` pixels."""
    description = json.loads((source / f'{name}.json').read_text())
    kept = ('num_classes', 'state_dict', 'buffers', 'bn_weight', 'prelu', 'transposed', 'bilinear', 'raised_var')
    with np.load(source / f'{name}.npz') as file:
        complete = dict(file)
    keys = [key for key in description['outputs'] if key.startswith('train_') or key.split('_')[-1] in sizes]
    facts = {key: {fact: description['outputs'][key][fact] for fact in ('shape', 'float64_diff')} for key in keys}
    text = json.dumps({key: description[key] for key in kept} | {'outputs': facts}, separators=(',', ':'))
    statistics = [complete[buffer].ravel() for buffer in description['buffers']]
    arrays = {
        'description': np.frombuffer(text.encode(), np.uint8),
        'statistics': np.concatenate(statistics) if statistics else np.zeros(0, np.float32),
    }
    for key in keys:
        values, places = _pixels(complete, key)
        step = -(-len(places) // PIXELS)
        arrays[key], arrays[f'{key}_at'] = values[..., ::step], places[::step]
    if 'train_input' in complete:
        arrays['train_input'] = complete['train_input']
    with np.load(FOLDER / 'images.npz') as file:
        shared = dict(file)
    for image in (f'input_{size}' for size in sizes):
        if not np.array_equal(shared.get(image), complete[image]):
            arrays[image] = complete[image]
    np.savez_compressed(FOLDER / f'{name}.npz', **arrays)


if __name__ == '__main__':
    for argument in sys.argv[2:]:
        golden_name, _, of_sizes = argument.partition('=')
        copy(pathlib.Path(sys.argv[1]), golden_name, of_sizes.split(','))
