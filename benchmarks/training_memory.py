"""Memory that a training step takes, as XLA plans it, with and without `remat`; and what the loss by phases saves.

    python -m benchmarks.training_memory                                    # minutes on 2 cores
    python -m benchmarks.training_memory --crops 1024x1024 --batch-sizes 4 16 --rounds 50         # where there is a GPU

The full-size network, augmentation, auxiliary losses and SGD, state donated: arguments + outputs - what is reused +
temporaries. One of the steps is also timed: of the first crop and compute type and the last batch size. The plain loss
is what one writes first: logits resized to the labels, then cross-entropy. Times are medians of rounds in which each
takes a turn. On CPUs XLA finds that what `remat` computes again is there already; here it is kept from looking. Its
bfloat16 takes float32's memory there, and more, for its convolutions take float32.
"""

import argparse
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.models import create_model, init_variables
from atonet_jax.models.terms import Term
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.timing import in_turns
from atonet_jax.runs.environment import device_names, versions
from atonet_jax.training.losses import total_loss
from atonet_jax.training.step import compile_train_step, create_state
from benchmarks import command
from benchmarks.noise import noise_batch
from benchmarks.recipe import paper_recipe

NUM_CLASSES = 19


def compiler_options(runs: bool) -> dict:
    """Of programs that are to run, or are there to be looked at alone: these compile in half of the time."""
    if jax.default_backend() != 'cpu':
        return {}
    options = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
    return options if runs else options | {
        'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True
    }  # fmt: skip


class TrainingStep:
    """The step that `--mode=train` takes, for one batch size and compute type."""

    def __init__(self, crop: tuple[int, int], batch_size: int, dtype: str, remat: bool):
        self._model = create_model('atonet', NUM_CLASSES, dtype=jnp.dtype(dtype))
        augmentation = Augmentation(crop)
        schedule, options = paper_recipe(self._model, augmentation, peak=0.01, total_steps=1000, remat=remat)
        self.numbers = schedule.at(0)
        self._optimizer = options['optimizer']
        self._mesh = create_mesh()
        self._jitted = compile_train_step(self._mesh, **options)
        self.batch = noise_batch(augmentation, batch_size, NUM_CLASSES)

    def state(self):
        variables = init_variables(self._model, 0)
        return create_state(variables, self._optimizer, averaging=False, mesh=self._mesh)

    def lower(self) -> jax.stages.Lowered:
        """(state, batch, numbers) -> (state, metrics)."""
        return self._jitted.lower(jax.eval_shape(self.state), self.batch, self.numbers)

    def turn(self) -> Callable[[], None]:
        """A function that takes a step and waits for it."""
        step, state = self.lower().compile(compiler_options(runs=True)), self.state()

        def take():
            nonlocal state
            state, _ = jax.block_until_ready(step(state, self.batch, self.numbers))

        return take


def noise_labels(crop: tuple[int, int], batch_size: int) -> np.ndarray:
    """[B, H, W] uint8, one in 20 of them ignored."""
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES + 1, (batch_size, *crop), np.uint8)
    return np.where(labels == NUM_CLASSES, np.uint8(IGNORE_LABEL), labels)


def plain_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[B, h, w, C] logits resized to [B, H, W] labels, then cross-entropy; a mean over labelled pixels."""
    logits = jax.image.resize(logits, (*labels.shape, logits.shape[-1]), 'bilinear')
    labelled = labels != IGNORE_LABEL
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(labelled, labels, 0).astype(jnp.int32))
    return jnp.sum(losses * labelled) / jnp.sum(labelled)


def our_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The main term of the training loss."""
    return total_loss({'logits': logits}, labels, (Term('logits'),))[0]


def megabytes(program: jax.stages.Compiled) -> tuple[float, float]:
    """What a program takes in all, and its temporaries."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (held + memory.temp_size_in_bytes) / 1e6, memory.temp_size_in_bytes / 1e6


def median_milliseconds(turns: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    return {name: 1e3 * float(np.median(times[:, 0])) for name, times in in_turns(turns, rounds).items()}


def compare_steps(crops, batch_sizes, dtypes) -> None:
    print('| crop | batch | dtype | MB | of them temporary | with remat: MB | of them temporary |')
    print('|---|---|---|---|---|---|---|')
    for crop in crops:
        for batch_size in batch_sizes:
            for dtype in dtypes:
                steps = [TrainingStep(crop, batch_size, dtype, remat).lower() for remat in (False, True)]
                plain, remat = (megabytes(step.compile(compiler_options(runs=False))) for step in steps)
                figures = ' | '.join(f'{figure:.0f}' for figure in plain + remat)
                print(f'| {crop[0]}x{crop[1]} | {batch_size} | {dtype} | {figures} |', flush=True)


def time_steps(crop, batch_size, dtype, rounds) -> None:
    turns = {name: TrainingStep(crop, batch_size, dtype, name == 'remat').turn() for name in ('plain', 'remat')}
    times = median_milliseconds(turns, rounds)
    print(
        f'{batch_size} crops of {crop[0]}x{crop[1]}, {dtype}: {times["plain"]:.0f} ms a step, with remat '
        f'{times["remat"]:.0f}, {times["remat"] / times["plain"]:.2f} times as long',
        flush=True,
    )


def compare_losses(crop, batch_size, strides, rounds) -> None:
    labels = jnp.asarray(noise_labels(crop, batch_size))
    print(f'main loss and its gradient, {batch_size} crops of {crop[0]}x{crop[1]}:')
    print('| stride of the logits | loss | MB temporary | ms |')
    print('|---|---|---|---|')
    for stride in strides:
        shape = batch_size, -(-crop[0] // stride), -(-crop[1] // stride), NUM_CLASSES
        logits = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        programs = {
            name: jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile(compiler_options(runs=True))
            for name, loss in {'plain': plain_loss, 'in parts': our_loss}.items()
        }
        turns = {
            name: lambda program=program: jax.block_until_ready(program(logits, labels))
            for name, program in programs.items()
        }
        times = median_milliseconds(turns, rounds)
        for name, program in programs.items():
            print(f'| {stride} | {name} | {megabytes(program)[1]:.0f} | {times[name]:.1f} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--crops', type=command.size, nargs='+', default=[(256, 512), (512, 512)], metavar='HxW')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'], choices=('float32', 'bfloat16'))
    parser.add_argument('--strides', type=int, nargs='+', default=[4, 8, 32], help='of the logits, for the loss alone')
    parser.add_argument('--rounds', type=int, default=9, help='of the timings')
    arguments = parser.parse_args()
    crops, batch_sizes = arguments.crops, arguments.batch_sizes
    print(f'{device_names()}; {versions("jax")}')
    compare_steps(crops, batch_sizes, arguments.dtypes)
    time_steps(crops[0], batch_sizes[-1], arguments.dtypes[0], arguments.rounds)
    compare_losses(crops[-1], batch_sizes[-1], arguments.strides, arguments.rounds)


if __name__ == '__main__':
    command.run(main)
