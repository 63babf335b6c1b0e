"""`--mode=check_data`: reads all data of a config, shows what it holds, and says what is wrong."""

import os
import warnings

import jax
import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from atonet_jax.check_data.inspection import SplitReport, inspect_split
from atonet_jax.data import visualize
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.dataset import DataError
from atonet_jax.data.examples import Examples
from atonet_jax.data.label_reading import different_reading_text
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.padding import padding_text
from atonet_jax.data.sources import class_table, load_dataset
from atonet_jax.models.contract import IMAGENET
from atonet_jax.process.files import make_folder, replacing, write_json, writing
from atonet_jax.training.augment import augment, too_long_text
from atonet_jax.training.from_config import train_augmentation, with_crop_size
from atonet_jax.validation import validate

_SHOWN = 5  # problems of one kind on the screen; the report lists all
_PICTURES = 12
_PICTURE_WIDTH = 360


def check_data(config: ConfigDict, workdir: str) -> bool:
    """Reads all examples of `data.train_split` and `data.eval_split`. Prints what they hold and what is wrong.

    Writes into `check_data/` of the workdir: report.json with every problem, classes.png with the share of each class,
    and samples.png with training crops as the network sees them.

    Returns:
        Whether the data is fit to train on.

    Raises:
        InputError: a setting cannot work, or nothing can be written to the workdir.
    """
    validate(config)
    folder = os.path.join(workdir, 'check_data')
    make_folder(folder)
    reports, failures = {}, []
    table = class_table(config.data)
    for split in dict.fromkeys((config.data.train_split, config.data.eval_split)):
        try:
            reports[split] = inspect_split(
                load_dataset(config.data, split),
                on_corrupt=config.data.on_corrupt,
                for_training=split == config.data.train_split,
                trust_labels=config.data.trust_labels,
            )
        except DataError as error:
            failures.append(f'{split}: {error}')
            print(f'\n{config.data.name} {split}: cannot be loaded\n  FAILS {error}')
            continue
        _print_split(reports[split])
        failures += [f'{split}: {kind}' for kind in reports[split].failures]
    warnings = _compare_splits(reports, config)
    train, padding = reports.get(config.data.train_split), None
    if train is not None and train.sizes:
        augmentation = train_augmentation(with_crop_size(config, train.sizes))
        if too_long := too_long_text(train.sizes, augmentation):
            failures.append(f'{train.dataset.split}: {too_long}')
        padding = padding_text(train.sizes, augmentation)
        if padding[1]:
            warnings.append(padding[0])
    written = [os.path.join(folder, 'report.json')]
    with writing(folder):
        write_json(
            written[0],
            {
                'data': config.data.to_dict(),
                'splits': {split: report.to_dict() for split, report in reports.items()},
                'failures': failures,
                'warnings': warnings,
            },
        )
    if any(report.pixels.any() for report in reports.values()):
        print(f'\n{_class_table_text(reports, table)}')
        written.append(os.path.join(folder, 'classes.png'))
        _plot_classes(reports, table, written[-1])
    if padding is not None and not padding[1]:
        print(f'\n{padding[0]}')
    if train is not None and train.dataset.label_paths is not None and len(train.dataset.unusable) < len(train.dataset):
        written.append(os.path.join(folder, 'samples.png'))
        _draw_samples(train, config, written[-1])

    for warning in warnings:
        print(f'warning: {warning}')
    print('\nwritten: ' + ', '.join(written))
    if failures:
        print(f'NOT fit to train on: {"; ".join(failures)}')
    else:
        print('fit to train on')
    return not failures


def _compare_splits(reports: dict[str, SplitReport], config: ConfigDict) -> list[str]:
    train, evaluated = (reports.get(split) for split in (config.data.train_split, config.data.eval_split))
    warnings = []
    if train and len(train.dataset) < config.train.batch_size:
        warnings.append(
            f'{train.dataset.split} has {len(train.dataset)} examples, fewer than '
            f'config.train.batch_size={config.train.batch_size}: some occur twice in a batch'
        )
    if train and evaluated and train is not evaluated:
        shared = len(train.digests & evaluated.digests)
        if shared:
            are = '1 image is' if shared == 1 else f'{shared} images are'
            warnings.append(f'{are} both in {train.dataset.split} and in {evaluated.dataset.split}')
        if different := different_reading_text(train.dataset, evaluated.dataset):
            warnings.append(different)
        names = train.dataset.class_table.class_names
        unseen = [name for name, t, e in zip(names, train.pixels, evaluated.pixels) if e and not t]
        if unseen:
            warnings.append(f'{evaluated.dataset.split} shows what {train.dataset.split} lacks: {", ".join(unseen)}')
    return warnings


