"""The modes of the command line: where each begins and what it needs."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

_WINDOWS = '--config.eval.window="(512,512)" processes the image in windows, which needs less memory'


class Mode(NamedTuple):
    """One of `--mode=`.

    Attributes:
        entry: 'module:function' of this package, imported when the mode is wanted. It takes the config and the workdir,
            and returns False if it leaves something undone.
        extra: of pyproject.toml, which it needs beside the core.
        flags: whose values it takes by name.
        needs_workdir: whether it works in the folder of a run.
        takes_weights: whether the weights of `init_from` take the place of a run.
        joins_processes: whether several processes are one run.
        less_memory: what to do when the device's memory is full.
    """

    entry: str
    extra: str = 'train'
    flags: tuple[str, ...] = ()
    needs_workdir: bool = True
    takes_weights: bool = False
    joins_processes: bool = False
    less_memory: str = 'smaller images or batches take less'

    def load(self) -> Callable:
        """Imports the function.

        Raises:
            ModuleNotFoundError: a package of the extra is missing.
        """
        module, _, function = self.entry.partition(':')
        return getattr(importlib.import_module(f'atonet_jax.{module}'), function)


MODES = {
    'train': Mode(
        'training.train:train',
        joins_processes=True,
        less_memory='a smaller --config.train.batch_size takes less, and so do --config.train.accumulation=2, '
        '--config.train.remat=true and, where decoded images lie on the device, --config.data.cache=none',
    ),
    'evaluate': Mode(
        'evaluation.evaluate:evaluate', takes_weights=True, joins_processes=True, less_memory=_WINDOWS
    ),
    'compare': Mode('evaluation.report.compare:compare', needs_workdir=False),  # takes runs in place of a config
    'benchmark': Mode('benchmark.benchmark:benchmark', takes_weights=True),
    'export': Mode('export:export', extra='export', flags=('force',), takes_weights=True),
    'predict': Mode('predict:predict', extra='video', takes_weights=True, less_memory=_WINDOWS),
    'check_data': Mode('check_data.check_data:check_data'),
    'prepare': Mode('prepare:prepare', needs_workdir=False),
    'serve': Mode('serve:serve', extra='serve', takes_weights=True),
}  # fmt: skip
