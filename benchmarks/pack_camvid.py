"""Packs CamVid losslessly into parts of limited size, for machines that take only so much at a time.

    python -m benchmarks.pack_camvid pack data/camvid data/camvid_parts --also resnet18_imagenet.npz
    python -m benchmarks.pack_camvid unpack data/camvid_parts/part_*.zip --to data/camvid

Images become lossless WebP, 0.7 times the size of the PNG files. Unpacking makes PNG files of them again and checks the
pixels of each by their CRC-32. Label files and those of --also are kept byte by byte. Parts are filled in the order
train, val, --also, test, so that training can begin before the last one is there. Unpacking needs NumPy and Pillow
alone, and parts may come one at a time.
"""

import argparse
import concurrent.futures
import io
import json
import os
import time
import zipfile
import zlib

import numpy as np
import PIL.features
import PIL.Image

from atonet_jax.errors import first_line

_SPLITS = ('train', 'val', 'test')
_CHECKSUMS = 'pixels_crc32.json'


def pack(root: str, folder: str, also: list[str], megabytes: float) -> list[str]:
    """Writes the parts of the 360x480 repack in `root`, each at most `megabytes` MiB; returns their paths."""
    if not PIL.features.check('webp'):
        raise SystemExit('this Pillow has no WebP; install one that has')
    train, val, test = (list(_files(root, split)) for split in _SPLITS)
    jobs = [*train, *val, *((path, os.path.basename(path)) for path in also), *test]
    os.makedirs(folder, exist_ok=True)
    part = _Part(folder, 1)
    paths = [part.path]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for name, data, checksum in pool.map(lambda job: _packed(*job), jobs):
            if part.size + len(data) > megabytes * 2**20:
                part.close()
                part = _Part(folder, len(paths) + 1)
                paths.append(part.path)
            part.add(name, data, checksum)
    part.close()
    return paths


def unpack(parts: list[str], root: str) -> int:
    """Writes the files of parts under `root`; returns how many. Those that are there already are written anew.

    Raises:
        SystemExit: a part is missing or damaged.
    """
    count = 0
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for path in parts:
            try:
                with zipfile.ZipFile(path) as archive:
                    checksums = json.loads(archive.read(_CHECKSUMS))
                    entries = [(name, archive.read(name)) for name in archive.namelist() if name != _CHECKSUMS]
            except (OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
                raise SystemExit(f'{path}: cannot be read ({first_line(error)}); copy it again') from error
            list(pool.map(lambda entry: _write(root, *entry, checksums), entries))
            count += len(entries)
    return count


def verify(root: str, other: str) -> int:
    """Compares the pixels of all images and labels of two folders; returns how many are the same.

    Raises:
        SystemExit: names the first file that differs or is missing.
    """

    def check(name):
        try:
            same = np.array_equal(*(_pixels(os.path.join(folder, name)) for folder in (root, other)))
        except FileNotFoundError:
            same = False
        if not same:
            raise SystemExit(f'{name}: missing in one folder, or its pixels differ')

    names = [name for split in _SPLITS for _, name in _files(root, split)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(check, names))
    return len(names)


class _Part:
    """A zip archive that grows."""

    def __init__(self, folder: str, number: int):
        self.path = os.path.join(folder, f'part_{number}.zip')
        self.size = 0
        self._archive = zipfile.ZipFile(self.path, 'w')
        self._checksums = {}

    def add(self, name: str, data: bytes, checksum: int | None) -> None:
        self._archive.writestr(name, data)
        self.size += len(data) + 2 * len(name) + 200  # with what the archive keeps of it
        if checksum is not None:
            self._checksums[name] = checksum

    def close(self) -> None:
        self._archive.writestr(_CHECKSUMS, json.dumps(self._checksums), zipfile.ZIP_DEFLATED)
        self._archive.close()


def _files(root, split):
    """(path, name in archives) of all files of a split, an image and then its label."""
    for name in sorted(os.listdir(os.path.join(root, split))):
        for folder in (split, f'{split}annot'):
            yield os.path.join(root, folder, name), f'{folder}/{name}'


def _packed(path: str, name: str) -> tuple[str, bytes, int | None]:
    """Entry of an archive: (name, bytes, CRC-32 of the pixels where they are coded anew)."""
    if os.path.dirname(name) not in _SPLITS:
        with open(path, 'rb') as file:
            return name, file.read(), None
    pixels = _pixels(path)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, 'WEBP', lossless=True, method=4, quality=80, exact=True)
    return f'{os.path.splitext(name)[0]}.webp', stream.getvalue(), zlib.crc32(pixels.tobytes())


def _write(root, name, data, checksums):
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if name not in checksums:
        with open(path, 'wb') as file:
            file.write(data)
        return
    with PIL.Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert('RGB'))
    if zlib.crc32(pixels.tobytes()) != checksums[name]:
        raise SystemExit(f'{name}: other pixels than were packed; pack again')
    PIL.Image.fromarray(pixels).save(f'{os.path.splitext(path)[0]}.png', compress_level=1)


def _pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image if image.mode in ('L', 'P') else image.convert('RGB'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    packing = commands.add_parser('pack')
    packing.add_argument('root', help='folder of the 360x480 repack')
    packing.add_argument('folder', help='where the parts go')
    packing.add_argument('--also', nargs='*', default=[], help='further files')
    packing.add_argument('--megabytes', type=float, default=55, help='MiB of a part at most')
    unpacking = commands.add_parser('unpack')
    unpacking.add_argument('parts', nargs='+')
    unpacking.add_argument('--to', required=True)
    comparing = commands.add_parser('verify', help='compares the pixels of two folders')
    comparing.add_argument('root')
    comparing.add_argument('other')
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.command == 'pack':
        for path in pack(arguments.root, arguments.folder, arguments.also, arguments.megabytes):
            print(f'{path}: {os.path.getsize(path) / 2**20:.1f} MiB')
    elif arguments.command == 'unpack':
        count = unpack(arguments.parts, arguments.to)
        print(f'{count} files in {time.perf_counter() - start:.1f} s')
    else:
        print(f'{verify(arguments.root, arguments.other)} files with the same pixels')


if __name__ == '__main__':
    main()
