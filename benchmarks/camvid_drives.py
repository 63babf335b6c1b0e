"""CamVid with another split: trains on some drives, and scores on a drive that training has not seen.

    python -m benchmarks.camvid_drives data/camvid runs/camvid_drives --held-out 0006R0     # needs CamVid
    python -m benchmarks.camvid --data runs/camvid_drives --protocol val --recipes scratch  # needs CamVid

CamVid's own val frames are of the drive 0016E5, and two thirds of that drive's frames are in train. So they say little
about new streets, which most test frames show. The folder that this makes holds links to the frames of train and val:
train/ has all drives but the one held out, val/ has that one. Frames of test are not touched.
"""

import argparse
import os
import pathlib

_PARTS = 'train', 'val'


def split_by_drive(root: str, folder: str, held_out: str) -> dict[str, int]:
    """Makes `folder`; returns how many frames each part has.

    Args:
        root: the 360x480 repack of CamVid.
        folder: where train/, trainannot/, val/ and valannot/ are made. Links that are there are replaced.
        held_out: the drive that is val, such as '0006R0'. A frame's name begins with its drive.

    Raises:
        SystemExit: `root` lacks a part, no frame is of that drive, or `folder` holds files that are no links.
    """
    if os.path.realpath(root) == os.path.realpath(folder):
        raise SystemExit(f'{folder}: is the folder of CamVid itself; give another one')
    frames = {ending: [] for ending in ('', 'annot')}
    for ending, files in frames.items():
        for part in _PARTS:
            source = pathlib.Path(root, f'{part}{ending}')
            if not source.is_dir():
                raise SystemExit(f'{source}: no such folder; give the 360x480 repack of CamVid')
            files += sorted(source.glob('*.png'))
    drives = {_drive(frame) for frame in frames['']}
    if held_out not in drives:
        raise SystemExit(f'--held-out {held_out}: no frame of it in {root}; there is {", ".join(sorted(drives))}')
    for place in (pathlib.Path(folder, f'{part}{ending}') for part in _PARTS for ending in frames):
        place.mkdir(parents=True, exist_ok=True)
        for old in place.iterdir():
            if not old.is_symlink():
                raise SystemExit(f'{old}: is no link made by this command; give a folder of its own')
            old.unlink()
    counts = dict.fromkeys(_PARTS, 0)
    for ending, files in frames.items():
        for frame in files:
            part = 'val' if _drive(frame) == held_out else 'train'
            os.symlink(frame.absolute(), pathlib.Path(folder, f'{part}{ending}', frame.name))
            counts[part] += not ending
    return counts


def _drive(frame: pathlib.Path) -> str:
    return frame.name.split('_')[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', help='folder of the 360x480 repack')
    parser.add_argument('folder', help='that is made')
    parser.add_argument('--held-out', default='0006R0', metavar='DRIVE', help='the drive that is val')
    arguments = parser.parse_args(argv)
    counts = split_by_drive(arguments.root, arguments.folder, arguments.held_out)
    print(f'{arguments.folder}: {counts["train"]} frames in train, {counts["val"]} of {arguments.held_out} in val')


if __name__ == '__main__':
    main()
