"""What becomes of images that training leaves out (`data.on_corrupt=skip`): each start lists them in the workdir."""

import logging
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

from atonet_jax.data.dataset import split_file_name
from atonet_jax.data.examples import Examples
from atonet_jax.errors import Stopped
from atonet_jax.process.distributed import is_main_process
from atonet_jax.process.files import write_json

_log = logging.getLogger(__name__)


@contextmanager
def gathering_skipped(*parts: Examples) -> Iterator[None]:
    """After the body each process knows what the others have skipped, unless an error has ended one of them."""
    try:
        yield
    except Stopped:  # in all processes
        for part in parts:
            part.gather_skipped()
        raise
    for part in parts:
        part.gather_skipped()


def list_skipped(examples: Examples, workdir: str) -> None:
    """Writes which images were skipped in this start, and why. A disk that does not take it only warns."""
    if not is_main_process():
        return
    dataset = examples.dataset
    path = os.path.join(workdir, split_file_name('skipped', dataset.split))
    reasons = {dataset.image_paths[i]: str(reason) for i, reason in sorted(examples.skipped.items())}
    try:
        if not reasons:
            pathlib.Path(path).unlink(missing_ok=True)  # of an earlier start
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)  # a split may be named train/a
        write_json(path, reasons)
    except OSError as error:
        _log.warning('%s: cannot be written (%s); it would list the images that were skipped', path, error.strerror)
        return
    _log.warning('%d of %d images of %s were skipped; %s lists them', len(reasons), len(examples), dataset.split, path)
