"""What OpenCV does not do with video files: see whether one is cut off, read its edit list, change its speed."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_TAIL = 4096  # bytes at the end of a file that are looked at
_FIRST_BOXES = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip')  # of MP4 and QuickTime
_OUTER_BOXES = (
    *_FIRST_BOXES, b'moof', b'mfra', b'styp', b'sidx', b'ssix', b'meta', b'uuid', b'udta', b'pdin', b'prft', b'emsg',
)  # fmt: skip
_EBML, _SEGMENT = b'\x1aE\xdf\xa3', b'\x18S\x80g'  # Matroska and WebM


def is_cut_off(path: str) -> bool:
    """Whether a file ends before what its container announces, as after a download or recording that broke off.

    Looks at MP4, QuickTime, Matroska, WebM and AVI, and in all but MP4 also at space that was never filled. False where
    the container announces nothing.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(8)
        if head[4:] in _FIRST_BOXES:
            # Cameras and editors may add things after the last box, which are no boxes.
            return any(stop > size for kind, _, stop in _boxes(file, 0, size) if kind in _OUTER_BOXES)
        file.seek(max(0, size - _TAIL))
        if size > _TAIL and not any(file.read()):
            return True
        if head[:4] == b'RIFF':
            return _end_of_riff(file, size) > size
        if head[:4] == _EBML:
            return _end_of_segment(file) > size
    return False


def seconds_shown(path: str) -> float | None:
    """How long the edit list of an MP4 or QuickTime file shows its first video track; None without such a list."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        movie = _find(file, (0, size), b'moov')
        header = movie and _find(file, movie, b'mvhd')
        if not header:
            return None
        version, numbers = _full_box(file, header)
        timescale = int.from_bytes(numbers[16:20] if version else numbers[8:12], 'big')
        for kind, start, stop in _boxes(file, *movie):
            if kind != b'trak' or not _is_video(file, (start, stop)):
                continue
            edits = _find(file, (start, stop), b'edts')
            edits = edits and _find(file, edits, b'elst')
            if not edits or not timescale:
                return None
            version, numbers = _full_box(file, edits)
            width = 8 if version else 4  # of a number; an entry is duration, start and rate
            entries = [numbers[i : i + 2 * width] for i in range(4, len(numbers) - 2 * width + 1, 2 * width + 4)]
            shown = [entry[:width] for entry in entries if entry[width:] != b'\xff' * width]  # -1: a pause
            return sum(int.from_bytes(duration, 'big') for duration in shown) / timescale
    return None


def change_speed(path: str, factor: float) -> None:
    """Makes an MP4 of one track play `factor` times as fast, to a thousandth of the speed or so.

    Times in the file are whole numbers of units. This changes how many units a second has.
    """
    with open(path, 'r+b') as file:
        size = os.path.getsize(path)
        movie = _find(file, (0, size), b'moov')
        track = movie and _find(file, movie, b'trak')
        media = track and _find(file, track, b'mdia')
        for part, kind in ((movie, b'mvhd'), (media, b'mdhd')):
            header = part and _find(file, part, kind)
            if not header:
                return
            version, numbers = _full_box(file, header)
            place = 16 if version else 8
            units = int.from_bytes(numbers[place : place + 4], 'big')
            changed = max(1, round(units * factor))
            factor = changed / units  # so that the edit list of the movie shows the whole track
            file.seek(header[0] + 4 + place)
            file.write(changed.to_bytes(4, 'big'))


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start of the content, end) of each MP4 box in a part of the file. The end may lie beyond the part."""
    while start + 8 <= stop:
        file.seek(start)
        size, kind, content = int.from_bytes(file.read(4), 'big'), file.read(4), start + 8
        if size == 1:
            size, content = int.from_bytes(file.read(8), 'big'), start + 16
        elif size == 0:
            size = stop - start
        if size < 8:  # no box
            return
        yield kind, content, start + size
        start += size


def _find(file: BinaryIO, part: tuple[int, int], wanted: bytes) -> tuple[int, int] | None:
    return next(((start, stop) for kind, start, stop in _boxes(file, *part) if kind == wanted), None)


def _full_box(file: BinaryIO, part: tuple[int, int]) -> tuple[int, bytes]:
    """Version of a box, and what follows version and flags."""
    file.seek(part[0])
    content = file.read(min(part[1] - part[0], 1 << 20))
    return content[0] if content else 0, content[4:]


def _is_video(file: BinaryIO, track: tuple[int, int]) -> bool:
    media = _find(file, track, b'mdia')
    handler = media and _find(file, media, b'hdlr')
    return bool(handler) and _full_box(file, handler)[1][4:8] == b'vide'


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Long AVI files are several RIFF chunks, one after the other."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        kind, length = file.read(4), int.from_bytes(file.read(4), 'little')
        if kind != b'RIFF':
            break
        end += 8 + length
    return end


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment ends by its own size; 0 if that is not said, as in a live recording."""
    file.seek(4)
    file.seek(_variable_size(file) or 0, 1)
    if file.read(4) != _SEGMENT:
        return 0
    length = _variable_size(file)
    return 0 if length is None else file.tell() + length


def _variable_size(file: BinaryIO) -> int | None:
    """An EBML size; None if it is unknown. The leading zeros of the first byte count the bytes that follow."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> (more + 1))]) + file.read(more), 'big')
    return None if value == (1 << (7 * (more + 1))) - 1 else value
