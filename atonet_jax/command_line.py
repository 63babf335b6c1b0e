"""Where the config of a command comes from: a file of configs/ or a run's workdir, and overrides of its keys."""

import argparse
import ast
import difflib
import inspect
import os
import runpy
import traceback
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from atonet_jax.config import default_config, flat_settings
from atonet_jax.errors import InputError
from atonet_jax.modes import MODES
from atonet_jax.runs.workdir import holds_run, load_config


def read_config(argv: list[str]) -> tuple[list[str], ConfigDict | None]:
    """Takes the config and its changes, `--config.key=value`, from the command line.

    The config is that of the file in `--config`, or else that which the run in `--workdir` was started with, or else
    that which suits the weights in `--config.init_from`, where nothing is trained. `--config=FILE:NETWORK` gives
    NETWORK to the file's `get_config`.

    Returns:
        The other arguments, and the config; None with `--mode=compare`, whose runs have each their own.

    Raises:
        InputError: no such file, a file without a `get_config()` that returns a config, no run in `--workdir`, an
            unknown key, or no value.
    """
    argv = _joined(_with_flag_files(argv))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument('--config')
    parser.add_argument('--workdir')
    parser.add_argument('--mode')
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f'{error.argument_name}: has no value; give {error.argument_name}=VALUE') from error
    # An empty one, as of a variable of the shell that is not set, would be the folder that the command is given in.
    known.workdir = os.path.expanduser(known.workdir) if known.workdir else None
    if known.mode == 'compare':
        return argv, None
    if known.config is not None:
        config = _run_config_file(known.config, _value_of('model.name', rest))
    elif known.workdir is not None and _takes_weights(known.mode, known.workdir, rest):
        from atonet_jax.runs.network import config_of_file  # takes a moment to import

        config = config_of_file(os.path.expanduser(_value_of('init_from', rest)))
    elif known.workdir is not None:
        config = load_config(known.workdir)
    else:
        raise InputError('give --config=configs/NAME.py to begin a run, and --workdir=DIR to say where it lives')
    rest = _changed(config, rest)
    kept = {'workdir': known.workdir, 'mode': known.mode}
    return [*rest, *(f'--{name}={value}' for name, value in kept.items() if value is not None)], config


def _takes_weights(mode: str | None, workdir: str, arguments: list[str]) -> bool:
    takes = mode in MODES and MODES[mode].takes_weights
    return takes and not holds_run(workdir) and _value_of('init_from', arguments) != ''


def _value_of(key: str, arguments: list[str]) -> str:
    """What the last `--config.KEY=VALUE` says; nothing where there is none."""
    prefix = f'--config.{key}='
    return next((text.removeprefix(prefix) for text in reversed(arguments) if text.startswith(prefix)), '')


