"""Decodes all files of a split, lists their content, and guesses from the labels how they are meant."""

import concurrent.futures
import dataclasses
import hashlib
from collections import Counter

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_label_values, unknown_values
from atonet_jax.data.image_files import check_label_size, read_image, read_image_header
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL
from atonet_jax.data.verify import turned_text
from atonet_jax.process.progress import watched

_MOST_IGNORED = 0.5  # share of unlabelled pixels above which training would ignore most of its data


@dataclasses.dataclass
class _Inspection:
    """The content of one example.

    Attributes:
        size: (height, width), None if the image cannot be read.
        orientation: of the image's EXIF.
        values: pixels of each value of the label file.
        digest: of the image file's content.
        problems: why it cannot be used.
    """

    size: tuple[int, int] | None = None
    orientation: int = 1
    values: Counter = dataclasses.field(default_factory=Counter)
    digest: str = ''
    problems: list[DataError] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class SplitReport:
    """The findings about a split.

    Attributes:
        dataset: the split, with `unusable`.
        sizes: images of each 'HxW'.
        values: pixels of each value of the label files.
        pixels: [C + 1] of each class, and of what is ignored.
        images: [C + 1] images that show it.
        digests: of the images' content.
        failures: {fault: one line for each file}. With these, training would stop or learn nothing useful.
        warnings: what looks odd.
    """

    dataset: SegmentationDataset
    sizes: Counter
    values: Counter
    pixels: np.ndarray
    images: np.ndarray
    digests: set[str]
    failures: dict[str, list[str]]
    warnings: list[str]

    def to_dict(self) -> dict:
        names = (*self.dataset.class_table.class_names, 'ignored')
        return {
            'examples': len(self.dataset),
            'unusable': len(self.dataset.unusable),
            'sizes': dict(self.sizes),
            'label_values': self.dataset.label_values,
            'pixels_of_value': {_value_text(self.dataset, value): n for value, n in sorted(self.values.items())},
            'pixels_of_class': dict(zip(names, self.pixels.tolist(), strict=True)),
            'images_of_class': dict(zip(names, self.images.tolist(), strict=True)),
            'failures': self.failures,
            'warnings': self.warnings,
        }


