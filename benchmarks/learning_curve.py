"""Draws the validation mIoU of runs over their training time.

    python -m benchmarks.learning_curve runs/long --output docs/learning_curve.png

Reads metrics.jsonl of each workdir and prints the points as a table too.
"""

import argparse
import os

import matplotlib.pyplot as plt

from atonet_jax.errors import InputError
from atonet_jax.runs.metrics import METRICS_FILE, read_metrics
from benchmarks import command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('workdirs', nargs='+')
    parser.add_argument('--output', required=True, help='PNG to write')
    arguments = parser.parse_args(argv)

    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    print('| run | step | minutes | mIoU % | pixel accuracy % |')
    print('|---|---|---|---|---|')
    for workdir in arguments.workdirs:
        name = os.path.basename(os.path.normpath(workdir))
        lines = [line for line in read_metrics(workdir) if 'eval/miou' in line]
        if not lines:
            raise InputError(f'{os.path.join(workdir, METRICS_FILE)}: holds no evaluation; give the workdirs of runs')
        minutes = [line['eval/train_seconds'] / 60 for line in lines]
        axes.plot(minutes, [100 * line['eval/miou'] for line in lines], marker='o', markersize=3, label=name)
        for line, minute in zip(lines, minutes, strict=True):
            scores = f'{100 * line["eval/miou"]:.2f} | {100 * line["eval/pixel_accuracy"]:.2f}'
            print(f'| {name} | {line["step"]} | {minute:.1f} | {scores} |')
    axes.set(xlabel='minutes of training', ylabel='mIoU of held-out scenes, %', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.output, dpi=120)


if __name__ == '__main__':
    command.run(main)
