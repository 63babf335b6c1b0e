"""What a per-pixel classifier reaches on the synthetic scenes: the floor that context has to beat.

    python -m benchmarks.pixel_classifier --seeds 0 1 2 --json pixel_classifier.json

Gradient boosted trees see one pixel at a time: its RGB, its HSV and its place in the image. They learn from
sampled pixels of the training scenes and are scored on every pixel of held-out scenes of the same seed.
Needs requirements-benchmarks.txt. About 20 s a seed on two free cores, minutes on busy ones.
"""

import argparse
import json
import pathlib
import time

import numpy as np
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier

from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL
from atonet_jax.data.synthetic import render_scene
from atonet_jax.evaluation.metrics import Scores
from benchmarks import command


def pixel_features(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [H * W, 8] float32: RGB and HSV in 0..255, x and y in 0..1."""
    height, width, _ = image.shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    hsv = np.asarray(Image.fromarray(image).convert('HSV'))
    return np.concatenate([image, hsv, x[..., None], y[..., None]], -1).reshape(-1, 8).astype(np.float32)


def render_pixels(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 8] and train ids [N] of the pixels of one scene that are not ignored."""
    image, labels = render_scene(seed, index, height, width)
    targets = CITYSCAPES.raw_to_train[labels].ravel()
    counted = targets != IGNORE_LABEL
    return pixel_features(image)[counted], targets[counted]


def train(seed: int, args: argparse.Namespace) -> HistGradientBoostingClassifier:
    rng = np.random.default_rng(seed)
    share = args.pixels // args.train_scenes
    features, targets = [], []
    for index in range(args.train_scenes):
        scene_features, scene_targets = render_pixels(seed, index, args.height, args.width)
        chosen = rng.choice(len(scene_targets), min(share, len(scene_targets)), replace=False)
        features.append(scene_features[chosen])
        targets.append(scene_targets[chosen])
    classifier = HistGradientBoostingClassifier(learning_rate=0.3, max_iter=15, early_stopping=False, random_state=seed)
    return classifier.fit(np.concatenate(features), np.concatenate(targets))


def evaluate(classifier: HistGradientBoostingClassifier, seed: int, args: argparse.Namespace) -> np.ndarray:
    """Confusion matrix [classes, classes] int64, rows the truth, over all pixels of the held-out scenes."""
    classes = CITYSCAPES.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    for index in range(args.train_scenes, args.train_scenes + args.val_scenes):
        features, targets = render_pixels(seed, index, args.height, args.width)
        pairs = targets.astype(np.int64) * classes + classifier.predict(features)
        confusion += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return confusion


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='data set seeds, one run each')
    parser.add_argument('--train_scenes', type=int, default=200)
    parser.add_argument('--val_scenes', type=int, default=60)
    parser.add_argument('--height', type=int, default=128)
    parser.add_argument('--width', type=int, default=256)
    parser.add_argument('--pixels', type=int, default=200_000, help='training pixels in all')
    parser.add_argument('--json', type=pathlib.Path, help='where to write the numbers')
    args = parser.parse_args()

    runs = []
    for seed in args.seeds:
        start = time.perf_counter()
        scores = Scores.from_confusion(evaluate(train(seed, args), seed, args))
        seconds = time.perf_counter() - start
        print(scores.table(CITYSCAPES.class_names))
        print(f'seed {seed}: mIoU {100 * scores.miou:.2f}%, {seconds:.0f} s', flush=True)
        runs.append({'seed': seed, 'seconds': seconds, **scores.to_dict(CITYSCAPES.class_names)})
    mean = float(np.mean([run['miou'] for run in runs]))
    print(f'mean of {len(runs)} seeds: mIoU {100 * mean:.2f}%')
    if args.json:
        settings = {key: getattr(args, key) for key in ('train_scenes', 'val_scenes', 'height', 'width', 'pixels')}
        args.json.write_text(json.dumps({'settings': settings, 'mean_miou': mean, 'runs': runs}, indent=2) + '\n')


if __name__ == '__main__':
    command.run(main)
