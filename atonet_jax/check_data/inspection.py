"""Decodes all files of a split and lists their content. Judges it as training does (data/label_checks.py)."""

import concurrent.futures
import dataclasses
import hashlib
from collections import Counter

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.image_files import read_image, read_image_header
from atonet_jax.data.label_checks import judge_labels, pixels_of_classes, value_text
from atonet_jax.data.label_files import LabelCounts, count_label_values
from atonet_jax.data.verify import turned_text
from atonet_jax.process.progress import watched


@dataclasses.dataclass
class _Inspection:
    """The content of one example.

    Attributes:
        size: (height, width), None if the image cannot be read.
        orientation: of the image's EXIF.
        counts: of the label file's values, None if it cannot be used.
        digest: of the image file's content.
        problems: why it cannot be used.
    """

    size: tuple[int, int] | None = None
    orientation: int = 1
    counts: LabelCounts | None = None
    digest: str = ''
    problems: list[DataError] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class SplitReport:
    """The findings about a split.

    Attributes:
        dataset: the split, with `unusable`.
        sizes: images of each (height, width).
        values: pixels of each value of the label files.
        pixels: [C + 1] of each class, and of what is ignored.
        images: [C + 1] images that show it.
        digests: of the images' content.
        failures: {fault: one line for each file}. With these, training stops too.
        warnings: what looks odd.
        advice: as in `Judgement`.
    """

    dataset: SegmentationDataset
    sizes: Counter
    values: Counter
    pixels: np.ndarray
    images: np.ndarray
    digests: set[str]
    failures: dict[str, list[str]]
    warnings: list[str]
    advice: str

    def to_dict(self) -> dict:
        names = (*self.dataset.class_table.class_names, 'ignored')
        return {
            'examples': len(self.dataset),
            'unusable': len(self.dataset.unusable),
            'sizes': {f'{height}x{width}': count for (height, width), count in self.sizes.items()},
            'label_files': self.dataset.reading.text,
            'pixels_of_value': {value_text(self.dataset, value): n for value, n in sorted(self.values.items())},
            'pixels_of_class': dict(zip(names, self.pixels.tolist(), strict=True)),
            'images_of_class': dict(zip(names, self.images.tolist(), strict=True)),
            'failures': self.failures,
            'warnings': self.warnings,
        }


def inspect_split(
    dataset: SegmentationDataset, *, on_corrupt: str = 'error', for_training: bool = False, trust_labels: bool = False
) -> SplitReport:
    """Decodes every image and label of a split. With `on_corrupt` 'skip' an unusable example is only a warning.

    Args:
        dataset: the split.
        on_corrupt: 'error' or 'skip'.
        for_training: as in `judge_labels`.
        trust_labels: as `trust` in `judge_labels`.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        inspections = pool.map(lambda i: _inspect(dataset, i), range(len(dataset)))
        inspections = list(watched(inspections, f'reading {dataset.name} {dataset.split}', len(dataset), 'example'))

    num_classes = dataset.class_table.num_classes
    values, failures = Counter(), {}
    pixels, images = np.zeros(num_classes + 1, np.int64), np.zeros(num_classes + 1, np.int64)
    for inspection in inspections:
        if inspection.counts is not None:
            values.update(inspection.counts.known)
            of_image = pixels_of_classes(dataset, *inspection.counts)
            pixels += of_image
            images += of_image > 0
        for problem in inspection.problems:
            failures.setdefault(problem.kind, []).append(str(problem))
    unusable = {i: one.problems[0] for i, one in enumerate(inspections) if one.problems}
    warnings, advice = [], ''
    if on_corrupt == 'skip' and len(unusable) < len(dataset):
        warnings = [f'config.data.on_corrupt=skip leaves out {len(them)}: {kind}' for kind, them in failures.items()]
        failures = {}
    turned = turned_text(dataset, sum(one.orientation != 1 and not one.problems for one in inspections))
    if turned:
        warnings.append(turned)
    if dataset.label_paths is None:
        failures['no labels, which training and evaluation need'] = list(dataset.image_paths)
    else:
        counts = {
            path: one.counts
            for i, (path, one) in enumerate(zip(dataset.label_paths, inspections))
            if one.counts is not None and i not in unusable
        }
        judgement = judge_labels(dataset, counts, for_training=for_training, trust=trust_labels)
        failures |= judgement.failures
        warnings += judgement.warnings
        advice = judgement.advice
    return SplitReport(
        dataset=dataclasses.replace(dataset, unusable=unusable),
        sizes=Counter(one.size for one in inspections if one.size is not None),
        values=values,
        pixels=pixels,
        images=images,
        digests={one.digest for one in inspections if one.digest},
        failures=failures,
        warnings=warnings,
        advice=advice,
    )


def _inspect(dataset: SegmentationDataset, i: int) -> _Inspection:
    """Decodes image and label completely. A fault in one does not hide a fault in the other."""
    found = _Inspection()
    if i in dataset.unusable:
        found.problems.append(dataset.unusable[i])
        return found
    try:
        with dataset.storage.open(dataset.image_paths[i]) as file:
            found.digest = hashlib.file_digest(file, 'sha1').hexdigest()
        found.orientation = read_image_header(dataset, i).orientation
        found.size = read_image(dataset, i).shape[:2]
    except DataError as error:
        found.problems.append(error)
    if dataset.label_paths is not None:
        try:
            found.counts = count_label_values(dataset, i, found.size)
        except DataError as error:
            found.problems.append(error)
    return found
