"""Images per second and core of the input pipeline, beside the plain way, in one run.

    python -m benchmarks.input_pipeline

Renders street scenes as PNGs of 1024x2048 and makes training crops of 1024x1024 at scales of 1 to 2 from them: the
host's part of it, which a GPU or TPU waits for. The plain way is what training scripts usually do on the host: Pillow
decodes, the whole image is scaled, cropped, flipped and normalised, and labels are made smaller for auxiliary losses.
Ours is `data.pipeline.train_batches`, whose batches the device scales, flips and normalises.

The process is bound to one core, and the ways take turns; figures are medians over rounds. The files stay in the page
cache, so no disk is measured. 'Cold' decodes them each time.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ |= {'TF_CPP_MIN_LOG_LEVEL': '2', 'TF_ENABLE_ONEDNN_OPTS': '0'}
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow counts the cores; Linux alone has this

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import psutil  # noqa: E402

from atonet_jax.data.augmentation import Augmentation  # noqa: E402
from atonet_jax.data.cityscapes import load_cityscapes  # noqa: E402
from atonet_jax.data.dataset import SegmentationDataset  # noqa: E402
from atonet_jax.data.decode import read_example  # noqa: E402
from atonet_jax.data.examples import Examples  # noqa: E402
from atonet_jax.data.pipeline import train_batches  # noqa: E402
from atonet_jax.data.sampling import example_of_sample  # noqa: E402
from atonet_jax.data.synthetic import write_dataset  # noqa: E402
from atonet_jax.data.verify import verify  # noqa: E402
from atonet_jax.models.contract import IMAGENET  # noqa: E402
from atonet_jax.runs.environment import cpu_name  # noqa: E402
from benchmarks import command  # noqa: E402

MEAN_RGB, STDDEV_RGB = IMAGENET.in_pixel_values()

SIZE, CROP, SCALES = (1024, 2048), (1024, 1024), (1.0, 2.0)
BATCH_SIZE = 4
AUX_STRIDES = (4, 8, 16)
AUGMENTATION = Augmentation(crop_size=CROP, scale_range=SCALES)
# Of one 1024x1024 crop: 66.99 GMACs forward (tests/models/test_atonet.py), two operations each, and twice that for the
# gradients.
TRAINING_TFLOP = 3 * 2 * 66.99e9 / 1e12


def plain_example(dataset: SegmentationDataset, i: int, rng: np.random.Generator):
    """A crop, its labels and their smaller copies, as a training script without a plan makes them."""
    image = PIL.Image.open(dataset.image_paths[i]).convert('RGB')
    labels = PIL.Image.fromarray(dataset.train_ids[np.asarray(PIL.Image.open(dataset.label_paths[i]))])
    scale = rng.uniform(*SCALES)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    labels = labels.resize((width, height), PIL.Image.Resampling.NEAREST)
    top, left = rng.integers(height - CROP[0] + 1), rng.integers(width - CROP[1] + 1)
    box = (left, top, left + CROP[1], top + CROP[0])
    image, labels = np.asarray(image.crop(box)), np.asarray(labels.crop(box))
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image = (image.astype(np.float32) - MEAN_RGB) / STDDEV_RGB
    return image, labels.copy(), [labels[::stride, ::stride].copy() for stride in AUX_STRIDES]


def plain_batches(dataset: SegmentationDataset, start_step: int, num_steps: int):
    rng = np.random.default_rng(start_step)
    for step in range(start_step, start_step + num_steps):
        samples = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        images, labels, _ = zip(*(plain_example(dataset, example_of_sample(0, len(dataset), g), rng) for g in samples))
        yield np.stack(images), np.stack(labels)


def our_batches(examples: Examples, start_step: int, num_steps: int):
    return train_batches(
        examples,
        batch_size=BATCH_SIZE,
        augmentation=AUGMENTATION,
        seed=0,
        start_sample=start_step * BATCH_SIZE,
        num_steps=num_steps,
    )


def seconds_per_image(batches, num_steps: int) -> float:
    """All that is made is waited for, and what starting costs counts too."""
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    assert count == num_steps
    return (time.perf_counter() - start) / (num_steps * BATCH_SIZE)


def compare(ways: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds per image of each way, a number a round; the ways take turns. `ways`: (batches of (start, n), n)."""
    figures = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, (batches, num_steps) in ways.items():
            seconds = seconds_per_image(batches(round_number * num_steps, num_steps), num_steps)
            if round_number:  # the first fills caches
                figures[name].append(seconds)
    return figures


