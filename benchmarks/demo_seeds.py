"""What the demo reaches over several seeds of its scenes and its weights, beside the per-pixel classifier.

    python -m benchmarks.demo_seeds --seeds 0 1 2 --workdir runs/demo_seeds

Trains configs/synthetic.py once a seed, on scenes of that seed, and prints a table as in docs/synthetic.md; figures
of pixel_classifier.py are added where `--pixel_classifier` names its JSON. About 5 minutes a seed on 2 cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys

from atonet_jax.runs.metrics import read_metrics


def train(seed: int, workdir: str) -> dict:
    """Runs the demo's command with a seed; returns the final evaluation's line of metrics.jsonl."""
    command = [
        sys.executable, 'main.py', '--config=configs/synthetic.py', f'--workdir={workdir}', f'--config.seed={seed}',
        f'--config.data.root={workdir}/scenes', f'--config.data.synthetic.seed={seed}',
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return [line for line in read_metrics(workdir) if 'eval/miou' in line][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--workdir', default='runs/demo_seeds')
    parser.add_argument('--pixel_classifier', help='JSON written by pixel_classifier.py')
    arguments = parser.parse_args()
    baseline = {}
    if arguments.pixel_classifier:
        with open(arguments.pixel_classifier) as file:
            baseline = {run['seed']: run['miou'] for run in json.load(file)['runs']}

    results = {seed: train(seed, os.path.join(arguments.workdir, f'seed{seed}')) for seed in arguments.seeds}
    print(f'{platform.machine()}, {os.cpu_count()} cores')
    print('| seed | ATONet mIoU % | per-pixel classifier mIoU % | training s |')
    print('|---|---|---|---|')
    for seed, line in results.items():
        pixels = f'{100 * baseline[seed]:.2f}' if seed in baseline else '-'
        print(f'| {seed} | {100 * line["eval/miou"]:.2f} | {pixels} | {line["eval/train_seconds"]:.0f} |')


if __name__ == '__main__':
    main()
