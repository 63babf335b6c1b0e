"""Trains our network and the PyTorch reference from the same weights on the same batches, side by side.

    python -m benchmarks.training_equivalence --output docs/training_equivalence.png

The published recipe (SGD, two parameter groups, cosine per epoch, auxiliary losses, dropout) on the synthetic scenes
of configs/synthetic.py. Every seed has weights and batches of its own, which three runs share: ours, PyTorch's, and
PyTorch's once more with other dropout, whose distance from the second is what chance alone does. Prints the mIoU of 40
held-out scenes as a table and draws it. The device cache gives the batches: PyTorch with Triton must not meet
TensorFlow. Needs requirements-benchmarks.txt; about half an hour on 2 cores.
"""

import argparse
import itertools
import runpy

import jax
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.device_cache import DeviceCache
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.sources import load_dataset
from atonet_jax.evaluation.metrics import Scores, confusion_matrix
from atonet_jax.inference.views import predict_labels
from atonet_jax.models import create_model
from atonet_jax.models.contract import IMAGENET
from atonet_jax.process.devices import create_mesh
from atonet_jax.torch_weights import from_torch
from atonet_jax.training.augment import augment
from atonet_jax.training.step import compile_train_step, create_state
from benchmarks import command
from benchmarks.recipe import BACKBONE_FACTOR, MOMENTUM, WEIGHT_DECAY, paper_recipe
from tests import torch_reference

NUM_CLASSES = CITYSCAPES.num_classes
RUNS = ('ours', 'PyTorch', 'PyTorch, other dropout')
BATCH_SIZE, EPOCHS = 4, 10
AUGMENTATION = Augmentation(crop_size=(128, 256))
PEAK = 0.02  # of the learning rate

count = jax.jit(confusion_matrix, static_argnums=2)


class OurTraining:
    def __init__(self, reference: torch_reference.ATONet, steps_per_epoch: int, seed: int):
        self._model = create_model('atonet', NUM_CLASSES)
        self._schedule, options = paper_recipe(
            self._model,
            AUGMENTATION,
            peak=PEAK,
            total_steps=EPOCHS * steps_per_epoch,
            seed=seed,
            epoch_of_step=lambda step: step // steps_per_epoch,
            total_epochs=EPOCHS,
        )
        mesh = create_mesh()
        self._step = compile_train_step(mesh, **options)
        self._steps = 0
        variables = from_torch(reference.state_dict(), self._model)
        self._state = create_state(variables, options['optimizer'], averaging=False, mesh=mesh)
        self._predict = jax.jit(lambda variables, images: predict_labels(self._model, variables, images))

    def step(self, batch: dict) -> None:
        self._state, _ = self._step(self._state, batch, self._schedule.at(self._steps))
        self._steps += 1

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._predict(self._state.variables, images))


class TorchTraining:
    def __init__(self, reference: torch_reference.ATONet, steps_per_epoch: int, seed: int):
        """seed: of dropout."""
        self._network = torch_reference.ATONet(NUM_CLASSES)
        self._network.load_state_dict(reference.state_dict())
        self._optimizer = torch_reference.recipe_optimizer(self._network, PEAK, MOMENTUM, WEIGHT_DECAY, BACKBONE_FACTOR)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, T_max=EPOCHS, eta_min=1e-6)
        self._steps_per_epoch = steps_per_epoch
        self._steps = 0
        self._dropout = torch.Generator().manual_seed(seed).get_state()

    def step(self, batch: dict) -> None:
        images, labels = (np.asarray(array) for array in _augment(batch, AUGMENTATION, None))
        torch.set_rng_state(self._dropout)
        self._network.train()
        outputs = self._network(_to_nchw(images))
        loss = sum(torch_reference.loss_terms(outputs, torch.from_numpy(labels.astype(np.int64))))
        self._dropout = torch.get_rng_state()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._steps += 1
        if self._steps % self._steps_per_epoch == 0:
            self._schedule.step()

    def predict(self, images: np.ndarray) -> np.ndarray:
        self._network.eval()
        with torch.no_grad():
            logits = self._network(_to_nchw(np.asarray(IMAGENET(images))))
            logits = functional.interpolate(logits, images.shape[1:3], mode='bilinear', align_corners=False)
        return logits.argmax(1).numpy().astype(np.uint8)


