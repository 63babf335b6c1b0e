"""The files of a workdir, except the checkpoints. Most modes start from them.

config.json         every setting of the run
class_table.json    the classes that it predicts
fresh_modules.json  parts of the backbone that its file lacked (config.model.pretrained_strict=false), if any
class_pixels.json   training pixels of each class, where class weights are counted from them
verified_SPLIT.json files that were checked and found good
skipped_SPLIT.json  images that were left out, and why, if any
decoded/            decoded images, with data.cache=disk
environment.json    time, devices and versions of each start of training
metrics.jsonl       a line of figures every few steps, and one for each evaluation
checkpoints/        the training state (checkpoint.py)
unusable/           checkpoints that could not be read
lock                held by the process that trains here
tensorboard/        the figures again, and pictures
report.html         the last evaluation during training, and curves of the run
check_data/         findings of `--mode=check_data`
predictions/        files of `--mode=predict`
evaluation/         scores, pictures and report of `--mode=evaluate`
benchmark/          figures of `--mode=benchmark`
export/             files of `--mode=export`
"""

import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from atonet_jax.config import default_config, flat_settings
from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import InputError
from atonet_jax.process.files import reading_json, write_json, writing

CONFIG_FILE = 'config.json'
CLASS_TABLE_FILE = 'class_table.json'
_FRESH_FILE = 'fresh_modules.json'
ENVIRONMENT_FILE = 'environment.json'
REPORT_FILE = 'report.html'
LOCK_FILE = 'lock'


def load_config(workdir: str) -> ConfigDict:
    """The config that a run was started with.

    Raises:
        InputError: `workdir` holds no run, or its file is damaged.
    """
    with _run_file(workdir, CONFIG_FILE) as stored:
        if 'model' not in stored:  # otherwise it would count as a run with all defaults
            raise KeyError('model')
        config = default_config(stored['model']['name'])  # for settings that are newer than the run
        unknown = sorted(set(flatten_dict(stored, sep='.')) - set(flat_settings(config)))
        if unknown:
            raise InputError(
                f'{os.path.join(workdir, CONFIG_FILE)}: this version has no setting {unknown[0]}; another version '
                'wrote the run: use that one, or begin a new run'
            )
        config.update(_lists_to_tuples(stored))
        return config


def load_class_table(workdir: str) -> ClassTable:
    """The classes that a run predicts.

    Raises:
        InputError: `workdir` holds no run, or its file is damaged.
    """
    with _run_file(workdir, CLASS_TABLE_FILE) as stored:
        return ClassTable.from_dict(stored)


@contextmanager
def _run_file(workdir: str, name: str) -> Iterator[dict]:
    """The content of a JSON file that every run has. Any error in the body means that the file is damaged."""
    path = os.path.join(workdir, name)
    try:
        with reading_json(path, 'copy it from a run with the same settings') as stored:
            yield stored
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f'{path}: no such file; name the --workdir of a run, or train first') from error


@contextmanager
def lock(workdir: str) -> Iterator[None]:
    """Locks `workdir` against other runs, and makes it if missing. The lock ends with the process in any case.

    Raises:
        InputError: another process trains there, nothing can be written there, or its file system has no locks.
    """
    path = os.path.join(workdir, LOCK_FILE)
    with writing(workdir):
        os.makedirs(workdir, exist_ok=True)
        file = open(path, 'ab+', buffering=0)  # what a full disk does not take is not tried again at the end
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise InputError(
                    f'{workdir}: the file system cannot lock files ({error.strerror}); give a --workdir on another'
                ) from error
            file.seek(0)
            raise InputError(
                f'{workdir}: {file.read().decode().strip() or "another process"} trains there; wait for it, end it, or '
                'give another --workdir'
            ) from error
        with writing(workdir):
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield


def claim(workdir: str, config: ConfigDict, class_table: ClassTable) -> None:
    """Starts a run in `workdir`, or goes on with the one there, after `changes.check_training`.

    Raises:
        InputError: the workdir cannot be written.
    """
    with writing(workdir):
        os.makedirs(workdir, exist_ok=True)
        write_json(os.path.join(workdir, CLASS_TABLE_FILE), class_table.to_dict())
        write_json(os.path.join(workdir, CONFIG_FILE), config.to_dict())


def with_start(config: ConfigDict, workdir: str) -> ConfigDict:
    """The config with the weights that the run in `workdir` started from, where it names none itself."""
    if not holds_run(workdir):
        return config
    earlier, config = load_config(workdir), config.copy_and_resolve_references()
    config.init_from = config.init_from or earlier.init_from
    config.model.pretrained_backbone = config.model.pretrained_backbone or earlier.model.pretrained_backbone
    return config


def record_fresh(workdir: str, modules: Sequence[str]) -> None:
    """Keeps the modules that a new run's backbone file lacked; in going on, they keep their learning rate."""
    path = os.path.join(workdir, _FRESH_FILE)
    with writing(workdir):
        if modules:
            write_json(path, {'modules': list(modules)})
        else:
            pathlib.Path(path).unlink(missing_ok=True)  # of an earlier start that reached no checkpoint


def read_fresh(workdir: str) -> tuple[str, ...]:
    """What `record_fresh` kept.

    Raises:
        InputError: the file is damaged.
    """
    if not os.path.exists(os.path.join(workdir, _FRESH_FILE)):
        return ()
    with _run_file(workdir, _FRESH_FILE) as stored:
        return tuple(stored['modules'])


def holds_run(workdir: str) -> bool:
    return os.path.exists(os.path.join(workdir, CONFIG_FILE))


def record_start(workdir: str, step: int, environment: dict) -> None:
    """Adds a start of training to `environment.json`: the step, and `environment.describe()`."""
    starts = [*read_starts(workdir), {'step': step} | environment]
    write_json(os.path.join(workdir, ENVIRONMENT_FILE), {'starts': starts})


def read_starts(workdir: str) -> list[dict]:
    """What `record_start` recorded, in order of time; empty if there is no file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with reading_json(os.path.join(workdir, ENVIRONMENT_FILE), 'delete it') as stored:
            return stored['starts']
    except FileNotFoundError:
        return []


def _lists_to_tuples(value):
    if isinstance(value, dict):
        return {key: _lists_to_tuples(child) for key, child in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value
