"""Evaluates published weights on real images, and compares each count with what the original networks give.

    python -m benchmarks.reference_weights --weights DIR --camvid DIR --cityscapes DIR

docs/weights.md says where the weights are published. Each file is loaded as a user would load it: the file says which
network it is for. The product's own evaluation then counts the pixels of the 233 test images of CamVid, in the repack
of 360x480, or of three images of Cityscapes. benchmarks/reference_weights.json holds the counts of the original
networks in PyTorch, and how many pixels may differ: those whose two best outputs are so close that rounding decides.

The weights for Cityscapes were trained on images of half the size. There the mean of 2x2 pixels is the network's input,
and each of its labels counts for 2x2 pixels, as in the counts of the originals.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from atonet_jax import models
from atonet_jax.data.batches import Batches
from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.examples import Examples
from atonet_jax.data.sources import load_dataset
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.models.contract import Family, Network
from atonet_jax.ops import resize
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import config_of_file, trained_network
from benchmarks import command

REFERENCES = pathlib.Path(__file__).with_suffix('.json')


class AtHalf(nn.Module):
    """A network that sees an image at half its size, and whose labels are repeated.

    Attributes:
        network: the network.
        num_classes: its outputs.
        dtype: its compute type.
    """

    network: nn.Module
    num_classes: int
    dtype: jnp.dtype

    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """[B, 2 * H, 2 * W, 3] float32, normalised -> {'logits': [B, 2 * H, 2 * W, num_classes] float32}."""
        batch, height, width, _ = images.shape
        size = height // 2, width // 2
        halved = images.reshape(batch, size[0], 2, size[1], 2, 3).mean((2, 4))
        logits = self.network(halved, train)['logits']
        logits = resize(logits, size, models.network(self.network).upsampling)
        return {'logits': logits.repeat(2, axis=1).repeat(2, axis=2)}


def describe(model: AtHalf) -> Network:
    contract = models.network(model.network)
    return dataclasses.replace(contract, multiple_of=2 * contract.multiple_of, smallest=2 * contract.smallest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (
        ('weights', 'the folder of the files of weights'),
        ('camvid', 'the root of CamVid'),
        ('cityscapes', 'the root of Cityscapes'),
    ):
        parser.add_argument(f'--{name}', required=True, metavar='DIR', help=what)
    arguments = parser.parse_args()
    models.FAMILIES.append(Family(AtHalf, describe, {}))

    print('| file | network | images | mIoU, % | of the original | pixels that differ | may differ |')
    print('|---|---|---|---|---|---|---|', flush=True)
    all_equal = True
    for file, reference in json.loads(REFERENCES.read_text()).items():
        config = config_of_file(os.path.join(arguments.weights, file))
        config.data.root = getattr(arguments, config.data.name)
        counts, expected = evaluate(config, reference), np.array(reference['confusion'])
        different = abs(counts - expected).sum() // 2
        all_equal &= bool(different <= reference['near_ties'] and counts.sum() == expected.sum())
        print(
            f'| {file} | {config.model.name} | {reference["images_text"]} | {100 * miou(counts):.3f} '
            f'| {100 * miou(expected):.3f} | {different} | {reference["near_ties"]} |',
            flush=True,
        )
    print(f'\n{"The same" if all_equal else "NOT the same"} on {os.cpu_count()} cores, {jax.default_backend()}.')
    return 0 if all_equal else 1


def evaluate(config: ConfigDict, reference: dict) -> np.ndarray:
    """The counts of a network, [C, C + 1] by [true class, predicted class or void], by the product's evaluation."""
    mesh = create_mesh()
    with tempfile.TemporaryDirectory() as nowhere:
        trained = trained_network(config, nowhere, mesh)
    model, variables = trained.model, trained.variables
    if reference['at_half']:
        model = AtHalf(model, model.num_classes, model.dtype)
        variables = {name: {'network': tree} for name, tree in variables.items()}
    config.eval.update(height=0, pictures=0)
    dataset = named(load_dataset(config.data, reference['split']), reference['names'])
    return Evaluator(model, Batches(Examples(dataset), mesh), config.eval).run(variables).confusion


def named(dataset: SegmentationDataset, names: list[str]) -> SegmentationDataset:
    """The images of a split whose files begin with these names; all of them where there are no names."""
    kept = [i for i, path in enumerate(dataset.image_paths) if os.path.basename(path).startswith(tuple(names or ['']))]
    paths = {field: tuple(getattr(dataset, field)[i] for i in kept) for field in ('image_paths', 'label_paths')}
    return dataclasses.replace(dataset, **paths)


def miou(counts: np.ndarray) -> float:
    """Over the classes that the labels show, as the published figures are."""
    return float(np.mean(Scores.from_confusion(counts).class_iou[counts.sum(1) > 0]))


if __name__ == '__main__':
    command.run(main)
