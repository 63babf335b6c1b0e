"""What data-parallel training moves and stores, by arithmetic from the full-size network's shapes; nothing is timed.

    python -m benchmarks.scaling_arithmetic

Of the paper's Cityscapes recipe: crops of 1024x1024 at scales of 1 to 2, four a device, auxiliary heads, SGD. A ring
all-reduce over n devices sends 2 (n - 1) / n times the gradients from each; statistics of batch norm go the same way,
twice forward (sum and sum of squares) and twice backward.
"""

import argparse
import math

import jax

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.sampling import window_size
from atonet_jax.models import abstract_variables, create_model

PER_DEVICE = 4
IMAGES_PER_SECOND = 50  # that each device trains, as an assumption
PNG_BYTES = 2.3e6  # of a Cityscapes image, about


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    variables = abstract_variables(create_model('atonet', 19))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
    statistics = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['batch_stats']))
    layers = len(jax.tree.leaves(variables['batch_stats'])) // 2
    window = window_size(Augmentation((1024, 1024), (1.0, 2.0)))
    crop = 4 * math.prod(window)  # RGB and label, bytes
    print(f'{parameters:,} parameters, {layers} batch-norm layers with {statistics // 2:,} channels')
    sgd, adamw, averaged = (4 * (copies * parameters + statistics) / 1e6 for copies in (2, 3, 1))
    print(f'checkpoint: {sgd:.0f} MB with SGD, {adamw:.0f} MB with AdamW, {averaged:.0f} MB more with an average')
    print(f'a crop as it goes to the device: {window[0]}x{window[1]} pixels, {crop / 1e6:.2f} MB')
    print(f'\nwhere each device trains {IMAGES_PER_SECOND} images/s:')
    print('| devices | batch | gradients sent by each, MB a step | statistics, MB | bytes to each device, MB/s '
          '| PNGs read by all, GB/s | decoded cache read by all, GB/s |')  # fmt: skip
    print('|---|---|---|---|---|---|---|')
    for count in (8, 64, 512):
        ring = 2 * (count - 1) / count
        print(f'| {count} | {PER_DEVICE * count} | {ring * 4 * parameters / 1e6:.1f} | '
              f'{ring * 4 * 2 * statistics / 1e6:.2f} | {IMAGES_PER_SECOND * crop / 1e6:.0f} | '
              f'{count * IMAGES_PER_SECOND * PNG_BYTES / 1e9:.1f} | '
              f'{count * IMAGES_PER_SECOND * crop / 1e9:.1f} |')  # fmt: skip


if __name__ == '__main__':
    main()