def time_to_first_batch(examples: Examples, start_step: int) -> float:
    start = time.perf_counter()
    next(our_batches(examples, start_step, 1))
    return time.perf_counter() - start


def memory_over(examples: Examples, num_steps: int) -> tuple[float, float]:
    """Resident MB of this process: the median of the second tenth of the steps, and that of the last."""
    resident = []
    for _ in our_batches(examples, 0, num_steps):
        resident.append(psutil.Process().memory_info().rss / 1e6)
    tenth = num_steps // 10
    return statistics.median(resident[tenth : 2 * tenth]), statistics.median(resident[-tenth:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scenes', type=int, default=12, help='images to render')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--memory-steps', type=int, default=200, help='batches over which memory is watched')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, 'scenes')
        write_dataset(root, splits={'train': arguments.scenes}, height=SIZE[0], width=SIZE[1], seed=0)
        dataset = verify(load_cityscapes(str(root), 'train'))
        size = statistics.mean(os.path.getsize(path) for path in dataset.image_paths)
        print(f'{len(dataset)} PNGs of {SIZE[0]}x{SIZE[1]}, {size / 1e6:.1f} MB on average; one core of {cpu_name()}')
        cold = Examples(dataset)
        cache_dir = os.path.join(folder, 'decoded')
        caches = {name: Examples(dataset, cache=name, cache_dir=cache_dir) for name in ('memory', 'disk')}
        ways = {
            'plain': (lambda start, n: plain_batches(dataset, start, n), 4),
            'ours, cold': (lambda start, n: our_batches(cold, start, n), 10),
            'ours, cached in memory': (lambda start, n: our_batches(caches['memory'], start, n), 60),
            'ours, cached on disk': (lambda start, n: our_batches(caches['disk'], start, n), 60),
        }
        figures = compare(ways, arguments.rounds)

        rates = (10, 100, 400)
        print(f'\n{"":57}cores that feed a device which trains at')
        head = ''.join(f'{rate:>5} TFLOP/s' for rate in rates)
        print(f'{"":24}{"ms/image":>10}{"images/s":>10}{"times plain":>13}{head}')
        for name, seconds in figures.items():
            median = statistics.median(seconds)
            ratio = statistics.median(plain / ours for plain, ours in zip(figures['plain'], seconds))
            cores = ''.join(f'{rate / TRAINING_TFLOP * median:13.1f}' for rate in rates)
            print(f'{name:24}{1e3 * median:10.1f}{1 / median:10.1f}{ratio:13.2f}{cores}')
        decode = [timed_decode(dataset, i) for i in range(len(dataset))]
        print(f'of which decoding image and labels: {1e3 * statistics.median(decode):.1f} ms')

        first = {step: [] for step in (10, 10_000)}
        for _ in range(arguments.rounds):
            for step, seconds in first.items():
                seconds.append(time_to_first_batch(caches['memory'], step))
        text = ', '.join(f'{1e3 * statistics.median(seconds):.1f} ms at step {step}' for step, seconds in first.items())
        print(f'\nfrom start to the first batch: {text}')
        early, late = memory_over(cold, arguments.memory_steps)
        print(f'resident memory over {arguments.memory_steps} batches, cold: {early:.0f} MB early, {late:.0f} MB late')


def timed_decode(dataset: SegmentationDataset, i: int) -> float:
    start = time.perf_counter()
    read_example(dataset, i)
    return time.perf_counter() - start


if __name__ == '__main__':
    command.run(main)
