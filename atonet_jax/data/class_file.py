"""The classes of a user's own data, from a small JSON or CSV file.

    name,color,value,ignore              [{"name": "road", "color": "#804080", "value": 7},
    road,#804080,7,                       {"name": "car", "color": [0, 0, 142], "value": 26},
    car,0 0 142,26,                       {"name": "van", "color": "#00008e", "value": 27, "class": "car"},
    ego vehicle,,1,true                   {"name": "ego vehicle", "value": 1, "ignore": true}]

A row describes one value of the label files. Train ids follow the order of the rows. A row with `class` is merged into
the class of that name; a row with `ignore` is left out. Without `value`, rows count from 0. Without `color`, a colour
is chosen for pictures. The value 255 is always ignored.
"""

import colorsys
import csv
import json
import pathlib
import re
from typing import NamedTuple

from atonet_jax.data.dataset import DataError
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL, ClassTable, RawLabel

_KEYS = ('name', 'color', 'value', 'class', 'ignore')
_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no', '')


def read_class_file(path: str, name: str) -> ClassTable:
    """The class table in a `.json` or `.csv` file.

    Args:
        path: of the file.
        name: of the table.

    Raises:
        DataError: the file is missing or is not a class file. The message names the row, counted from 1.
    """
    try:
        text = pathlib.Path(path).read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'not UTF-8'
        raise DataError(f'{path}: class file cannot be read ({reason}); config.data.folder.classes names it') from error
    rows = _json_rows(path, text) if path.lower().endswith('.json') else _csv_rows(path, text)
    if not rows:
        raise DataError(f'{path}: holds no classes; write a row a class with name, color and value')

    entries = []
    for number, row in enumerate(rows):
        try:
            entries.append(_entry(row, number, entries))
        except ValueError as error:
            raise DataError(f'{path}: row {number + 1}: {error}') from error
    names = list(dict.fromkeys(entry.name for entry in entries if entry.is_class))
    for number, (*_, class_name) in enumerate(entries, 1):
        if class_name not in (None, *names):
            fault = f'class {class_name!r} has no row of its own; add one, or correct the name'
            raise DataError(f'{path}: row {number}: {fault}')
    if not 2 <= len(names) < UNKNOWN_LABEL:
        raise DataError(
            f'{path}: the number of classes that are neither ignored nor merged into others is {len(names)}, and must '
            f'be from 2 to {UNKNOWN_LABEL - 1}; give the background, say, a class of its own'
        )
    spares = iter(_spare_colors(len(names)))
    given = {entry.name: entry.color for entry in reversed(entries) if entry.is_class}
    return ClassTable(
        name=name,
        class_names=tuple(names),
        class_colors=tuple(given[class_name] or next(spares) for class_name in names),
        raw_labels=tuple(
            RawLabel(row, value, color, IGNORE_LABEL if class_name is None else names.index(class_name))
            for row, value, color, class_name in entries
        ),
    )


class _Entry(NamedTuple):
    """A row of the file.

    Attributes:
        name: of the value.
        value: 0..255.
        color: RGB, or None.
        class_name: the class that the value belongs to; None if it is ignored.
    """

    name: str
    value: int
    color: tuple[int, int, int] | None
    class_name: str | None

    @property
    def is_class(self) -> bool:
        """Whether the class has the name of the row."""
        return self.class_name == self.name


def _entry(row: dict, number: int, earlier: list[_Entry]) -> _Entry:
    """Row `number`, counted from 0, after `earlier` ones. Raises ValueError, which says what is wrong with it."""
    unknown = set(row) - set(_KEYS)
    if unknown:
        raise ValueError(f'{sorted(unknown)[0]!r} is unknown; known are {", ".join(_KEYS)}')
    row = {key: value for key, value in row.items() if value not in (None, '')}
    name = row.get('name')
    if not isinstance(name, str):
        raise ValueError('has no name')
    value = _value(row.get('value', number))
    class_name = _text(row.get('class', name))
    if _flag(row.get('ignore', '')):
        class_name = None
    entry = _Entry(name, value, _color(row['color']) if 'color' in row else None, class_name)
    if not 0 <= value <= 255:
        raise ValueError(f'value {value} of {name!r} is not of 0..255')
    for other in earlier:
        if other.value == value:
            raise ValueError(f'{name!r} and {other.name!r} both have the value {value}; give each its own')
    if value == IGNORE_LABEL and class_name is not None:
        raise ValueError(f'value {IGNORE_LABEL} of {name!r} is always ignored; choose another')
    if entry.is_class and 'class' not in row and any(other.is_class and other.name == name for other in earlier):
        raise ValueError(f'{name!r} is there twice; give its second value "class": "{name}"')
    return entry


def _json_rows(path: str, text: str) -> list[dict]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f'{path}: not JSON (line {error.lineno}: {error.msg}); correct it') from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: must be a list of objects such as {{"name": "road", "color": "#804080", "value": 7}}')
    return rows


def _csv_rows(path: str, text: str) -> list[dict]:
    rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True, restkey='more columns than the first line'))
    if rows and 'name' not in rows[0]:
        raise DataError(f'{path}: its first line must name the columns: name,color,value')
    return [{key: value.strip() if isinstance(value, str) else value for key, value in row.items()} for row in rows]


def _value(value: str | int) -> int:
    text = str(value)
    if not re.fullmatch(r'-?\d+', text):
        raise ValueError(f'value is {value!r}; write a whole number of 0..255')
    return int(text)


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'class is {value!r}; write the name of another row')
    return value


def _flag(value: str | bool) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f'ignore is {value!r}; write true or false')
    return text in _TRUE


def _color(value: str | list) -> tuple[int, int, int]:
    if isinstance(value, str) and re.fullmatch('#[0-9a-fA-F]{6}', value):
        return tuple(bytes.fromhex(value[1:]))
    numbers = re.findall(r'-?\d+', value) if isinstance(value, str) else value
    try:
        red, green, blue = (int(number) for number in numbers)
        if [red, green, blue] != [float(number) for number in numbers]:
            raise ValueError  # parts of 255 are no colours
        return tuple(bytes((red, green, blue)))
    except (TypeError, ValueError):
        raise ValueError(f'color is {value!r}; write #rrggbb, or three numbers of 0..255') from None


def _spare_colors(count: int) -> list[tuple[int, int, int]]:
    """Distinct colours, hues a golden ratio of the circle apart."""
    golden = 0.618034
    shades = (colorsys.hsv_to_rgb(i * golden % 1, 0.5 + 0.4 * (i % 2), 0.95 - 0.15 * (i % 3)) for i in range(count))
    return [tuple(round(255 * channel) for channel in shade) for shade in shades]
