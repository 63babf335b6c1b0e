"""A data set of scenes on disk, in the layout of Cityscapes."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Mapping

from PIL import Image

from atonet_jax.data.synthetic.scene import check_scene, render_scene
from atonet_jax.errors import InputError
from atonet_jax.process.files import replacing
from atonet_jax.process.progress import watched

PARAMETERS_FILE = 'synthetic.json'
CITY = 'synthetown'
VERSION = 1


def write_dataset(root, *, splits: Mapping[str, int], height: int, width: int, seed: int, workers: int | None = None):
    """Writes scenes in the layout of Cityscapes.

    `leftImg8bit/{split}/synthetown/synthetown_{split number}_{scene}_leftImg8bit.png` and the same under
    `gtFine` with `_gtFine_labelIds.png`. A complete data set is left alone, an interrupted one completed.

    Args:
        root: folder of the data set, made if missing.
        splits: number of scenes of each split; no scene is in two.
        height, width: in pixels.
        seed: of the scenes.
        workers: processes; None takes one for each core.

    Raises:
        InputError: (a ValueError) the folder holds another data set or other files, or as in `render_scene`.
    """
    root = pathlib.Path(root)
    check_scene(seed, 0, height, width)
    wanted = {'version': VERSION, 'splits': dict(splits), 'height': height, 'width': width, 'seed': seed}
    parameters = json.dumps(wanted, indent=2) + '\n'
    complete, started = root / PARAMETERS_FILE, root / f'{PARAMETERS_FILE}.part'
    # Another process may be writing the same data set, and renames `started` to `complete` at its end. So the folder is
    # listed first, and `started` is looked for before `complete`: in another order both could be missed. Hidden files
    # are not written completely yet.
    is_empty = not root.exists() or all(path.name.startswith('.') for path in root.iterdir())
    is_started, is_complete = (_holds(path, parameters) for path in (started, complete))
    if is_complete:
        return
    if not is_started:
        if not is_empty:
            raise InputError(f'{root}: holds files that are no synthetic data set; choose an empty or new folder')
        root.mkdir(parents=True, exist_ok=True)
        with replacing(str(started)) as temporary:
            pathlib.Path(temporary).write_text(parameters)
    jobs, first = [], 0
    for number, (split, count) in enumerate(splits.items()):
        for frame in range(count):
            stem = f'{split}/{CITY}/{CITY}_{number:06d}_{frame:06d}'
            image, labels = root / f'leftImg8bit/{stem}_leftImg8bit.png', root / f'gtFine/{stem}_gtFine_labelIds.png'
            image.parent.mkdir(parents=True, exist_ok=True)
            labels.parent.mkdir(parents=True, exist_ok=True)
            if not all(path.exists() and path.stat().st_size for path in (image, labels)):
                jobs.append((seed, first + frame, height, width, image, labels))
        first += count
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        written = pool.map(_write_scene, jobs, chunksize=8)
        for _ in watched(written, f'scenes to {root}', len(jobs), 'scene'):
            pass
    with contextlib.suppress(FileNotFoundError):  # another process wrote the same, and ended first
        os.replace(started, complete)


def _holds(path: pathlib.Path, parameters: str) -> bool:
    """Whether there is such a file, with these parameters.

    Raises:
        InputError: it holds others.
    """
    try:
        found = path.read_text()
    except FileNotFoundError:
        return False
    if found != parameters:
        raise InputError(
            f'{path}: holds scenes of {" ".join(found.split())}, not of {" ".join(parameters.split())}; choose another '
            'folder or delete it'
        )
    return True


def _write_scene(job):
    seed, index, height, width, image_path, labels_path = job
    for path, array in zip((image_path, labels_path), render_scene(seed, index, height, width), strict=True):
        with replacing(str(path), durable=False) as temporary:
            Image.fromarray(array).save(temporary, 'png')
