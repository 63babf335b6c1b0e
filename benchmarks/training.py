"""Training speed: our step beside the PyTorch reference's (tests/torch_reference.py), on one machine in one run.

    python -m benchmarks.training             # on CPU 4 crops of 256x512, float32; on a GPU 16 of 1024x1024, bfloat16
    python -m benchmarks.training --devices   # what splitting a batch over simulated CPU devices costs

The paper's recipe and the full-size network, the same weights, crops and labels: forward, the main loss at full
resolution and the auxiliary ones, gradients, SGD with two groups. Ours starts from windows of bytes and makes the crops
itself, as in training; PyTorch gets them made. Both have their data on the device. PyTorch runs eager, and on CUDA also
compiled; there it is channels_last, and bfloat16 is autocast. Each has a process, set up as it is used. A round lets
each take its turn of so many steps, so that disturbances hit all alike: medians, and medians of the rounds' ratios. The
share of the matrix rate is what a step's convolutions would take at the speed of one large matrix product, measured in
the same run, over what the step takes. Needs requirements-parity.txt.
"""

import argparse
import json
import os
import subprocess
import sys

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # before JAX is imported: PyTorch needs memory too

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from atonet_jax.data.augmentation import Augmentation  # noqa: E402
from atonet_jax.data.labels import CITYSCAPES  # noqa: E402
from atonet_jax.models import create_model, init_variables  # noqa: E402
from atonet_jax.process.devices import create_mesh, keep_freed_memory, split_by_batch  # noqa: E402
from atonet_jax.process.timing import PAUSE, in_turns  # noqa: E402
from atonet_jax.runs.environment import device_names, versions  # noqa: E402
from atonet_jax.torch_weights import from_torch  # noqa: E402
from atonet_jax.training.augment import augment  # noqa: E402
from atonet_jax.training.step import compile_train_step, create_state  # noqa: E402
from benchmarks import command  # noqa: E402
from benchmarks.matrix_rate import matrix_rate  # noqa: E402
from benchmarks.noise import noise_batch  # noqa: E402
from benchmarks.recipe import BACKBONE_FACTOR, MOMENTUM, WEIGHT_DECAY, forward_macs, paper_recipe  # noqa: E402
from tests import torch_reference  # noqa: E402

NUM_CLASSES = CITYSCAPES.num_classes
PEAK = 0.01  # of the learning rate
DEVICE_COUNTS = (1, 2, 4, 8)
TINY = {'width': 16, 'backbone_width': 8}  # for the simulated devices: what splitting costs, not what computing does
TINY_SIZE, TINY_BATCH_SIZE, TINY_STEPS = (64, 128), 8, 10


class OurTraining:
    """The step that `--mode=train` takes, over all devices."""

    def __init__(self, model, variables, augmentation: Augmentation, batch: dict[str, np.ndarray]):
        mesh = create_mesh()
        self._schedule, options = paper_recipe(model, augmentation, peak=PEAK, total_steps=100_000)
        self._step = compile_train_step(mesh, **options)
        self._steps = 0
        self._state = create_state(variables, options['optimizer'], averaging=False, mesh=mesh)
        self._batch = jax.device_put(batch, split_by_batch(mesh))

    def run(self, steps: int) -> float:
        """Returns the last step's loss."""
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch, self._schedule.at(self._steps))
            self._steps += 1
        jax.block_until_ready(self._state)
        return float(metrics['loss'])


