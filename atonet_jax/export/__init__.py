"""`--mode=export`: a trained network for other programs, loaded back and compared before the command says done."""

import importlib
import os
from types import ModuleType

from ml_collections import ConfigDict

from atonet_jax.errors import InputError
from atonet_jax.export import int8
from atonet_jax.export.model_card import is_model_card, model_card
from atonet_jax.export.replacing import clear_up_after_killed, replacing_export
from atonet_jax.extras import explain_missing_package
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.files import write_json
from atonet_jax.process.stopping import exit_on_sigterm
from atonet_jax.runs.network import trained_network
from atonet_jax.validation import validate


def export(config: ConfigDict, workdir: str, force: bool) -> str:
    """Writes the run in `workdir`, or the weights of `init_from`, as `config.export` says, and a model card beside it.

    What is written takes its place only once it was loaded back in its own runtime and gave the labels that
    `Segmenter` gives. An int8 export is instead scored beside the float one.

    Returns:
        The path of the file or folder.

    Raises:
        InputError: no run, checkpoint or weights; a path that is taken and not to be replaced; a package that the
            format needs is missing.
        ExportError: the export does not compute what the network does, or int8 loses too much.
        SystemExit: SIGTERM came. What was there already is as before.
    """
    mesh = create_mesh()
    validate(config)
    form = _module(config.export.format)
    precision = '_int8' if config.export.precision == 'int8' else ''  # so that neither replaces the other
    path = config.export.output or os.path.join(workdir, 'export', config.model.name + precision + form.ENDING)
    path = os.path.abspath(path)
    clear_up_after_killed(path)
    card_path = f'{path}.json'
    for taken in (path, card_path):
        if os.path.exists(taken) and not force:
            raise InputError(f'{taken}: is there already; give another --config.export.output, or --force')
    if os.path.commonpath((os.path.realpath(path), os.path.realpath(workdir))) == os.path.realpath(path):
        raise InputError(f'{path}: is the workdir, or holds it; give another --config.export.output')
    if os.path.isdir(path) and not is_model_card(card_path):
        raise InputError(f'{path}: is a folder that no export made; give another --config.export.output')
    if os.path.exists(card_path) and not is_model_card(card_path):
        raise InputError(
            f'{card_path}: is no model card, and the one of {path} would replace it; give another '
            '--config.export.output'
        )
    replaces = os.path.exists(path)
    trained = trained_network(config, workdir, mesh)
    card = model_card(trained, config, workdir)

    try:
        with exit_on_sigterm(), replacing_export(path) as unchecked:
            if config.export.precision == 'int8':
                # --force allows one thing at a time: to replace what is there does not allow it to become worse.
                figures = int8.write(unchecked, form, trained, config, workdir, any_loss=force and not replaces)
                card['int8'], result = int8.card(figures), str(figures)
            else:
                form.write(unchecked, trained, config)
                result = form.check(unchecked, trained, config)
            write_json(f'{unchecked}.json', card)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); give another config.export.output') from error
    print(f'{path}: {_size(path) / 1e6:.1f} MB; {result}')
    print(f'{card_path}: its model card')
    return path


def _module(name: str) -> ModuleType:
    """The module of a format. Each has ENDING, write(path, network, config), and check(path, network, config).

    Those that can be of int8 also have write_int8(path, network, config, images), which returns whether int8 is in the
    convolutions alone; load(path); and HAS_CAREFUL_INT8: whether write_int8 takes careful=True, for that form.
    """
    with explain_missing_package(f'config.export.format={name}', 'export'):
        return importlib.import_module(f'atonet_jax.export.{name}_format')


def _size(path: str) -> int:
    """Bytes of a file, or of all in a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
