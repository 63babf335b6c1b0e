"""From the bytes of a picture to those of an answer."""

import base64
import io
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from atonet_jax.config import SIDE_STEP
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.pictures import formats, read_picture
from atonet_jax.data.visualize import overlay
from atonet_jax.inference.segmenter import Segmenter

OUTPUTS = ('labels', 'raw', 'color', 'overlay', 'json')
# Pillow's other formats are rare. HEIF needs pillow-heif.
FORMATS = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')


def network_size(width: int, height: int, long_side: int, step: int) -> tuple[int, int]:
    """(width, height) of a picture for the network.

    The picture is reduced until its long side is at most `long_side`. Then each side becomes the nearest multiple of
    `step`, at least `SIDE_STEP`.
    """
    factor = min(1, long_side / max(width, height))
    width, height = (max(SIDE_STEP, round(side * factor / step) * step) for side in (width, height))
    return width, height


class Pictures:
    """Turns the bytes of a picture into those of an answer. One thread at a time calls its methods."""

    def __init__(self, segment: Segmenter, options: ConfigDict, sample_range: Sequence[float]):
        self._segment = segment
        self._sample_range = sample_range
        self._kinds = [kind for kind in FORMATS if kind in formats()]
        self._table = segment.class_table
        self._options = options
        # Where each size needs its own program, there must be few.
        self._network_size = partial(
            network_size, long_side=options.long_side, step=1 if segment.shares_programs else SIDE_STEP
        )
        self._compile(self._network_size(1280, 720))  # of many cameras

    def answer(self, body: bytes, output: str) -> tuple[bytes, dict[str, float]]:
        """The encoded answer, and the milliseconds of each part.

        Raises:
            InputError: `body` is no picture that can be used.
        """
        clock = _Clock()
        picture = read_picture(
            io.BytesIO(body),
            'the picture',
            self._options.max_pixels,
            'config.serve.max_pixels',
            self._kinds,
            self._sample_range,
        )
        height, width = picture.shape[:2]
        size = self._network_size(width, height)
        image = np.asarray(PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BILINEAR))
        clock.stop('decode')
        self._compile(size)
        clock.stop('compile')
        labels = self._table.train_ids(self._segment.of_any_size(image))
        clock.stop('network')
        labels = np.asarray(PIL.Image.fromarray(labels).resize((width, height), PIL.Image.Resampling.NEAREST))

        if output == 'labels':
            content = _png(labels)
        elif output == 'raw':
            content = _png(self._table.train_to_raw[labels])
        elif output == 'color':
            content = _png(self._table.palette[labels])
        elif output == 'overlay':
            content = _png(overlay(picture, labels, self._table.palette))
        else:
            values = {
                'width': width,
                'height': height,
                'milliseconds': clock.milliseconds,
                'classes': _shares(labels, self._table),
                'labels': base64.b64encode(_png(labels)).decode(),
            }
            clock.stop('encode')  # which `values` shows too
            return json.dumps(values).encode(), clock.milliseconds
        clock.stop('encode')
        return content, clock.milliseconds

    def _compile(self, size: tuple[int, int]) -> None:
        self._segment.compile('on_canvas' if self._segment.shares_programs else '__call__', (1, size[1], size[0]))


class _Clock:
    """Milliseconds between its stops."""

    def __init__(self):
        self.milliseconds = {}
        self._last = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.milliseconds[part] = round(1000 * (now - self._last), 2)
        self._last = now


def class_descriptions(table: ClassTable) -> list[dict[str, Any]]:
    """Train id, name and colour of every class, for JSON."""
    return [
        {'id': i, 'name': name, 'color': [int(value) for value in color]}
        for i, (name, color) in enumerate(zip(table.class_names, table.class_colors, strict=True))
    ]


def _shares(labels: np.ndarray, table: ClassTable) -> list[dict[str, Any]]:
    pixels = np.bincount(labels.ravel(), minlength=table.num_classes).tolist()
    return [
        description | {'pixels': pixels[i], 'share': pixels[i] / labels.size}
        for i, description in enumerate(class_descriptions(table))
        if pixels[i]
    ]


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, 'PNG', compress_level=1)  # higher levels take many times as long
    return file.getvalue()