class TorchTraining:
    """What a PyTorch training script does from crops on the device."""

    def __init__(self, state_dict, images: np.ndarray, labels: np.ndarray, *, device: str, dtype: str, compiled: bool):
        """images: [B, H, W, 3] float32, normalised; labels: [B, H, W] uint8."""
        memory_format = torch.channels_last if device == 'cuda' else torch.contiguous_format
        self._network = torch_reference.ATONet(NUM_CLASSES)
        self._network.load_state_dict(state_dict)
        self._network.to(device, memory_format=memory_format).train()
        self._images = torch.tensor(np.moveaxis(images, -1, 1)).to(device).contiguous(memory_format=memory_format)
        self._labels = torch.tensor(labels.astype(np.int64)).to(device)
        self._optimizer = torch_reference.recipe_optimizer(self._network, PEAK, MOMENTUM, WEIGHT_DECAY, BACKBONE_FACTOR)
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')
        self._loss = torch.compile(self._eager_loss) if compiled else self._eager_loss

    def run(self, steps: int) -> float:
        """Returns the last step's loss."""
        for _ in range(steps):
            with self._autocast:
                loss = self._loss(self._images, self._labels)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        if loss.is_cuda:
            torch.cuda.synchronize()
        return loss.item()

    def _eager_loss(self, images, labels):
        return sum(torch_reference.loss_terms(self._network(images), labels))


