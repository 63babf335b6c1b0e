"""Where the config of a command comes from: a file of configs/ or a run's workdir, and overrides of its keys."""

import argparse
import difflib
import runpy

from ml_collections import ConfigDict, config_flags

from atonet_jax.config import flat_settings
from atonet_jax.errors import InputError
from atonet_jax.runs.workdir import holds_run, load_config

_OF_WEIGHTS = ('evaluate', 'predict', 'serve', 'export', 'benchmark')  # modes that take weights as they are


def define_config_flag(argv: list[str]) -> list[str]:
    """Defines the flag `config`, whose keys `--config.key=value` overrides, before absl parses the command line.

    The config is that of the file in `--config`, or else that which the run in `--workdir` was started with, or else
    that which suits the weights in `--config.init_from`, where nothing is trained. `--config=FILE:NETWORK` gives
    NETWORK to the file's `get_config`. With `--mode=compare`, whose runs have each their own, nothing is defined.

    Returns:
        argv without `--config`.

    Raises:
        InputError: no such file, a file without `get_config()`, no run in `--workdir`, or an unknown key.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--config')
    parser.add_argument('--workdir')
    parser.add_argument('--mode')
    known, rest = parser.parse_known_args(argv)
    if known.mode == 'compare':
        return argv
    if known.config is not None:
        config = _run_config_file(known.config, _value_of('model.name', rest))
    elif known.workdir is not None and _takes_weights(known.mode, known.workdir, rest):
        from atonet_jax.runs.network import config_of_file  # takes a moment to import

        config = config_of_file(_value_of('init_from', rest))
    elif known.workdir is not None:
        config = load_config(known.workdir)
    else:
        raise InputError('give --config=configs/NAME.py to begin a run, and --workdir=DIR to say where it lives')
    for argument in rest:
        if argument.startswith('--config.'):
            _check_key(config, argument.removeprefix('--config.').partition('=')[0])
    config_flags.DEFINE_config_dict('config', config, sys_argv=rest)
    kept = {'workdir': known.workdir, 'mode': known.mode}
    return [*rest, *(f'--{name}={value}' for name, value in kept.items() if value is not None)]


def _takes_weights(mode: str, workdir: str, arguments: list[str]) -> bool:
    return mode in _OF_WEIGHTS and not holds_run(workdir) and _value_of('init_from', arguments) != ''


def _value_of(key: str, arguments: list[str]) -> str:
    """What `--config.KEY=VALUE` says; nothing where it is not given."""
    prefix = f'--config.{key}='
    return next((text.removeprefix(prefix) for text in arguments if text.startswith(prefix)), '')


def _run_config_file(argument: str, chosen: str) -> ConfigDict:
    """The config of FILE or FILE:NETWORK; `chosen`, of `--config.model.name`, is another way to name the network."""
    path, _, network = argument.partition(':')
    if network and chosen and network != chosen:
        raise InputError(f'--config={argument}: and --config.model.name={chosen} name two networks; give one')
    network = network or chosen
    try:
        return runpy.run_path(path)['get_config'](*([network] if network else []))
    except FileNotFoundError as error:
        raise InputError(f'--config={path}: no such file') from error
    except (KeyError, AttributeError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise InputError(f'--config={path}: sets or lacks a name ({reason}); it must define get_config()') from error
    except TypeError as error:
        raise InputError(f'--config={path}: get_config() takes no network ({error}); leave out :{network}') from error


def _check_key(config: ConfigDict, key: str) -> None:
    keys = list(flat_settings(config))
    if key not in keys:
        alike = difflib.get_close_matches(key, keys, n=3) or keys
        raise InputError(f'--config.{key}: there is no such setting; there is {", ".join(alike)}')