def _print_split(report: SplitReport) -> None:
    dataset = report.dataset
    print(f'\n{dataset.name} {dataset.split}: {len(dataset)} examples, {len(dataset.unusable)} of them cannot be used')
    for (height, width), count in report.sizes.most_common(_SHOWN):
        print(f'  {count} images of {height}x{width}')
    if len(report.sizes) > _SHOWN:
        print(f'  and {len(report.sizes) - _SHOWN} other sizes')
    if dataset.reading.text:
        print(f'  {dataset.reading.text}')
    for kind, lines in report.failures.items():
        print(f'  FAILS {kind} ({len(lines)}):')
        for line in lines[:_SHOWN]:
            print(f'    {line}')
        if len(lines) > _SHOWN:
            print(f'    and {len(lines) - _SHOWN} more')
    for warning in report.warnings:
        print(f'  warning: {warning}')
    if report.advice:
        print(f'  {report.advice}')


def _class_table_text(reports: dict[str, SplitReport], table: ClassTable) -> str:
    """Share of the pixels and number of images by class and split."""
    names = (*table.class_names, 'ignored')
    width = max(map(len, names))
    lines = [' ' * width + ''.join(f'{split:>14} {"images":>7}' for split in reports)]
    for c, name in enumerate(names):
        cells = (f'{100 * _shares(report)[c]:13.3f}% {report.images[c]:7}' for report in reports.values())
        lines.append(f'{name:<{width}}' + ''.join(cells))
    return '\n'.join(lines)


def _shares(report: SplitReport) -> np.ndarray:
    return report.pixels / max(1, report.pixels.sum())


def _plot_classes(reports: dict[str, SplitReport], table: ClassTable, path: str) -> None:
    from matplotlib.figure import Figure  # takes a moment to import

    names = (*table.class_names, 'ignored')
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(names)), layout='constrained')
    axes = figure.subplots()
    height = 0.8 / len(reports)
    for k, (split, report) in enumerate(reports.items()):
        axes.barh(np.arange(len(names)) + k * height, 100 * _shares(report), height, align='edge', label=split)
    axes.set_yticks(np.arange(len(names)) + 0.4, names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('% of the pixels')
    axes.grid(axis='x', alpha=0.3)
    axes.legend()
    with writing(os.path.dirname(path)), replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')  # of names in scripts that the font lacks
        figure.savefig(temporary, dpi=110)


def _draw_samples(report: SplitReport, config: ConfigDict, path: str) -> None:
    """Training crops of the first step after all augmentation, each beside its labels."""
    from atonet_jax.data.pipeline import train_batches  # imports TensorFlow

    augmentation = train_augmentation(with_crop_size(config, report.sizes))
    examples = Examples(report.dataset, on_corrupt='skip')
    batch = next(
        train_batches(
            examples, batch_size=_PICTURES, augmentation=augmentation, seed=config.seed, start_sample=0, num_steps=1
        )
    )
    table, pictures, present = report.dataset.class_table, [], set()
    for image, labels in zip(*_augmented(batch, augmentation, config.seed)):
        size = _PICTURE_WIDTH, max(1, round(_PICTURE_WIDTH * labels.shape[0] / labels.shape[1]))
        image = np.asarray(PIL.Image.fromarray(image).resize(size))
        labels = np.asarray(PIL.Image.fromarray(labels).resize(size, PIL.Image.Resampling.NEAREST))
        present |= set(np.unique(labels).tolist())
        pictures += [image, visualize.overlay(image, labels, table.palette)]
    picture = visualize.with_legend(visualize.grid(pictures, columns=4), table, sorted(present))
    with writing(os.path.dirname(path)), replacing(path) as temporary:
        picture.save(temporary)


def _augmented(batch: dict, augmentation: Augmentation, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops as bytes to look at, and their labels."""
    images, labels = jax.jit(augment, static_argnums=1)(batch, augmentation, jax.random.key(seed))
    return np.clip(IMAGENET.inverse(np.asarray(images)), 0, 255).round().astype(np.uint8), np.asarray(labels)