_augment = jax.jit(augment, static_argnums=1)


def _to_nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def score(training: OurTraining | TorchTraining, held_out: list[dict]) -> float:
    """mIoU in percent."""
    confusion = sum(
        np.asarray(count(batch['label'], training.predict(batch['image']), NUM_CLASSES), np.int64) for batch in held_out
    )
    return 100 * Scores.from_confusion(confusion).miou


def run_seed(seed: int, num_steps: int, eval_every: int, data) -> dict[str, list[float]]:
    """Held-out mIoU in percent of each of `RUNS`, every `eval_every` steps."""
    torch.manual_seed(seed)
    reference = torch_reference.ATONet(NUM_CLASSES)
    steps_per_epoch = num_steps // EPOCHS
    trainings = {
        'ours': OurTraining(reference, steps_per_epoch, seed),
        'PyTorch': TorchTraining(reference, steps_per_epoch, seed),
        'PyTorch, other dropout': TorchTraining(reference, steps_per_epoch, seed + 1000),
    }
    mesh = create_mesh()
    train, val = (DeviceCache(Examples(load_dataset(data, split)), mesh) for split in ('train', 'val'))
    batches = train.train_batches(
        batch_size=BATCH_SIZE,
        augmentation=AUGMENTATION,
        seed=seed,
        start_sample=0,
        num_steps=num_steps,
    )
    held_out = list(itertools.islice(val.eval_batches(batch_size=10), 4))
    curves = {name: [] for name in RUNS}
    for step, batch in enumerate(batches, 1):
        for name, training in trainings.items():
            training.step(batch)
            if step % eval_every == 0:
                curves[name].append(score(training, held_out))
        if step % eval_every == 0:
            figures = ', '.join(f'{name} {curve[-1]:.2f}' for name, curve in curves.items())
            print(f'seed {seed}, step {step}: mIoU % {figures}', flush=True)
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--eval_every', type=int, default=50)
    parser.add_argument('--root', default='data/synthetic', help='scenes of configs/synthetic.py, rendered if missing')
    parser.add_argument('--output', required=True, help='PNG to write')
    arguments = parser.parse_args()
    data = runpy.run_path('configs/synthetic.py')['get_config']().data
    data.root = arguments.root

    results = {seed: run_seed(seed, arguments.steps, arguments.eval_every, data) for seed in arguments.seeds}

    steps = range(arguments.eval_every, arguments.steps + 1, arguments.eval_every)
    print(f'| seed | run | {" | ".join(f"step {step}" for step in steps)} |')
    print('|---' * (2 + len(steps)) + '|')
    for seed, curves in results.items():
        for name, curve in curves.items():
            print(f'| {seed} | {name} | {" | ".join(f"{miou:.2f}" for miou in curve)} |')

    curves = {name: np.array([results[seed][name] for seed in arguments.seeds]) for name in RUNS}
    ours, torchs, again = (curves[name] for name in RUNS)
    print(f'mean over seeds and points: ours - PyTorch {np.mean(ours - torchs):+.2f}; distances: ours to PyTorch '
          f'{np.mean(abs(ours - torchs)):.2f}, PyTorch to itself {np.mean(abs(again - torchs)):.2f}, '
          f'one seed of PyTorch to its mean {np.mean(abs(torchs - torchs.mean(0))):.2f}')  # fmt: skip

    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for (name, lines), style in zip(curves.items(), ('-', '--', ':'), strict=True):
        for seed, line, color in zip(arguments.seeds, lines, plt.cm.tab10.colors):
            axes.plot(steps, line, style, color=color, marker='o', markersize=3, label=f'{name}, seed {seed}')
    axes.set(xlabel='step', ylabel='mIoU of held-out scenes, %', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, fontsize='small')
    figure.savefig(arguments.output, dpi=120)


if __name__ == '__main__':
    command.run(main)
