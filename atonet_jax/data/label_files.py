"""Label files to train ids. Training, evaluation and check_data read them here.

A file holds numbers or colours. Its samples are the numbers, at any bit depth and with any palette. What a kind of file
holds is decided for a whole split (label_reading.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import PIL.Image

from atonet_jax.data.dataset import VOID_INDEX, DataError, SegmentationDataset
from atonet_jax.data.image_files import check_label_pixels, check_label_size, upright_labels
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL
from atonet_jax.data.pictures import UNDECODABLE
from atonet_jax.errors import first_line

KINDS = ('grey', 'grey_palette', 'palette', 'rgb')  # of label files; grey_palette: whose colours are different greys
LABEL_EXTENSIONS = ('.png', '.bmp', '.tif', '.tiff', '.gif')

_KIND_OF_MODE = {
    **dict.fromkeys(('1', 'L', 'LA', 'I', 'I;16', 'I;16B', 'I;16L', 'F'), 'grey'),
    **dict.fromkeys(('P', 'PA'), 'palette'),
    **dict.fromkeys(('RGB', 'RGBA'), 'rgb'),
}
_FORMATS = ('PNG', 'BMP', 'TIFF', 'GIF')  # which keep every value
_TIFF_COMPRESSIONS = ('raw', 'tiff_ccitt', 'group3', 'group4', 'tiff_lzw', 'tiff_adobe_deflate', 'tiff_raw_16',
                      'packbits', 'tiff_deflate', 'lzma', 'zstd')  # fmt: skip
_NO_PAGE = 5  # bits of a TIFF's page: a smaller copy of another page, or a mask of transparency
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC = 254, 258, 262  # TIFF's tags
_WRONG_KIND = 'wrong kind of label file'


class LabelFile(NamedTuple):
    """The content of a label file.

    Attributes:
        path: of the file.
        kind: of `KINDS`.
        samples: [H, W] integers; of kind 'rgb' [H, W, 3] uint8. Alpha is dropped.
        bits: of a grey sample.
        palette: [n, 3] uint8 colours, or None.
    """

    path: str
    kind: str
    samples: np.ndarray
    bits: int
    palette: np.ndarray | None

    def numbers(self, by_level: bool = False) -> np.ndarray:
        """[H, W] integers: the samples, or one of three equal channels.

        Args:
            by_level: of kind 'grey_palette', the greys of the samples.

        Raises:
            DataError: the three channels differ.
        """
        if self.kind == 'grey_palette' and by_level:
            return np.pad(self.palette[:, 0], (0, 256 - len(self.palette)))[self.samples]
        if self.kind != 'rgb':
            return self.samples
        row, column = self.first_color()
        if row < 0:
            return self.samples[..., 0]
        color = tuple(self.samples[row, column].tolist())
        raise DataError(
            f'{self.path}: label file holds colours such as {color}, but class ids are expected; give the classes '
            'their colours in the class file, or save the ids as one channel',
            _WRONG_KIND,
        )

    def first_color(self) -> tuple[int, int]:
        """(row, column) of a pixel of kind 'rgb' whose channels differ; (-1, -1) if there is none."""
        red, green, blue = np.moveaxis(self.samples, 2, 0)
        differ = (red != green) | (red != blue)
        place = int(differ.argmax())
        return divmod(place, differ.shape[1]) if differ.flat[place] else (-1, -1)

    def colors(self, color_train_ids: np.ndarray) -> np.ndarray:
        """[H, W] int32 colours as 0xRRGGBB, of grey and palettes too; or `VOID_INDEX`.

        Args:
            color_train_ids: `SegmentationDataset.color_train_ids`.

        Raises:
            DataError: grey of more than 8 bits.
        """
        if self.kind == 'rgb':
            rgb = self.samples.astype(np.int32)
            return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        if self.kind == 'grey':
            if self.bits > 8:
                raise DataError(
                    f'{self.path}: label file holds {self.bits}-bit numbers, but class colours are expected; save it '
                    'as RGB, or set config.data.label_values=index',
                    _WRONG_KIND,
                )
            return self.samples.astype(np.int32) * (255 // (2**self.bits - 1)) * 0x010101
        return colors_of_indices(self.palette, color_train_ids)[self.samples]


def colors_of_indices(palette: np.ndarray, color_train_ids: np.ndarray) -> np.ndarray:
    """[256] int32: index -> colour as 0xRRGGBB. Indices beyond the palette are black.

    The index 255 is `VOID_INDEX`, except where a class's colour stands there and nowhere else.

    Args:
        palette: [n, 3] uint8.
        color_train_ids: `SegmentationDataset.color_train_ids`.
    """
    colors = np.zeros(256, np.int32)
    colors[: len(palette)] = palette.astype(np.int32) @ [1 << 16, 1 << 8, 1]
    last = colors[IGNORE_LABEL]
    if color_train_ids[last] == UNKNOWN_LABEL or last in colors[:IGNORE_LABEL]:
        colors[IGNORE_LABEL] = VOID_INDEX
    return colors


class LabelPixels(NamedTuple):
    """What a label file says of each pixel.

    Attributes:
        values: [H, W] numbers, or colours as 0xRRGGBB or `VOID_INDEX`.
        colored: whether they are colours.
    """

    values: np.ndarray
    colored: bool


def read_label_file(dataset: SegmentationDataset, path: str) -> LabelFile:
    """The content of a label file, decoded, as its file stores it.

    Raises:
        DataError: the file is missing, unreadable or too large, may have lost values to compression, or is ambiguous.
    """
    with _opened(dataset, path) as (image, kind, bits):
        kind, palette = _with_palette(image, kind)
        samples = np.asarray(image)
    if image.mode in ('LA', 'PA'):
        samples = samples[..., 0]
    elif kind == 'rgb':
        samples = samples[..., :3]
    elif image.mode == '1':
        samples = samples.astype(np.uint8)
    elif image.mode == 'L' and bits < 8:  # Pillow spreads them over 0..255
        samples = samples // np.uint8(255 // (2**bits - 1))
    elif image.mode == 'F':
        whole = np.nan_to_num(samples, nan=0.5, posinf=0.5, neginf=0.5)
        if (whole != np.rint(whole)).any():
            raise DataError(f'{path}: label file holds fractions; save whole numbers', _WRONG_KIND)
        samples = whole.astype(np.int64)
    return LabelFile(path, kind, samples, bits, palette)


def read_label_header(dataset: SegmentationDataset, path: str) -> tuple[str, np.ndarray | None]:
    """The kind of a label file, and its palette, without decoding its pixels.

    Raises:
        DataError: as `read_label_file`.
    """
    with _opened(dataset, path) as (image, kind, _):
        return _with_palette(image, kind)


def read_label_pixels(dataset: SegmentationDataset, i: int) -> LabelPixels:
    """Label file `i`, read by number or by colour as the data set says.

    Raises:
        DataError: as `read_label_file`; or its content does not suit that way.
    """
    label = read_label_file(dataset, dataset.label_paths[i])
    colored = label.kind in dataset.reading.by_color
    values = label.colors(dataset.color_train_ids) if colored else label.numbers(dataset.reading.by_level)
    return LabelPixels(values, colored)


def read_labels(dataset: SegmentationDataset, i: int, image_size: tuple[int, int]) -> np.ndarray:
    """Labels of example `i`, whose image is `image_size` = (height, width): [H, W] uint8 train ids.

    A split without labels gives `IGNORE_LABEL` everywhere.

    Raises:
        DataError: the file is missing or unreadable, has another size, or holds more values that the class table lacks
            than `SegmentationDataset.unknown_as_void` allows.
    """
    if dataset.label_paths is None:
        return np.full(image_size, IGNORE_LABEL, np.uint8)
    pixels = read_label_pixels(dataset, i)
    check_label_size(dataset, i, pixels.values.shape, image_size)
    labels = to_train_ids(dataset, pixels)
    unknown = labels == UNKNOWN_LABEL
    if unknown.any():
        _check_unknown(dataset, i, pixels.colored, labels.size, *np.unique(pixels.values[unknown], return_counts=True))
        labels = np.where(unknown, np.uint8(IGNORE_LABEL), labels)
    return upright_labels(dataset, i, labels)


class LabelCounts(NamedTuple):
    """The values of a label file.

    Attributes:
        known: pixels of each value with a meaning; '7' for a number, '#804080' for a colour.
        unknown: pixels of all others, which count as void.
    """

    known: dict[str, int]
    unknown: int


def count_label_values(dataset: SegmentationDataset, i: int, image_size: tuple[int, int] | None = None) -> LabelCounts:
    """Counts the values of label file `i` and checks all that `read_labels` does.

    Raises:
        DataError: as `read_labels`. Without `image_size`, sizes are not compared.
    """
    values, colored = read_label_pixels(dataset, i)
    if image_size is not None:
        check_label_size(dataset, i, values.shape, image_size)
    present, counts = _count(values)
    unknown = to_train_ids(dataset, LabelPixels(present, colored)) == UNKNOWN_LABEL
    if unknown.any():
        _check_unknown(dataset, i, colored, values.size, present[unknown], counts[unknown])
    known = {_text(value, colored): int(count) for value, count in zip(present[~unknown], counts[~unknown])}
    return LabelCounts(known, int(counts[unknown].sum()))


def _count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique` with counts, faster for labels."""
    flat = values.ravel()
    if flat.dtype == np.uint8:
        counts = np.bincount(flat, minlength=256)
        present = np.flatnonzero(counts)
        return present, counts[present]
    # Neighbours are mostly alike, and runs of them are far fewer than pixels.
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    present, run_values = np.unique(flat[starts], return_inverse=True)
    return present, np.bincount(run_values, np.diff(starts, append=flat.size)).astype(np.int64)