def _run_config_file(argument: str, chosen: str) -> ConfigDict:
    """The config of FILE or FILE:NETWORK; `chosen`, of `--config.model.name`, is another way to name the network."""
    path, _, network = argument.partition(':')
    path = os.path.expanduser(path)
    if network and chosen and network != chosen:
        raise InputError(f'--config={argument}: and --config.model.name={chosen} name two networks; give one')
    network = network or chosen
    if not os.path.isfile(path):
        reason = 'is a folder; name a file in it' if os.path.isdir(path) else 'no such file'
        raise InputError(f'--config={path}: {reason}')
    if not path.endswith('.py'):
        raise InputError(
            f'--config={path}: is no Python file such as those of configs/; to use a run give its --workdir alone'
        )
    try:
        get_config = runpy.run_path(path)['get_config']
        if network and not inspect.signature(get_config).parameters:
            raise InputError(f'--config={path}: get_config() takes no network; leave out :{network}')
        config = get_config(*([network] if network else []))
    except InputError:
        raise
    except (KeyError, AttributeError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise InputError(
            f'--config={path}: has an unknown or missing name ({reason}); the file must define get_config()'
        ) from error
    except Exception as error:  # whatever a Python file can raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        reason = str(error).partition('\n')[0]
        if isinstance(error, SyntaxError):
            lines, reason = [error.lineno], error.msg
        where = f'line {lines[-1]}: ' if lines else ''
        raise InputError(f'--config={path}: {where}{type(error).__name__}: {reason}; mend the file') from error
    _check_settings(config, path)
    return config


def _check_settings(config: Any, path: str) -> None:
    """What a file can make of a config that validation.py would not expect. It looks at the options of the network."""
    try:
        defaults = flat_settings(default_config(config.model.name))
    except (AttributeError, TypeError) as error:
        raise InputError(
            f'--config={path}: get_config() must return what default_config(network) made, with changes, not '
            f'{type(config).__name__}'
        ) from error
    given = flat_settings(config)
    for key in [key for key in (*defaults, *given) if not key.startswith('model.')]:
        if key not in given:
            raise InputError(f'--config={path}: config.{key} is missing; change settings one by one, or by update()')
        if key not in defaults:
            raise InputError(f'--config={path}: config.{key}: there is no such setting')
        if given[key] is None:
            raise InputError(f'--config={path}: config.{key} is None; the default is {defaults[key]!r}')


def _with_flag_files(argv: list[str]) -> list[str]:
    """Puts the flags of the files in `--flagfile` in its place, so that `--config` may be among them."""
    try:
        return flags.FLAGS.read_flags_from_files(argv, force_gnu=True)
    except flags.Error as error:
        reason = str(error).removeprefix('ERROR:: ').splitlines()[0]
        raise InputError(f'--flagfile: {reason}; give --flagfile=FILE, a text file with a flag a line') from error


def _joined(argv: list[str]) -> list[str]:
    """Makes `--config.key=value` of `--config.key value`."""
    joined = []
    for argument in argv:
        if joined and joined[-1].startswith('--config.') and '=' not in joined[-1] and not argument.startswith('--'):
            joined[-1] += f'={argument}'
        else:
            joined.append(argument)
    return joined


def _changed(config: ConfigDict, arguments: list[str]) -> list[str]:
    """Changes the config as the settings among `arguments` say, and returns the others. The last of a key counts.

    Raises:
        InputError: no such key, no value, or a value of another type.
    """
    rest, settings = [], {}
    for argument in arguments:
        if not argument.startswith('--config.'):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix('--config.').partition('=')
        _check_key(config, key)
        default = flat_settings(config)[key]
        if not equals and not isinstance(default, bool):
            raise InputError(f'--config.{key}: has no value; give --config.{key}=VALUE')
        settings[key] = _value(key, text if equals else 'true', default)
    config.update_from_flattened_dict(settings)
    return rest


def _value(key: str, text: str, default: Any) -> Any:
    parsers = {int: flags.IntegerParser, float: flags.FloatParser, bool: flags.BooleanParser}
    wanted = {int: 'a whole number', float: 'a number', bool: 'true or false'}
    kind = type(default)
    if kind is tuple:
        return _tuple(text)
    if kind not in parsers:
        return text
    try:
        return parsers[kind]().parse(text)
    except ValueError as error:
        raise InputError(f'config.{key}={text}: must be {wanted[kind]}') from error


def _tuple(text: str) -> tuple[Any, ...]:
    """As Python writes it, or one value alone. Words may be given without quotes: labels,overlay."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        words = text.strip().strip('()[]').split(',')
        return tuple(word.strip(' \'"') for word in words if word.strip())
    return value if isinstance(value, tuple) else (value,)


def _check_key(config: ConfigDict, key: str) -> None:
    keys = list(flat_settings(config))
    if key not in keys:
        alike = difflib.get_close_matches(key, keys, n=3) or keys
        raise InputError(f'--config.{key}: there is no such setting; there is {", ".join(alike)}')
