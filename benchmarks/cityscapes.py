"""Runs reader, augmentation, training, evaluation, report and submission on real Cityscapes pairs, however few.

    python -m benchmarks.cityscapes --data data/cityscapes --out runs/cityscapes_check              # minutes on 2 cores

Each step is the command that a user gives, and is printed. A small run on `train` makes no good network; it makes
pictures in which errors of the programs would show: crops, label colours, predictions, borders. At the end the raw ids
of the submission are compared with the label files once more, without any code of the evaluation: both must count the
same mIoU.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image

from atonet_jax.data.labels import CITYSCAPES

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SHIFT = 256  # raw ids are bytes


def main_py(*arguments: str, codes: tuple[int, ...] = (0,)) -> None:
    """Runs main.py; ends this program unless it ends with one of `codes`."""
    print('\n$ python main.py', *arguments, flush=True)
    code = subprocess.run([sys.executable, 'main.py', *arguments], cwd=_ROOT).returncode
    if code not in codes:
        raise SystemExit(code or 1)


def miou_of_submission(files: dict[str, pathlib.Path], labels: dict[str, pathlib.Path]) -> float:
    """mIoU over classes that occur, from PNG files of raw ids, by image name."""
    counts = np.zeros(_SHIFT**2, np.int64)
    for name, path in files.items():
        predicted, true = (np.asarray(PIL.Image.open(file), np.int64) for file in (path, labels[name]))
        if predicted.shape != true.shape:
            raise SystemExit(f'{path}: is {predicted.shape}, its labels {true.shape}')
        counts += np.bincount((true * _SHIFT + predicted).ravel(), minlength=_SHIFT**2)
    counts = counts.reshape(_SHIFT, _SHIFT)[CITYSCAPES.train_to_raw[: CITYSCAPES.num_classes]]  # void is left out
    counts = counts[:, CITYSCAPES.train_to_raw[: CITYSCAPES.num_classes]]
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    return float(np.mean(right[union > 0] / union[union > 0]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='data/cityscapes', help='folder with leftImg8bit and gtFine')
    parser.add_argument('--out', default='runs/cityscapes_check', help='folder for the run and the pictures')
    parser.add_argument('--split', default='val', help='with labels, to evaluate on')
    parser.add_argument('--steps', type=int, default=60, help='of training')
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='settings of the run')
    arguments = parser.parse_args(argv)
    out, data = pathlib.Path(arguments.out).absolute(), pathlib.Path(arguments.data).absolute()
    run = f'--workdir={out / "run"}'
    images = sorted((data / 'leftImg8bit' / 'train').rglob('*_leftImg8bit.png'))
    if not images:
        raise SystemExit(f'{data}/leftImg8bit/train: holds no images; give --data, a folder of Cityscapes')
    settings = [f'--config.data.root={data}', f'--config.data.eval_split={arguments.split}']
    settings += [f'--config.{pair}' for pair in arguments.set]
    batch = 2
    recipe = [
        '--config.data.crop_size=384,768', '--config.data.scale_range=0.5,1.5',
        '--config.optimizer.name=adamw', '--config.optimizer.learning_rate=1e-3', '--config.schedule.per=step',
        f'--config.train.batch_size={batch}', f'--config.train.epochs={batch * arguments.steps / len(images)}',
        '--config.train.eval_every_epochs=1e9',
    ]  # fmt: skip
    start = ['--config=configs/cityscapes.py', run, *recipe, *settings]
    main_py(*start, '--mode=check_data')
    main_py(*start)
    main_py(run, '--mode=evaluate', '--config.eval.checkpoint=latest')
    split = data / 'leftImg8bit' / arguments.split
    main_py(run, '--mode=predict', '--config.eval.checkpoint=latest', '--config.predict.format=cityscapes_submission',
            f'--config.predict.input={split}', f'--config.predict.output={out / "submission"}',
            codes=(0, 1))  # 1: the server would refuse it, because it is not the test split  # fmt: skip
    compare(out, data, arguments.split)


def compare(out: pathlib.Path, data: pathlib.Path, split: str) -> None:
    """Counts the submission once more, and collects the pictures."""
    pictures = out / 'pictures'
    files = {path.name.removesuffix('_labelIds.png'): path for path in sorted((out / 'submission').rglob('*.png'))}
    labels = {path.name.removesuffix('_gtFine_labelIds.png'): path
              for path in (data / 'gtFine' / split).rglob('*_labelIds.png')}  # fmt: skip
    if files.keys() != labels.keys():
        raise SystemExit(f'{out}/submission: holds {len(files)} files for {len(labels)} images')
    counted = miou_of_submission(files, labels)
    scores = json.loads((out / 'run' / 'evaluation' / 'scores.json').read_text())
    pictures.mkdir(parents=True, exist_ok=True)
    for path in [*(out / 'run' / 'check_data').glob('*.png'), *(out / 'run' / 'evaluation').glob('*.png')]:
        shutil.copy(path, pictures)
    same = abs(counted - scores['miou']) < 1e-9
    print(f'\nmIoU by the evaluation {100 * scores["miou"]:.4f}%, by the {len(files)} files of the submission '
          f'{100 * counted:.4f}%: {"the same" if same else "NOT the same"}')  # fmt: skip
    print(f'pictures: {pictures}; report: {out / "run" / "evaluation" / "report.html"}')
    if not same:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