def train_id_of(dataset: SegmentationDataset, value: str) -> int:
    """The train id of a value of `LabelCounts.known`."""
    if value.startswith('#'):
        return int(dataset.color_train_ids[int(value[1:], 16)])
    return int(dataset.train_ids[int(value)])


def to_train_ids(dataset: SegmentationDataset, pixels: LabelPixels) -> np.ndarray:
    """uint8 train ids of any shape; `UNKNOWN_LABEL` for values that the class table lacks."""
    values = pixels.values
    if pixels.colored:
        return dataset.color_train_ids[values]
    if values.dtype == np.uint8:  # which takes half the time
        table = dataset.train_ids.tobytes()
        return np.frombuffer(values.tobytes().translate(table), np.uint8).reshape(values.shape)
    fits = (values >= 0) & (values < 256)
    return np.where(fits, dataset.train_ids[np.where(fits, values, 0)], np.uint8(UNKNOWN_LABEL))


@contextmanager
def _opened(dataset: SegmentationDataset, path: str) -> Iterator[tuple[PIL.Image.Image, str, int]]:
    """(image, kind, bits of a sample) of a label file. Its pixels are not decoded yet."""
    with dataset.storage.open(path) as file, _decoding(path):
        head = file.read(32)
        file.seek(0)
        image = PIL.Image.open(file)
        check_label_pixels(dataset, path, image)
        fault = ''
        if image.format not in _FORMATS:
            fault = f'is a {image.format} file, whose compression may change class ids; save the original labels as PNG'
        elif image.format == 'TIFF' and image.info.get('compression') not in _TIFF_COMPRESSIONS:
            compression = image.info.get('compression')
            fault = f'has {compression} compression, which may change class ids; save the original labels as PNG'
        elif _pages(image) > 1:
            fault = f'holds {_pages(image)} pictures; save the labels alone, as PNG'
        elif image.format == 'TIFF' and image.tag_v2.get(_PHOTOMETRIC, 1) == 0:
            fault = 'counts white as 0, and programs differ in how they read that; save labels as PNG'
        bits = _bits(image, head)
        kind = _KIND_OF_MODE.get(image.mode)
        if kind is None:
            fault = fault or f'is of mode {image.mode}; save one channel of class ids, or RGB, as PNG'
        elif bits > 8 and (kind == 'rgb' or image.mode == 'LA'):
            fault = fault or f'has several channels of {bits} bits; save one channel of class ids, or 8-bit RGB'
        elif image.format == 'BMP' and kind == 'grey' and bits != (1 if image.mode == '1' else 8):
            fault = fault or f'is a BMP of {bits} bits with a grey palette, which cannot be read; save labels as PNG'
        if fault:
            raise DataError(f'{path}: label file {fault}', _WRONG_KIND)
        yield image, kind, bits


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    try:
        yield
    except DataError:  # a ValueError too
        raise
    except (*UNDECODABLE, MemoryError) as error:  # OpenJPEG's word for damage
        if isinstance(error, PIL.UnidentifiedImageError):  # whose text is the name of an object
            reason = 'not an image'
        else:
            reason = first_line(error)
        raise DataError(f'{path}: cannot be decoded ({reason}); replace the file', 'file cannot be decoded') from error


