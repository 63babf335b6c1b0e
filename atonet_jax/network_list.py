"""`--networks`: every network with its size, its cost, its licence and whether public weights exist."""

from typing import NamedTuple

from atonet_jax.models import create_model, distinct_networks, network
from atonet_jax.models.counts import count_macs, count_parameters

_SIZE = 512, 1024  # of an image, where nothing is published
_HEADINGS = ('network', 'parameters', 'GMACs', 'at', 'licence', 'public weights')
_EXPLANATION = """
parameters, GMACs: of inference with 19 classes; multiply-accumulates of the convolutions of one image.
licence: of the code that published the network. This package holds none of it; its own code is Apache-2.0.
public weights: for which data, and whose. This package holds none; they may have a licence of their own.
Names in brackets mean the same network. Sources, measured times, what published figures mean: docs/networks.md."""


class Row(NamedTuple):
    """One network.

    Attributes:
        name: that it is registered by.
        others: more names of it.
        parameters: of inference with 19 classes.
        size: (height, width) of the image that `macs` is for.
        macs: multiply-accumulates of the convolutions.
        license: as in `Published`.
        weights: as in `Published`.
    """

    name: str
    others: tuple[str, ...]
    parameters: int
    size: tuple[int, int]
    macs: int
    license: str
    weights: str


def list_networks() -> list[Row]:
    """All registered networks. What their records do not say is counted, without compiling."""
    rows = []
    for name, others in distinct_networks().items():
        model = create_model(name, 19)
        published = network(model).published
        size, macs = published.macs or (_SIZE, None)
        rows.append(
            Row(
                name,
                others,
                published.parameters or count_parameters(model)['parameters'],
                size,
                macs or count_macs(model, size),
                published.license,
                published.weights,
            )
        )
    return rows


def network_table() -> str:
    """`list_networks` as a table for the screen."""
    rows = [_HEADINGS]
    for row in list_networks():
        others = f' ({", ".join(row.others)})' if row.others else ''
        size = f'{row.size[0]}x{row.size[1]}'
        rows.append(
            (
                row.name + others,
                f'{row.parameters:,}',
                f'{row.macs / 1e9:.2f}',
                size,
                row.license or 'not known',
                row.weights or '-',
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for cells in rows:
        name, parameters, macs, *texts = (
            cell.rjust(width) if i in (1, 2) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths))
        )
        lines.append('  '.join((name, parameters, macs, *texts)).rstrip())
    return '\n'.join([*lines, _EXPLANATION])
