"""The figures of the papers' tables, which stand beside this file."""

import csv
import pathlib
from typing import Any

_TABLES = {
    'table1_cityscapes_test.csv': 'Table 1, Cityscapes test',
    'table2_camvid_test.csv': 'Table 2, CamVid test',
    'table3_architectures_cityscapes_val.csv': 'Table 3, Cityscapes val, centre crop',
    'own_papers_cityscapes_test.csv': 'its own paper, Cityscapes test',
}


def published_rows(size: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of `all_published_rows` for images of `size`, (height, width)."""
    return [
        {key: value for key, value in row.items() if key not in ('height', 'width')}
        for row in all_published_rows()
        if (row['height'], row['width']) == tuple(size)
    ]


def all_published_rows() -> list[dict[str, Any]]:
    """The figures of ATONet's paper, and those of networks that it lacks; None for an empty cell."""
    rows = []
    for name, title in _TABLES.items():
        with open(pathlib.Path(__file__).with_name(name), newline='') as file:
            for row in csv.DictReader(file):
                figures = {
                    key: float(row[key]) if row.get(key) else None for key in ('gflops', 'params_m', 'fps', 'miou')
                }
                size = {key: int(row[key]) for key in ('height', 'width')}
                rows.append({'table': title, 'method': row['method'], **size, **figures})
    return rows