def _bits(image: PIL.Image.Image, head: bytes) -> int:
    """Bits of a sample."""
    if image.format == 'PNG':
        return head[24]
    if image.format == 'BMP':
        bits = int.from_bytes(head[28:30], 'little') if head[14] >= 40 else head[24]
        return min(bits, 8)
    if image.format == 'TIFF':
        return max(image.tag_v2.get(_BITS, (1,)))
    return 8


def _pages(image: PIL.Image.Image) -> int:
    """Number of pictures in a file. Smaller copies of a TIFF's first picture do not count."""
    pages = getattr(image, 'n_frames', 1)
    if pages == 1 or image.format != 'TIFF':
        return pages
    own = 1
    for page in range(1, pages):
        image.seek(page)
        own += not image.tag_v2.get(_SUBFILE_TYPE, 0) & _NO_PAGE
    image.seek(0)
    return own


def _with_palette(image: PIL.Image.Image, kind: str) -> tuple[str, np.ndarray | None]:
    """Kind and [n, 3] uint8 palette of an image that is not decoded yet."""
    if kind != 'palette':
        return kind, None
    if image.palette is None or not image.palette.palette:
        raise ValueError('its palette is missing')
    palette_alone = PIL.Image.new('P', (1, 1))
    palette_alone.palette = image.palette.copy()
    palette = np.array(palette_alone.getpalette(), np.uint8).reshape(-1, 3)
    greys = filled_part(palette)[:, 0]
    is_grey = (palette == palette[:, :1]).all() and 0 < len(np.unique(greys)) == len(greys)
    return 'grey_palette' if is_grey else 'palette', palette


