"""Numbers of PyTorch that are kept in tests/golden/, and how ours are compared with them.

Of an array the files hold its shape, its scale, a sample of its elements, and one sum of all of them with random signs,
which moves where any part of the array does. tests/make_goldens.py writes the files.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'
_SAMPLE = 400  # elements of an array that are kept


class Digest(NamedTuple):
    """What is kept of an array.

    Attributes:
        shape: of the array.
        scale: its range, or its largest absolute value where that is more.
        signed_sum: of all elements, each times its sign in `_signs`.
        sample: float32, the elements at `_positions`; all of a small array.
    """

    shape: tuple[int, ...]
    scale: float
    signed_sum: float
    sample: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> 'Digest':
        array = np.asarray(array)
        flat = array.ravel().astype(np.float64)
        scale = max(np.ptp(flat), np.abs(flat).max())
        sample = flat[_positions(flat.size)].astype(np.float32)
        return cls(array.shape, float(scale), float(flat @ _signs(flat.size)), sample)


def _positions(size: int) -> np.ndarray:
    if size <= _SAMPLE:
        return np.arange(size)
    return np.sort(np.random.default_rng(size).choice(size, _SAMPLE, replace=False))


def _signs(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 2, size) * 2.0 - 1


def assert_close(name: str, actual: np.ndarray, expected: 'np.ndarray | Digest', bound: float) -> float:
    """The largest difference is at most `bound` times the scale of what is expected; returns it in that unit."""
    actual = np.asarray(actual)
    if not isinstance(expected, Digest):
        expected = np.asarray(expected)
        assert actual.shape == expected.shape, f'{name}: {actual.shape}, not {expected.shape}'
        error = np.abs(actual - expected).max() / max(np.ptp(expected), np.abs(expected).max())
    else:
        ours = Digest.of(actual)
        assert ours.shape == expected.shape, f'{name}: {ours.shape}, not {expected.shape}'
        error = np.abs(ours.sample - expected.sample).max() / expected.scale
        # Errors of random signs add up to their size times the square root of their number.
        of_sum = abs(ours.signed_sum - expected.signed_sum) / expected.scale / np.sqrt(max(actual.size, 1))
        assert of_sum <= bound, f'{name}: the sum of all elements is off by {of_sum:.2e}'
    assert error <= bound, f'{name}: {error:.2e}'
    return float(error)


def write(name: str, cases: dict[str, dict[str, np.ndarray]], **more) -> None:
    """Writes <name>.json and <name>.npz with the digests of {case: {array: ...}}; `more` goes into the JSON file."""
    digests = {case: {key: Digest.of(array) for key, array in arrays.items()} for case, arrays in cases.items()}
    index = {
        case: {key: [list(digest.shape), digest.scale, digest.signed_sum] for key, digest in arrays.items()}
        for case, arrays in digests.items()
    }
    lines = [f'{json.dumps(key)}: {json.dumps(value)}' for key, value in (more | {'digests': index}).items()]
    (FOLDER / f'{name}.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    samples = {case: np.concatenate([d.sample for d in arrays.values()]) for case, arrays in digests.items()}
    np.savez_compressed(FOLDER / f'{name}.npz', **samples)


def read(name: str) -> tuple[dict[str, dict[str, Digest]], dict]:
    """({case: {array: digest}}, everything else in the JSON file)."""
    more = json.loads((FOLDER / f'{name}.json').read_text())
    cases = {}
    with np.load(FOLDER / f'{name}.npz') as samples:
        for case, index in more.pop('digests').items():
            sizes = [min(int(np.prod(shape)), _SAMPLE) for shape, _, _ in index.values()]
            parts = np.split(samples[case], np.cumsum(sizes)[:-1])
            cases[case] = {
                key: Digest(tuple(shape), scale, total, part)
                for (key, (shape, scale, total)), part in zip(index.items(), parts, strict=True)
            }
    return cases, more