class Worker:
    """A system in a process of its own, as it is used; it takes a turn when told to."""

    def __init__(self, arguments: list[str], xla_flags: str = ''):
        env = {**os.environ, 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {xla_flags}'.strip()}
        command = [sys.executable, '-m', 'benchmarks.training', *arguments]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = self._process.stdout.readline()
        if not first:
            raise SystemExit(f'{arguments[1]}: could not take a step; its error is above')
        self.ready = json.loads(first)

    def turn(self) -> None:
        print(file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():
            raise SystemExit('a system ended in the middle; its error is above')

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def work(arguments: argparse.Namespace) -> None:
    """What a worker does: says what its first step gave, then takes a turn for each line that it reads."""
    if arguments.worker == 'devices':
        augmentation = Augmentation(crop_size=TINY_SIZE, scale_range=(1.0, 2.0))
        model = create_model('atonet', NUM_CLASSES, **TINY)
        variables = init_variables(model, 0)
        training = OurTraining(model, variables, augmentation, noise_batch(augmentation, TINY_BATCH_SIZE, NUM_CLASSES))
    else:
        training = full_size_training(arguments)
    print(json.dumps({'loss': training.run(1)}), flush=True)
    for _ in sys.stdin:
        training.run(arguments.steps)
        print(flush=True)


def full_size_training(arguments: argparse.Namespace) -> OurTraining | TorchTraining:
    """Of the system `arguments.worker`; all have the same weights, crops and labels."""
    torch.manual_seed(0)
    state_dict = torch_reference.ATONet(NUM_CLASSES).state_dict()
    augmentation = Augmentation(crop_size=arguments.size, scale_range=(1.0, 2.0))
    batch = noise_batch(augmentation, arguments.batch_size, NUM_CLASSES)
    if arguments.worker == 'jax':
        model = create_model('atonet', NUM_CLASSES, dtype=jnp.dtype(arguments.dtype))
        return OurTraining(model, from_torch(state_dict, model), augmentation, batch)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')  # XLA takes TF32 too
    torch.set_num_threads(os.cpu_count())
    crops = [np.asarray(array) for array in jax.jit(augment, static_argnums=1)(batch, augmentation)]
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    compiled = arguments.worker == 'torch.compile'
    return TorchTraining(state_dict, *crops, device=device, dtype=arguments.dtype, compiled=compiled)


def compare(arguments: argparse.Namespace) -> None:
    """Prints a table of the systems."""
    on_gpu = jax.default_backend() == 'gpu'
    size, batch_size, dtype, steps = arguments.size, arguments.batch_size, arguments.dtype, arguments.steps
    systems = {'PyTorch eager': 'torch'} | ({'PyTorch torch.compile': 'torch.compile'} if on_gpu else {})
    systems['ours, JAX'] = 'jax'
    shape = ['--size', f'{size[0]}x{size[1]}', '--batch-size', str(batch_size), '--dtype', dtype, '--steps', str(steps)]
    workers = {name: Worker(['--worker', worker, *shape]) for name, worker in systems.items()}
    turns = {name: worker.turn for name, worker in workers.items()}
    times = in_turns(turns, arguments.rounds, arguments.warmup, PAUSE)
    for worker in workers.values():
        worker.end()
    times = {name: of_system[:, 0] for name, of_system in times.items()}
    rate = matrix_rate(dtype, 8192, 20) if on_gpu else matrix_rate(dtype, 2048, 2)

    model = create_model('atonet', NUM_CLASSES, dtype=jnp.dtype(dtype))
    # The gradients of a convolution's input and of its kernel each take what it takes.
    flops = 3 * 2 * forward_macs(model, batch_size, size)
    print(
        f'{size[0]}x{size[1]} crops, batch {batch_size}, {dtype}; {arguments.rounds} rounds of {steps} step(s) a turn'
    )
    print(f'convolutions of a step: {flops / 1e12:.3f} TFLOP; {dtype} matrix products: {rate / 1e12:.2f} TFLOP/s')
    print('| system | ms/step: median | p5 | p95 | images/s | times as fast as PyTorch eager '
          '| share of the matrix rate % | first loss |')  # fmt: skip
    print('|---|---|---|---|---|---|---|---|')
    for name, seconds in times.items():
        low, median, high = np.percentile(seconds / steps, [5, 50, 95])
        speed = np.median(times['PyTorch eager'] / seconds)
        print(f'| {name} | {1e3 * median:.1f} | {1e3 * low:.1f} | {1e3 * high:.1f} | {batch_size / median:.2f} '
              f'| {speed:.3f} | {100 * flops / rate / median:.1f} | {workers[name].ready["loss"]:.4f} |')  # fmt: skip


def compare_device_counts(rounds: int) -> None:
    """Prints what a step of a small network takes when the same batch is split over more devices of the same cores."""
    options = ['--worker', 'devices', '--steps', str(TINY_STEPS)]
    workers = {count: Worker(options, f'--xla_force_host_platform_device_count={count}') for count in DEVICE_COUNTS}
    times = in_turns({count: worker.turn for count, worker in workers.items()}, rounds, pause=PAUSE)
    milliseconds = {count: 1e3 * of_count[:, 0] / TINY_STEPS for count, of_count in times.items()}
    for worker in workers.values():
        worker.end()
    print(f'{TINY_SIZE[0]}x{TINY_SIZE[1]} crops, batch {TINY_BATCH_SIZE}, a network of {TINY}, float32; '
          f'{rounds} rounds of {TINY_STEPS} steps a turn')  # fmt: skip
    print('| simulated CPU devices | ms/step: median | beyond one device, ms |')
    print('|---|---|---|')
    for count in DEVICE_COUNTS:
        extra = np.median(milliseconds[count] - milliseconds[1])
        print(f'| {count} | {np.median(milliseconds[count]):.1f} | {extra:.1f} |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=command.size, help='of the crops, HxW')
    parser.add_argument('--batch-size', type=int)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'))
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--warmup', type=int, default=4, help='rounds before those that count')
    parser.add_argument('--steps', type=int, help='of a turn')
    parser.add_argument('--devices', action='store_true', help='instead: 1 to 8 simulated CPU devices')
    parser.add_argument('--worker', choices=('jax', 'torch', 'torch.compile', 'devices'), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == 'jax':
        keep_freed_memory()  # as `--mode=train` does, before anything else
    if arguments.worker:
        work(arguments)
        return
    print(f'{device_names()}; {versions("jax", "jaxlib", "torch")}')
    if arguments.devices:
        compare_device_counts(arguments.rounds)
        return
    on_cpu = jax.default_backend() == 'cpu'
    defaults = {'size': (256, 512), 'batch_size': 4, 'dtype': 'float32', 'steps': 1} if on_cpu else {
        'size': (1024, 1024), 'batch_size': 16, 'dtype': 'bfloat16', 'steps': 10
    }  # fmt: skip
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    compare(arguments)


if __name__ == '__main__':
    command.run(main)