def inspect_split(dataset: SegmentationDataset, on_corrupt: str = 'error') -> SplitReport:
    """Decodes every image and label of a split. With `on_corrupt` 'skip' an unusable example is only a warning."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        inspections = pool.map(lambda i: _inspect(dataset, i), range(len(dataset)))
        inspections = list(watched(inspections, f'reading {dataset.name} {dataset.split}', len(dataset), 'example'))

    num_classes = dataset.class_table.num_classes
    values, failures = Counter(), {}
    pixels, images = np.zeros(num_classes + 1, np.int64), np.zeros(num_classes + 1, np.int64)
    for inspection in inspections:
        values.update(inspection.values)
        counts = np.zeros(256, np.int64)
        for value, count in inspection.values.items():
            counts[dataset.train_ids[value]] += count
        counts = np.append(counts[:num_classes], counts[IGNORE_LABEL])
        pixels += counts
        images += counts > 0
        for problem in inspection.problems:
            failures.setdefault(problem.kind, []).append(str(problem))
    unusable = sum(bool(inspection.problems) for inspection in inspections)
    warnings = []
    if on_corrupt == 'skip' and unusable < len(dataset):
        warnings = [f'config.data.on_corrupt=skip leaves out {len(them)}: {kind}' for kind, them in failures.items()]
        failures = {}
    turned = turned_text(dataset, sum(one.orientation != 1 and not one.problems for one in inspections))
    if turned:
        warnings.append(turned)
    report = SplitReport(
        dataset=dataclasses.replace(
            dataset, unusable={i: one.problems[0] for i, one in enumerate(inspections) if one.problems}
        ),
        sizes=Counter('x'.join(map(str, one.size)) for one in inspections if one.size is not None),
        values=values,
        pixels=pixels,
        images=images,
        digests={one.digest for one in inspections if one.digest},
        failures=failures,
        warnings=warnings,
    )
    _judge_labels(report, inspections)
    return report


def _inspect(dataset: SegmentationDataset, i: int) -> _Inspection:
    """Decodes image and label completely. A fault in one does not hide a fault in the other."""
    found = _Inspection()
    try:
        with dataset.storage.open(dataset.image_paths[i]) as file:
            found.digest = hashlib.file_digest(file, 'sha1').hexdigest()
        found.orientation = read_image_header(dataset, i).orientation
        found.size = read_image(dataset, i).shape[:2]
    except DataError as error:
        found.problems.append(error)
    if dataset.label_paths is None:
        return found
    try:
        values = read_label_values(dataset, i)
        if found.size is not None:
            check_label_size(dataset, i, values.shape, found.size)
        if dataset.label_values == 'index':
            counts = np.bincount(values.ravel(), minlength=256)
            present = np.flatnonzero(counts)
            counts = counts[present]
        else:
            present, counts = np.unique(values, return_counts=True)
        found.values = Counter(dict(zip(present.tolist(), counts.tolist())))
        unknown = dataset.train_ids[present] == UNKNOWN_LABEL
        if unknown.any():
            raise unknown_values(dataset, i, present[unknown], counts[unknown])
    except DataError as error:
        found.problems.append(error)
    return found


def _judge_labels(report: SplitReport, inspections: list[_Inspection]) -> None:
    """Adds what the values of the label files say about how they are meant."""
    dataset, table = report.dataset, report.dataset.class_table
    if dataset.label_paths is None:
        report.failures['no labels, which training and evaluation need'] = list(dataset.image_paths)
        return
    labelled = [(path, one.values) for path, one in zip(dataset.label_paths, inspections) if one.values]
    published_blank = dataset.split == 'test' and set(report.values) <= {0, IGNORE_LABEL}
    if dataset.label_values == 'index' and not published_blank:
        masks = [path for path, values in labelled if set(values) == {0, IGNORE_LABEL}]
        only_masks = set(report.values) == {0, IGNORE_LABEL} and table.num_classes > 1
        if masks and (only_masks or dataset.train_ids[0] == IGNORE_LABEL):
            report.failures['labels hold only 0 and 255, as masks do, but 255 is ignored'] = masks
        elif len(masks) > len(labelled) / 2:
            report.warnings.append(f'{len(masks)} label files hold only 0 and 255, as masks do, such as {masks[0]}')
        _judge_ids(report, labelled)
    known = report.pixels.sum()
    if known and not published_blank:
        ignored = report.pixels[-1] / known
        if ignored > _MOST_IGNORED:
            report.failures[f'{100 * ignored:.1f}% of the pixels are ignored'] = [
                f'{_value_text(dataset, value)}: {count} pixels'
                for value, count in report.values.most_common()
                if dataset.train_ids[value] == IGNORE_LABEL
            ]
        missing = [name for name, count in zip(table.class_names, report.pixels) if count == 0]
        if missing:
            report.warnings.append(f'no pixel of {len(missing)} classes: {", ".join(missing)}')


def _judge_ids(report: SplitReport, labelled: list[tuple[str, Counter]]) -> None:
    """Finds train ids in place of raw ids, by values that never occur, and the reverse, by unknown values."""
    dataset, num_classes = report.dataset, report.dataset.class_table.num_classes
    class_values = np.flatnonzero(dataset.train_ids < num_classes)
    takes_train_ids = np.array_equal(class_values, dataset.train_ids[class_values])
    if takes_train_ids:
        raw = [path for path, values in labelled if any(num_classes < value < IGNORE_LABEL for value in values)]
        if raw:
            report.failures[f'labels should hold train ids 0..{num_classes - 1}, but look like raw ids'] = raw
        return
    # With so few raw ids, the two cannot be told apart.
    if class_values.max() <= num_classes:
        return
    alike = [path for path, values in labelled if max(set(values) - {IGNORE_LABEL}, default=0) <= num_classes]
    if len(alike) == len(labelled) and set(report.values) - {0, IGNORE_LABEL}:
        report.failures[
            f'labels should hold raw ids up to {class_values.max()}, but look like train ids, none above {num_classes}'
        ] = alike
    elif len(alike) > len(labelled) / 10:
        report.warnings.append(
            f'{len(alike)} of {len(labelled)} label files have no value above {num_classes}, as train ids would, '
            f'such as {alike[0]}'
        )


def _value_text(dataset: SegmentationDataset, value: int) -> str:
    """Such as '7 road' or '#804080 road'."""
    number = f'#{value:06x}' if dataset.label_values == 'color' else f'{value}'
    train_id = int(dataset.train_ids[value])
    if train_id < dataset.class_table.num_classes:
        name = dataset.class_table.class_names[train_id]
    else:
        name = 'unknown' if train_id == UNKNOWN_LABEL else 'ignored'
    return f'{number} {name}'
