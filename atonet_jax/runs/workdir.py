"""The files of a workdir, except the checkpoints. Every mode but train starts from them.

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
SCORES_FILE = 'evaluation/scores.json'
REPORT_FILE = 'report.html'
LOCK_FILE = 'lock'
# Settings that change no shape of a parameter.
_FREE_MODEL_KEYS = ('config.model.dtype ', 'config.model.pretrained_backbone ', 'config.model.pretrained_strict ')
_STATE_KEYS = ('config.optimizer.name ', 'config.optimizer.frozen ')  # a training state depends on these


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


def check_claim(workdir: str, config: ConfigDict, class_table: ClassTable, has_begun: bool = True) -> list[str]:
    """Whether a run may begin in `workdir`, or go on from the one that is there.

    has_begun: whether that one has a checkpoint. Before that, the training state and what it starts from may change.

    Returns:
        Changes of the config since the run began, one line for each key; empty for a new run.

    Raises:
        InputError: the workdir belongs to a run with another network, other classes, or another kind of training state.
    """
    if not holds_run(workdir):
        return []
    changes = changes_since(workdir, config, class_table, has_begun)
    state = [change for change in changes if change.startswith(_STATE_KEYS)]
    averages = [each.optimizer.ema_decay > 0 for each in (load_config(workdir), config)]
    if averages[0] != averages[1]:
        state += [change for change in changes if change.startswith('config.optimizer.ema_decay ')]
    if state and has_begun:
        raise InputError(
            f'{workdir}: its training state does not fit ({"; ".join(state)}); give a new --workdir, which '
            f'--config.init_from={workdir} starts from the weights of this one'
        )
    return changes


def claim(workdir: str, config: ConfigDict, class_table: ClassTable, goes_on: bool = False) -> None:
    """Starts a run in `workdir`, or goes on with the one there, after `check_claim`.

    A run that goes on without being told what it started from keeps that in its config.

    Raises:
        InputError: the workdir cannot be written.
    """
    if goes_on:
        earlier, config = load_config(workdir), config.copy_and_resolve_references()
        config.init_from = config.init_from or earlier.init_from
        config.model.pretrained_backbone = config.model.pretrained_backbone or earlier.model.pretrained_backbone
    with writing(workdir):
        os.makedirs(workdir, exist_ok=True)
        write_json(os.path.join(workdir, CLASS_TABLE_FILE), class_table.to_dict())
        write_json(os.path.join(workdir, CONFIG_FILE), config.to_dict())


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


def changes_since(workdir: str, config: ConfigDict, class_table: ClassTable, has_begun: bool = True) -> list[str]:
    """Changes of `config` since the run in `workdir` began, one line for each key. has_begun: as in `check_claim`.

    Raises:
        InputError: there is no run, or it is one of another network, of other classes, or from other weights.
    """
    changes = list(_differences(load_config(workdir), config))
    for key, value in (
        ('config.init_from', config.init_from), ('config.model.pretrained_backbone', config.model.pretrained_backbone)
    ):  # fmt: skip
        if has_begun and value and any(change.startswith(f'{key} ') for change in changes):
            raise InputError(
                f'{key}={value}: {workdir} holds a run that has begun already; give a new --workdir to use these '
                f'weights, or leave {key} as it was'
            )
    network = [c for c in changes if c.startswith('config.model.') and not c.startswith(_FREE_MODEL_KEYS)]
    difference = class_difference(load_class_table(workdir), class_table)
    if difference:
        network.append(difference)
    if network:
        raise InputError(
            f'{workdir}: holds a run of another network ({"; ".join(network)}); '
            'give a new --workdir, or the settings of that run'
        )
    return changes


def class_difference(ours: ClassTable, other: ClassTable) -> str:
    """How the classes of a run differ from those of the data, in words; '' if they are the same."""
    if ours.num_classes != other.num_classes:
        return f'it has the {ours.num_classes} classes of {ours.name}, not the {other.num_classes} of {other.name}'
    pairs = enumerate(zip(ours.class_names, other.class_names, strict=True))
    differ = [f'class {i} was {mine!r}, is {theirs!r}' for i, (mine, theirs) in pairs if mine != theirs]
    more = f', and {len(differ) - 3} more classes' if len(differ) > 3 else ''
    return ', '.join(differ[:3]) + more


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


@contextmanager
def reading_scores(workdir: str) -> Iterator[dict]:
    """Yields what `--mode=evaluate` wrote. An error in the body means that the file is damaged.

    Raises:
        FileNotFoundError: nobody evaluated.
        InputError: the file is damaged.
    """
    with reading_json(os.path.join(workdir, SCORES_FILE), 'give --mode=evaluate again, or delete it') as scores:
        yield scores


def _differences(earlier: ConfigDict, config: ConfigDict, prefix: str = 'config'):
    for key in sorted(set(earlier) | set(config)):
        name, old, new = f'{prefix}.{key}', earlier.get(key), config.get(key)
        if isinstance(old, ConfigDict) and isinstance(new, ConfigDict):
            yield from _differences(old, new, name)
        elif old != new:
            yield f'{name} was {old!r}, is {new!r}'


def _lists_to_tuples(value):
    if isinstance(value, dict):
        return {key: _lists_to_tuples(child) for key, child in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value
