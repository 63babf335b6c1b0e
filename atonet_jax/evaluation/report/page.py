"""What all reports share: templates and the printing of values."""

import math
import os
import pathlib
import re
from typing import Any

import jinja2
from markupsafe import Markup, escape

from atonet_jax.process.files import write_text

NONE = '–'  # for a missing value


def write_page(path: str, template: str, **values: Any) -> None:
    """Renders a template of this folder into one file that needs no other files. Raises OSError if writing fails."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(percent=percent, difference=difference, breakable=breakable, rate=rate)
    templates.globals['NONE'] = NONE
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    write_text(path, templates.get_template(template).render(values))


def percent(share: float | None, digits: int = 2) -> str:
    """0.5 -> '50.00'."""
    return NONE if share is None or math.isnan(share) else f'{100 * share:.{digits}f}'


def rate(value: float | None) -> str:
    """Of things a second: 1234.5 -> '1234.5', 0.01234 -> '0.0123'."""
    if value is None:
        return NONE
    return f'{value:.1f}' if value >= 10 else f'{value:.3g}'


def difference(share: float | None, first: float | None) -> str:
    """A share minus the first one, in points: '+1.25'; '' if one is missing."""
    if share is None or first is None or math.isnan(share) or math.isnan(first):
        return ''
    points = f'{100 * (share - first):+.2f}'
    return '±0' if float(points) == 0 else points.replace('-', '−')


def breakable(key: str) -> Markup:
    """A setting's key, with places where the line may break."""
    return Markup(re.sub(r'([._])', r'\1<wbr>', str(escape(key))))
