"""Prints each class's share of the labelled pixels of a Cityscapes folder, and weights that even it out.

    python -m benchmarks.class_frequencies data/synthetic --split train

The weights are those of loss.class_weights=balanced, frequency ** -0.5 scaled to 1 on average over pixels. Those of
configs/synthetic.py were read from this table.
"""

import argparse

from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.verify import verify
from atonet_jax.models.terms import InverseRootShare
from atonet_jax.training.class_weights import count_classes, weights_of_counts
from benchmarks import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root')
    parser.add_argument('--split', default='train')
    arguments = parser.parse_args()

    dataset = verify(load_cityscapes(arguments.root, arguments.split))
    counts = count_classes(dataset, dataset.usable)
    weights = weights_of_counts(InverseRootShare(), counts)
    print('| class | % of pixels | weight |')
    print('|---|---|---|')
    for name, pixels, weight in zip(dataset.class_table.class_names, counts.pixels, weights, strict=True):
        print(f'| {name} | {100 * pixels / sum(counts.pixels):.2f} | {weight:.2f} |')


if __name__ == '__main__':
    command.run(main)