def filled_part(palette: np.ndarray) -> np.ndarray:
    """A palette [n, 3] without the equal colours at its end, if they are several."""
    others = np.flatnonzero((palette != palette[-1]).any(axis=1))
    end = others[-1] + 1 if len(others) else 0
    return palette if end >= len(palette) - 1 else palette[:end]


def _check_unknown(
    dataset: SegmentationDataset, i: int, colored: bool, size: int, values: np.ndarray, counts: np.ndarray
) -> None:
    """Raises DataError if `values` of label `i`, which have no train id, are more of its pixels than may be void."""
    share = counts.sum() / size
    if share <= dataset.unknown_as_void:
        return
    worst = counts.argmax()
    if colored:
        red, green, blue = int(values[worst]).to_bytes(3, 'big')
        value = f'colour ({red}, {green}, {blue})'
        colors = {label.color for label in dataset.class_table.raw_labels if label.color is not None}
        known = f'the {len(colors)} colours of the {dataset.class_table.name} class table'
    else:
        value = f'label value {values[worst]}'
        known = _ranges_text(np.flatnonzero(dataset.train_ids != UNKNOWN_LABEL))
    remedy = (
        f'correct the file or the classes, or let such pixels be void: --config.data.unknown_as_void={_round_up(share)}'
    )
    if not colored and 'grey' in dataset.reading.ways:
        grey = (int(values[worst]),) * 3
        for label in dataset.class_table.raw_labels:
            if label.color == grey:
                remedy = f'{grey} is the colour of {label.name}: --config.data.label_values=color reads colours'
    others = f' and {len(values) - 1} other unknown values' if len(values) > 1 else ''
    raise DataError(
        f'{dataset.label_paths[i]}: {value} ({counts[worst]} pixels){others}, but known are {known}; {remedy}',
        'unknown label value',
    )


def _round_up(share: float) -> str:
    """A share with one digit, not below it."""
    digits = max(0, int(np.ceil(-np.log10(share))))
    return f'{np.ceil(share * 10**digits) / 10**digits:.{digits}f}'


def _text(value: int, colored: bool) -> str:
    if colored:
        return f'{IGNORE_LABEL}' if value == VOID_INDEX else f'#{value:06x}'
    return f'{value}'


def _ranges_text(values: np.ndarray) -> str:
    """Sorted integers as text, such as '0..18, 255'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs)
