"""Prints each class's share of the labelled pixels of a Cityscapes folder, and weights that even it out.

    python -m benchmarks.class_frequencies data/synthetic --split train

The weights are frequency ** -0.5, scaled to 1 on average over pixels: those of configs/synthetic.py.
"""

import argparse

import numpy as np

from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.decode import read_example
from benchmarks import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root')
    parser.add_argument('--split', default='train')
    arguments = parser.parse_args()

    dataset = load_cityscapes(arguments.root, arguments.split)
    counts = np.zeros(256, np.int64)
    for i in range(len(dataset)):
        _, labels = read_example(dataset, i)
        counts += np.bincount(labels.ravel(), minlength=256)
    counts = counts[: dataset.class_table.num_classes]
    frequencies = counts / counts.sum()
    weights = np.divide(1, np.sqrt(frequencies), out=np.zeros(len(counts)), where=counts > 0)  # 0 of absent classes
    weights /= np.sum(frequencies * weights)
    print('| class | % of pixels | weight |')
    print('|---|---|---|')
    for name, frequency, weight in zip(dataset.class_table.class_names, frequencies, weights, strict=True):
        print(f'| {name} | {100 * frequency:.2f} | {weight:.2f} |')


if __name__ == '__main__':
    command.run(main)
