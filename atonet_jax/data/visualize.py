"""Pictures of label maps."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from atonet_jax.data.labels import IGNORE_LABEL, ClassTable

_OPACITY = 0.55
_GAP = 4
_ROWS = 256  # that are blended at a time
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
    for top in range(0, len(image), _ROWS):  # float64 takes eight times the memory of the picture
        rows = slice(top, top + _ROWS)
        blended = (1 - _OPACITY) * image[rows] + _OPACITY * palette[labels[rows]]
        ignored = (labels[rows] == IGNORE_LABEL)[..., None]
        result[rows] = np.where(ignored, image[rows], blended.round().astype(np.uint8))
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
            overlay(image, predictions, table.palette),
        ],
        columns=2,
    )


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size, [H, W, 3] uint8, in rows of `columns` with a gap between; white after the last one."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), _WHITE, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def with_legend(picture: np.ndarray, table: ClassTable, present: np.ndarray) -> PIL.Image.Image:
    """`picture` [H, W, 3] uint8 above the names and colours of the classes in `present` (train ids).

    A small picture is enlarged by a whole factor first, for the eye.
    """
    factor = max(1, _WIDTH // picture.shape[1])
    if factor > 1:
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    font_size, padding = 14, 8
    classes = [c for c in present if c < table.num_classes]
    font = PIL.ImageFont.load_default(font_size)
    names = max((font.getlength(table.class_names[c]) for c in classes), default=0)
    entry_width = max(150, math.ceil(names) + font_size + 3 * padding)
    columns = max(1, picture.shape[1] // entry_width)
    rows = -(-len(classes) // columns)
    line = font_size + padding
    canvas = PIL.Image.new('RGB', (picture.shape[1], picture.shape[0] + rows * line + padding), _WHITE)
    canvas.paste(PIL.Image.fromarray(picture))
    draw = PIL.ImageDraw.Draw(canvas)
    for i, c in enumerate(classes):
        x, y = (i % columns) * entry_width + padding, picture.shape[0] + padding + (i // columns) * line
        draw.rectangle((x, y, x + font_size, y + font_size), fill=table.class_colors[c])
        draw.text((x + font_size + padding, y), table.class_names[c], fill=(0, 0, 0), font=font)
    return canvas
