"""How long a command takes until the first thing that its user waits for, each in a fresh process.

    python -m benchmarks.startup --workdir runs/demo

- `--help`: until the process ends.
- The first label map: until a process ends that predicts one picture of a size, with the weights of a run.
- The first training step: until a run of configs/synthetic.py has written the loss of its first step, on scenes that
  are there already. Then it is killed.

Cold means an empty compilation cache, warm one that the same command has filled. CPU seconds count all cores of the
process; they tell how long it would take on an idle machine, where another program disturbs. Medians of the rounds.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL.Image

from atonet_jax.data.synthetic.scene import render_scene
from atonet_jax.runs.environment import cpu_name
from benchmarks import command

STEPS = '{new}/run/metrics.jsonl'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='of a run')
    parser.add_argument('--size', type=command.size, default=(360, 480), help='of the picture, HxW')
    parser.add_argument('--rounds', type=int, default=5, help='with a warm cache; two with a cold one')
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        picture = os.path.join(folder, 'scene.png')
        PIL.Image.fromarray(render_scene(0, 0, *arguments.size)[0]).save(picture)
        predict = [
            f'--workdir={arguments.workdir}', '--mode=predict', f'--config.predict.input={picture}',
            f'--config.predict.output={folder}/labels',
        ]  # fmt: skip
        train = [
            '--config=configs/synthetic.py', f'--config.data.root={folder}/scenes', '--config.train.log_every_steps=1',
            '--config.data.synthetic.train_scenes=40', '--config.data.synthetic.val_scenes=10', '--workdir={new}/run',
        ]  # fmt: skip
        commands = {
            '--help': (['--help'], ''),
            'first label map': (predict, ''),
            'first training step': (train, STEPS),
        }
        measure(train, STEPS, folder)  # renders the scenes
        print(f'{cpu_name()}, {os.cpu_count()} cores; label map of {arguments.size[0]}x{arguments.size[1]}')
        print('| | cold: s | CPU s | warm: s | CPU s |\n|---|---|---|---|---|')
        for name, (words, awaited) in commands.items():
            cold = [measure(words, awaited, tempfile.mkdtemp(dir=folder)) for _ in range(2)]
            cache = tempfile.mkdtemp(dir=folder)
            warm = [measure(words, awaited, cache) for _ in range(1 + arguments.rounds)][1:]
            figures = np.concatenate([np.median(cold, axis=0), np.median(warm, axis=0)])
            print(f'| {name} | {" | ".join(f"{value:.2f}" for value in figures)} |')


def measure(words: list[str], awaited: str, cache: str) -> tuple[float, float]:
    """Seconds and CPU seconds of `main.py` until it ends, or until a file has content; then it is killed.

    Args:
        words: its arguments. '{new}' stands for a folder that is new.
        awaited: the file, or ''.
        cache: the folder of compiled programs.

    Raises:
        SystemExit: the command failed, or ended without the file.
    """
    with tempfile.TemporaryDirectory() as new, open(os.path.join(new, 'printed'), 'w+') as printed:
        words, awaited = [word.format(new=new) for word in words], awaited.format(new=new)
        environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': cache}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, 'main.py', *words], env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        ended, is_there = 0, False
        while not (ended or is_there):
            time.sleep(0.01)
            ended, process.returncode, usage = os.wait4(process.pid, os.WNOHANG)
            is_there = bool(awaited) and os.path.exists(awaited) and os.path.getsize(awaited) > 0
        seconds = time.perf_counter() - start
        if not ended:
            os.kill(process.pid, signal.SIGKILL)
            _, process.returncode, usage = os.wait4(process.pid, 0)
        if not is_there if awaited else process.returncode:
            printed.seek(0)
            raise SystemExit(f'{" ".join(words)} failed:\n{printed.read()}')
        return seconds, usage.ru_utime + usage.ru_stime


if __name__ == '__main__':
    command.run(main)
