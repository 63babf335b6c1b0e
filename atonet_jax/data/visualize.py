"""Pictures of label maps."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from atonet_jax.data.labels import IGNORE_LABEL, ClassTable

_IMAGE, _COLOR = 9, 11  # their shares in an overlay: parts of 20
_GAP = 4
_STRIP = 100_000  # pixels that are blended at a time: what a cache holds
_WIDTH = 1100  # pixels up to which pictures with a legend are enlarged
_WHITE = (255, 255, 255)


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class colours over an image, [H, W, 3] uint8; ignored pixels show the image alone.

    Args:
        image: [H, W, 3] uint8.
        labels: [H, W] uint8 train ids.
        palette: [256, 3] uint8.
    """
    result = np.empty_like(image)
    parts = _COLOR * palette.astype(np.uint16) + (_IMAGE + _COLOR) // 2  # the half rounds
    height = max(1, _STRIP // image.shape[1])
    for top in range(0, len(image), height):
        rows = slice(top, top + height)
        blended = parts.take(labels[rows], axis=0)
        blended += np.multiply(image[rows], _IMAGE, dtype=np.uint16)
        blended //= _IMAGE + _COLOR
        result[rows] = blended
    ignored = labels == IGNORE_LABEL
    result[ignored] = image[ignored]
    return result


def error_map(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Right pixels dark green, wrong ones red, unlabelled ones black: [H, W] uint8 twice -> [H, W, 3] uint8."""
    colors = np.array([(20, 60, 20), (230, 40, 40), (0, 0, 0)], np.uint8)
    return colors[np.where(labels == IGNORE_LABEL, np.uint8(2), (labels != predictions).astype(np.uint8))]


def comparison(image: np.ndarray, labels: np.ndarray, predictions: np.ndarray, table: ClassTable) -> np.ndarray:
    """Image, true labels, predicted labels and errors in two rows of two, [2H + gap, 2W + gap, 3] uint8."""
    return grid(
        [
            image,
            overlay(image, labels, table.palette),
            error_map(labels, predictions),
            overlay(image, table.train_ids(predictions), table.palette),
        ],
        columns=2,
    )


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size, [H, W, 3] uint8, in rows of `columns` with a gap between; white after the last one."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def with_legend(picture: np.ndarray, table: ClassTable, present: np.ndarray) -> PIL.Image.Image:
    """`picture` [H, W, 3] uint8 above the names and colours of the classes in `present` (train ids).

    A small picture is enlarged by a whole factor first, for the eye; a narrow strip no more than its length allows.
    """
    height, width = picture.shape[:2]
    factor = max(1, min(_WIDTH // width, 4 * _WIDTH // height))
    if factor > 1:
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    classes = [(table.class_names[c], table.class_colors[c]) for c in present if c < table.num_classes]
    return PIL.Image.fromarray(np.concatenate([picture, _legend(tuple(classes), picture.shape[1])]))


@functools.lru_cache(maxsize=4)  # the frames of a video have one
def _legend(classes: tuple[tuple[str, tuple[int, int, int]], ...], width: int) -> np.ndarray:
    """Names and colours of classes on white, [H, width, 3] uint8."""
    font_size, padding = 14, 8
    font = PIL.ImageFont.load_default(font_size)
    names = max((font.getlength(name) for name, _ in classes), default=0)
    entry_width = max(150, math.ceil(names) + font_size + 3 * padding)
    columns = max(1, width // entry_width)
    rows = -(-len(classes) // columns)
    line = font_size + padding
    canvas = PIL.Image.new('RGB', (width, rows * line + padding), _WHITE)
    draw = PIL.ImageDraw.Draw(canvas)
    for i, (name, color) in enumerate(classes):
        x, y = (i % columns) * entry_width + padding, padding + (i // columns) * line
        draw.rectangle((x, y, x + font_size, y + font_size), fill=color)
        draw.text((x + font_size + padding, y), name, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)
