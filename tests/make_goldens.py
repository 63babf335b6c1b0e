"""Writes tests/golden/ from PyTorch. By hand, where something new is compared:

python -m pip install -r requirements-parity.txt
python -m tests.make_goldens
"""

import os
import sys

# As the tests: before JAX is imported. TensorFlow and PyTorch never meet in one process.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.modules['tensorflow'] = None

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tests import golden_files, torch_reference  # noqa: E402
from tests.parity import saved_files, torch_side  # noqa: E402
from tests.parity_cases import TINY  # noqa: E402


def shapes_of(*args, **options):
    """[[name, shape]] of PyTorch's network, in its order."""
    return [[name, list(t.shape)] for name, t in torch_reference.ATONet(*args, **options).state_dict().items()]


def main():
    golden_files.FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)  # so that sums are taken in one order
    golden_files.write(
        'atonet',
        {case: compute() for case, compute in torch_side.CASES.items()},
        source=f'PyTorch {torch.__version__.partition("+")[0]}, float32 on a CPU: tests/torch_reference.py',
        names={'tiny': shapes_of(5, **TINY), 'full': shapes_of(19)},
    )
    settled = np.concatenate([array.ravel() for array in torch_side.settled().values()])
    np.savez_compressed(golden_files.FOLDER / 'atonet_settled.npz', weights=settled.astype(np.float16))
    files, arrays = saved_files.golden_files()
    kept = {f'file/{name}': np.frombuffer(data, np.uint8) for name, data in files.items()}
    kept |= {f'array/{file}/{name}': array for file, named in arrays.items() for name, array in named.items()}
    np.savez_compressed(golden_files.FOLDER / 'torch_files.npz', **kept)


if __name__ == '__main__':
    main()
