"""The files that the Cityscapes test server takes: a PNG of raw ids for each test image, in a zip."""

import os
import re
import zipfile
from collections.abc import Iterable

import numpy as np
import PIL.Image

from atonet_jax.data.labels import CITYSCAPES, ClassTable
from atonet_jax.errors import InputError
from atonet_jax.predict.inputs import Source
from atonet_jax.process.files import replacing
from atonet_jax.process.progress import watched

# spec of the data set, section "Cityscapes"
TEST_IMAGES = 1525
SIZE = (1024, 2048)
_NAME = re.compile(r'[a-z-]+_\d{6}_\d{6}_leftImg8bit')


def check_sources(sources: Iterable[Source], table: ClassTable) -> None:
    """Raises:
    InputError: an input is not a Cityscapes image, or the network has other classes.
    """
    if table.class_names != CITYSCAPES.class_names:
        raise InputError(
            f'config.predict.format=cityscapes_submission: the network predicts the classes of {table.name}, not those '
            'of Cityscapes'
        )
    for source in sources:
        if source.is_video or not _NAME.fullmatch(os.path.basename(source.name)):
            raise InputError(
                f'{source.path}: no Cityscapes image, which is named CITY_000000_000019_leftImg8bit.png; give the '
                'folder leftImg8bit/test as --config.predict.input'
            )


def label_path(folder: str, source: Source) -> str:
    """All files are in one folder: the server finds a prediction by the beginning of its name, city_sequence_frame."""
    return os.path.join(folder, f'{os.path.basename(source.name).removesuffix("_leftImg8bit")}_labelIds.png')


def problems(paths: list[str]) -> list[str]:
    """Reasons why the server would refuse the label files, one line each; empty if it would accept them."""
    found = []
    if len(paths) != TEST_IMAGES:
        found.append(f'{len(paths)} label files where the test split has {TEST_IMAGES} images')
    if len(set(map(os.path.basename, paths))) != len(paths):
        found.append('two images of one name')
    known = np.unique(CITYSCAPES.train_to_raw)  # those of the classes, and 0 for pixels of none
    for path in watched(paths, 'checking', len(paths), 'file'):
        with PIL.Image.open(path) as image:
            labels = np.asarray(image)
        if labels.shape != SIZE or labels.dtype != np.uint8:
            found.append(f'{path}: {labels.shape} {labels.dtype} where {SIZE} uint8 is asked')
        elif not np.isin(labels, known).all():
            found.append(f'{path}: holds ids that are no class')
    return found


def write_zip(paths: list[str], path: str) -> None:
    """Packs the label files into one zip, unchanged.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replacing(path) as temporary, zipfile.ZipFile(temporary, 'w', zipfile.ZIP_STORED) as file:
            for label_file in paths:  # PNG is compressed
                file.write(label_file, os.path.basename(label_file))
    except OSError as error:
        raise InputError(
            f'{path}: cannot be written ({error.strerror}); free space and give the command again'
        ) from error
