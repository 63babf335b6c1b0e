"""Packages that only some modes need, and the line that is said where one is missing."""

import contextlib
from collections.abc import Iterator

from atonet_jax.errors import InputError

# The extras of pyproject.toml: what is imported of each. The core needs none of them.
EXTRAS = {
    'train': (
        'array_record',
        'jinja2',
        'markupsafe',
        'matplotlib',
        'tensorflow',
        'tensorflow_datasets',
    ),
    'export': ('onnx', 'onnxruntime', 'tensorflow'),
    'serve': ('anyio', 'starlette', 'uvicorn'),
    'video': ('cv2',),
}


@contextlib.contextmanager
def explain_missing_package(what: str, extra: str) -> Iterator[None]:
    """Turns the import error of a package that is not installed into one line with the command that installs it.

    Args:
        what: needs the package, such as '--mode=serve'.
        extra: is named where it holds the package, else another one that does.

    Raises:
        InputError: a package of an extra is missing. Of any other, the import error goes on.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        holders = [name for name in (extra, *EXTRAS) if package in EXTRAS[name]]
        if not holders:
            raise
        raise InputError(f"{what} needs {package}: pip install '.[{holders[0]}]' in the checkout") from error
