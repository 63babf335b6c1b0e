"""Writes tests/golden/segnet_ties.npz: where SegNet's golden found the values of its pools, wherever rounding decides.

The decoder puts values back where a pool found them. Of two values that differ by rounding alone each machine may take
another one, PyTorch itself among them, and one such choice moves statistics of the decoder by up to 2e-3. So the test
takes the golden's choice there. The golden does not hold it, but shows it: its statistics follow, to 2e-6, from one set
of choices alone, and that is searched for here, by PyTorch in float64. By hand:

    python -m pip install -r requirements-parity.txt
    python -m tests.make_segnet_ties
"""

import os
import sys

# As the tests: before JAX is imported. TensorFlow and PyTorch never meet in one process.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.modules['tensorflow'] = None

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from atonet_jax.models.contract import IMAGENET  # noqa: E402
from tests.models import golden  # noqa: E402

BLOCKS = (2, 2, 3, 3, 3)
# Two values that differ by less may come out in either order in float32: some ten times what was seen, by level.
NEAR = (2e-5, 2e-4, 1e-3, 1e-3, 1e-3)
# Those that the golden's float32 took otherwise than float64 does are looked for among the nearest.
NEAREST = 2e-6


def forward(images, weights, taken=None):
    """(statistics, places, runners-up, gaps): of the training mode, [2, C, h, w] of each level.

    `taken` are places to use in place of those that are found.
    """
    statistics, places, others, gaps, sizes = {}, [], [], [], []

    def conv_norm(x, name):
        x = functional.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'], padding=1)
        statistics[f'{name}_bn.running_mean'] = x.mean((0, 2, 3))
        statistics[f'{name}_bn.running_var'] = x.var((0, 2, 3))
        scale, shift = weights[f'{name}_bn.weight'], weights[f'{name}_bn.bias']
        return functional.relu(functional.batch_norm(x, None, None, scale, shift, training=True))

    x = images
    for level, count in enumerate(BLOCKS, 1):
        for i in range(1, count + 1):
            x = conv_norm(x, f'conv{level}_{i}')
        sizes.append(x.shape[2:])
        pixels = torch.arange(x[0, 0].numel()).reshape(1, 1, *x.shape[2:]).expand(x.shape)
        of_windows, at = (a.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2) for a in (x, pixels))
        ordered = of_windows.sort(-1, descending=True)
        gaps.append(ordered.values[..., 0] - ordered.values[..., 1])
        others.append(at.gather(-1, ordered.indices)[..., 1])
        x, found = functional.max_pool2d(x, 2, return_indices=True)
        places.append(found)
    for level, count in reversed(list(enumerate(BLOCKS, 1))):
        x = functional.max_unpool2d(x, (taken or places)[level - 1], 2, output_size=sizes[level - 1])
        for i in range(count, 1 if level == 1 else 0, -1):
            x = conv_norm(x, f'conv{level}_{i}_D')
    return statistics, places, others, gaps


def error(statistics, expected):
    """The largest of `golden.statistics_errors`, of PyTorch's statistics."""
    return max(golden.statistic_error(expected, name, array.numpy()) for name, array in statistics.items())


@torch.no_grad()
def main():
    expected = golden.load('segnet')
    with np.load(golden.FOLDER / 'images.npz') as file:
        images = np.asarray(IMAGENET(file['calibration']), np.float64)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    weights = {name: torch.from_numpy(array).double() for name, array in expected.state_dict.items()}
    statistics, places, others, gaps = forward(images, weights)
    least = error(statistics, expected)
    print(f'With all places of float64: {least:.1e}')
    for level, (place, other, gap) in enumerate(zip(places, others, gaps, strict=True), 1):
        for tie in ((gap > 0) & (gap < NEAREST)).nonzero().tolist() if level > 1 else ():
            before, place[tuple(tie)] = place[tuple(tie)].clone(), other[tuple(tie)]
            now = error(forward(images, weights, places)[0], expected)
            if now < least:
                print(f'Level {level}, {tie}, values that differ by {gap[tuple(tie)]:.1e}: taken otherwise, {now:.1e}')
                least = now
            else:
                place[tuple(tie)] = before
    ties = []
    for level, (place, gap, near) in enumerate(zip(places, gaps, NEAR, strict=True), 1):
        image, channel, row, column = ((gap > 0) & (gap < near)).nonzero().T.numpy()
        index = place.numpy()[image, channel, row, column]
        ties.append(np.stack([np.full_like(image, level), image, row, column, channel, index]))
    ties = np.concatenate(ties, 1).astype(np.uint16)
    print(f'{ties.shape[1]} near ties')
    np.savez_compressed(golden.FOLDER / 'segnet_ties.npz', ties=ties)


if __name__ == '__main__':
    main()
