"""What a workdir carries beside its checkpoints: config, class table and metrics. Every mode but train starts from it.

    config.json         every setting of the run
    class_table.json    the classes that it predicts
    environment.json    when, on what and with which code training was started, each time
    metrics.jsonl       a line of figures every few steps, and one an evaluation
    checkpoints/        the training state (checkpoint.py)
    unusable/           checkpoints that could not be read, kept for you to look at
    lock                held by the process that trains here
    tensorboard/        the figures again, and pictures
    report.html         what the last evaluation during training found, and the run so far
    evaluation/         scores, pictures and report of `--mode=evaluate`
    benchmark/          figures of `--mode=benchmark`
    export/             files of `--mode=export`
"""

import fcntl
import json
import logging
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ml_collections import ConfigDict

from atonet_jax.config import default_config
from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import InputError

_log = logging.getLogger(__name__)

CONFIG_FILE = 'config.json'
CLASS_TABLE_FILE = 'class_table.json'
ENVIRONMENT_FILE = 'environment.json'
METRICS_FILE = 'metrics.jsonl'
REPORT_FILE = 'report.html'
LOCK_FILE = 'lock'
# These change no parameter's shape.
_FREE_MODEL_KEYS = ('config.model.dtype ', 'config.model.pretrained_backbone ')
_STATE_KEYS = ('config.optimizer.name ', 'config.optimizer.ema_decay ')  # what a training state holds depends on them


def load_config(workdir: str) -> ConfigDict:
    """The config that a run was started with.

    Raises:
        InputError: `workdir` holds no run, or its file is damaged.
    """
    with _run_file(workdir, CONFIG_FILE) as stored:
        if 'model' not in stored:  # or it would be taken for a run with all defaults
            raise KeyError('model')
        config = default_config(stored['model']['name'])  # for settings that are newer than the run
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
    """The content of a JSON file that every run has; whoever finds it other than expected may say so by any error."""
    path = os.path.join(workdir, name)
    try:
        with open(path, encoding='utf-8') as file:
            yield json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f'{path}: no such file; name the --workdir of a run, or train first') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f'{path}: damaged ({error!r}); copy it from a run with the same settings') from error


def make_folder(path: str, setting: str = '--workdir') -> None:
    """Makes a folder, and those it lies in, where missing; `setting` says where it shall be.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another {setting}') from error


@contextmanager
def lock(workdir: str) -> Iterator[None]:
    """Keeps every other run out of `workdir`, which is made where missing. Ends with the process, however that ends.

    Raises:
        InputError: another process trains there, or nothing can be written there.
    """
    path = os.path.join(workdir, LOCK_FILE)
    try:
        os.makedirs(workdir, exist_ok=True)
        file = open(path, 'a+')
    except OSError as error:
        raise InputError(f'{workdir}: cannot be written ({error.strerror}); choose another --workdir') from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InputError(
                f'{workdir}: {file.read().strip() or "another process"} trains there; wait for it, end it, or give '
                'another --workdir'
            ) from error
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        yield


def claim(workdir: str, config: ConfigDict, class_table: ClassTable) -> list[str]:
    """Makes `workdir` the place of this run, or finds that it is already.

    Returns:
        What the config has changed since the run began, a line a key; empty for a new run.

    Raises:
        InputError: the workdir is of a run with another network, other classes, or another kind of training state.
    """
    changes = changes_since(workdir, config, class_table) if holds_run(workdir) else []
    state = [change for change in changes if change.startswith(_STATE_KEYS)]
    if state:
        raise InputError(f'{workdir}: its training state does not fit ({"; ".join(state)}); give a new --workdir')
    os.makedirs(workdir, exist_ok=True)
    write_json(os.path.join(workdir, CLASS_TABLE_FILE), class_table.to_dict())
    write_json(os.path.join(workdir, CONFIG_FILE), config.to_dict())
    return changes


def holds_run(workdir: str) -> bool:
    return os.path.exists(os.path.join(workdir, CONFIG_FILE))


def changes_since(workdir: str, config: ConfigDict, class_table: ClassTable) -> list[str]:
    """What `config` has changed since the run in `workdir` began, a line a key.

    Raises:
        InputError: there is no run, or it is one of another network, of other classes, or from other weights.
    """
    changes = list(_differences(load_config(workdir), config))
    if any(change.startswith('config.init_from ') for change in changes):
        raise InputError(
            f'config.init_from={config.init_from}: {workdir} holds a run that has begun already; give a new --workdir '
            'to use these weights, or leave config.init_from as it was'
        )
    network = [c for c in changes if c.startswith('config.model.') and not c.startswith(_FREE_MODEL_KEYS)]
    classes = load_class_table(workdir)
    if classes.class_names != class_table.class_names:
        network.append(f'it has the {classes.num_classes} classes of {classes.name}, not the {class_table.num_classes} '
                       f'of {class_table.name}')  # fmt: skip
    if network:
        raise InputError(
            f'{workdir}: holds a run of another network ({"; ".join(network)}); '
            'give a new --workdir, or the settings of that run'
        )
    return changes


def write_text(path: str, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = f'{path}.{os.getpid()}'
    with open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:  # paths may be of any bytes
        file.write(text)
    os.replace(temporary, path)


def write_json(path: str, values: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + '\n')


def record_start(workdir: str, step: int, environment: dict) -> None:
    """Adds a start of training to `environment.json`: after which step, and `environment.describe()`."""
    starts = [*read_starts(workdir), {'step': step} | environment]
    write_json(os.path.join(workdir, ENVIRONMENT_FILE), {'starts': starts})


def read_starts(workdir: str) -> list[dict]:
    """What `record_start` recorded, the first start first; none where there is no file."""
    try:
        return json.loads(pathlib.Path(workdir, ENVIRONMENT_FILE).read_text())['starts']
    except FileNotFoundError:
        return []


class MetricsLog:
    """`metrics.jsonl`: appends, and forgets what a resumed run is about to do again."""

    def __init__(self, workdir: str, resumed_step: int):
        """Keeps the lines up to `resumed_step` alone."""
        self._path = os.path.join(workdir, METRICS_FILE)
        kept = [line for line in read_metrics(workdir) if line['step'] <= resumed_step]
        write_text(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
        self._file = open(self._path, 'a', buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({'step': step} | values) + '\n')

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: str) -> list[dict]:
    """The lines of `metrics.jsonl`, without one that a killed run left half written; none where there is no file.

    Any other line that is damaged is left out and said.
    """
    path, lines = os.path.join(workdir, METRICS_FILE), []
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                    if 'step' not in line:
                        raise KeyError('step')
                    lines.append(line)
                except (ValueError, TypeError, KeyError):
                    if text.endswith('\n'):
                        _log.warning('%s: line %d is damaged and left out', path, number)
    except FileNotFoundError:
        pass
    return lines


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
