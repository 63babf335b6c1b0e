"""Files of weights as PyTorch writes them, for tests/golden/torch_files.npz and the tests here."""

import argparse
import os
import pathlib
import tempfile
import warnings
import zipfile

import numpy as np
import safetensors.torch
import torch

from atonet_jax.torch_files import write_state_dict
from tests.torch_file_cases import WRITTEN, arrays_to_write


def save_zip(saved, path):
    torch.save(saved, path)


def save_legacy(saved, path):
    torch.save(saved, path, _use_new_zipfile_serialization=False)


FORMATS = {'zip': save_zip, 'legacy': save_legacy}
FLOATS = {name: torch.linspace(-3, 3, 7).to(getattr(torch, name)) for name in ('float16', 'bfloat16', 'float64')}


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def views_of_one_storage():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        'whole': base, 'rows': base[1:3], 'steps': base[1:, 1::2], 'transposed': base.t(), 'one': base[3, 5],
        'none': base[4:], 'expanded': base[0].expand(3, 6), 'channels_last': torch.rand(2, 3, 4, 5).permute(0, 3, 1, 2),
    }  # fmt: skip


def parameters():
    saved = {'weight': torch.nn.Parameter(torch.rand(2, 3)), 'bias': torch.rand(3, requires_grad=True)}
    saved['weight'].note = 'an attribute'
    return saved


def integers():
    return {name: torch.tensor([[0], [1]], dtype=getattr(torch, name)) for name in ('uint8', 'int32', 'bool')}


def training_checkpoint(network):
    """What a training script saves around its weights."""
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    return {
        'args': argparse.Namespace(lr=0.1, device=torch.device('cpu')),
        'epoch': 3,
        'loss': torch.tensor(0.5),
        'best_miou': np.float64(0.7),
        'class_iou': np.array([0.6, 0.8]),
        'names': {'road', 'car'},
        'optimizer': optimizer.state_dict(),
        'scheduler': scheduler.state_dict(),
        'model': {'state_dict': network.state_dict()},
    }


def small_tensors():
    return {'weight': torch.arange(6.0).reshape(2, 3), 'half': torch.ones(2).half(), 'count': torch.tensor(3)}


class RunsCommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def holds_itself():
    saved = {}
    saved['model'] = saved
    return saved


def other_kinds():
    """{kind: a tensor of a kind that is not read}."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of what PyTorch calls deprecated or experimental
        return {
            'torch.ComplexFloatStorage': torch.zeros(2).to(torch.complex64),
            'torch._utils._rebuild_qtensor': torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
            'torch._utils._rebuild_sparse_tensor': torch.eye(2).to_sparse(),
            'torch._utils._rebuild_tensor_v3': torch.zeros(2).to(torch.float8_e4m3fn),
        }


def save_big_endian(tensors, path):
    """As a machine of the other byte order writes them."""
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    folder = pathlib.Path(path).stem
    records[f'{folder}/byteorder'] = b'big'
    for key, dtype in ((0, '>f4'), (1, '>u2')):
        records[f'{folder}/data/{key}'] = np.frombuffer(records[f'{folder}/data/{key}'], dtype).byteswap().tobytes()
    with zipfile.ZipFile(path, 'w') as archive:
        for name, record in records.items():
            archive.writestr(name, record)


def golden_files():
    """(files, arrays): {file: bytes}, and of those that are read {file: {name: array}}, as PyTorch loads them."""
    network = small_network()
    state = network.state_dict()
    readable = {
        'network': (state, state),
        'views': 2 * (views_of_one_storage(),),
        'parameters': 2 * (parameters(),),
        'numbers': (FLOATS | integers(), {name: tensor.float() for name, tensor in FLOATS.items()} | integers()),
        'small': (small_tensors(), small_tensors()),
    }
    trained = training_checkpoint(network)
    readable['checkpoint'] = trained, trained['model']['state_dict']
    refused = {
        'code': {'weight': torch.ones(2), 'epoch': RunsCommand('touch ran')},
        'whole_model': {'model': network, 'epoch': 3},
        'no_tensors': {'epoch': 3},
        'nothing': {},
        'list': [torch.ones(2)],
        'tensor': torch.ones(2),
        'unnamed': {0: torch.ones(2)},
        'holds_itself': holds_itself(),
    }
    files, arrays = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'weights.pth')

        def keep(name):
            files[name] = pathlib.Path(path).read_bytes()

        for form, save in FORMATS.items():
            for name, (saved, tensors) in readable.items():
                save(saved, path)
                keep(f'{name}.{form}')
                arrays[f'{name}.{form}'] = {key: tensor.detach().numpy() for key, tensor in tensors.items()}
            for name, saved in refused.items():
                save(saved, path)
                keep(f'{name}.{form}')
        for kind, tensor in other_kinds().items():
            torch.save({'weight': tensor}, path)
            keep(f'{kind}.zip')
        save_legacy({'weight': torch.ones(5)}, path)
        keep('five_ones.legacy')
        for keys in (('state_dict',), ('model_state_dict',), ('model',), ('net', 'module')):
            saved = state
            for key in keys:
                saved = {key: saved, 'epoch': 3}
            torch.save(saved, path)
            keep(f'{"-".join(keys)}.zip')
        save_big_endian({'a': torch.arange(3.0), 'b': torch.arange(3.0).bfloat16()}, path)
        keep('big_endian.zip')
        torch.save({'weight': torch.ones(2), 'epoch': 3, 'model': 'atonet', 'list': [torch.ones(2)]}, path)
        keep('beside.zip')
        with torch.jit.optimized_execution(False), warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # TorchScript itself is
            torch.jit.save(torch.jit.trace(network[0], torch.zeros(1, 3, 8, 8)), path)
        keep('torchscript.zip')
        path = os.path.join(folder, 'weights.safetensors')
        tensors = FLOATS | {'count': torch.tensor(7), 'empty': torch.zeros(0, 3)}
        safetensors.torch.save_file({f'module.{name}': tensor for name, tensor in tensors.items()}, path)
        keep('numbers.safetensors')
        expected = {name: tensor.float() if name in FLOATS else tensor for name, tensor in tensors.items()}
        arrays['numbers.safetensors'] = {name: tensor.numpy() for name, tensor in expected.items()}
        safetensors.torch.save_file(small_tensors(), path)
        keep('small.safetensors')
        safetensors.torch.save_file({'weight': torch.zeros(2).to(torch.float8_e4m3fn)}, path)
        keep('float8.safetensors')
        safetensors.torch.save_file({}, path)
        keep('no_tensors.safetensors')
        for name in WRITTEN:
            path = os.path.join(folder, name)
            write_state_dict(path, arrays_to_write(arrays['network.zip']))
            assert_pytorch_loads(path, arrays_to_write(arrays['network.zip']))
            keep(name)
    return files, arrays


def assert_pytorch_loads(path, arrays):
    loaded = safetensors.torch.load_file(path) if path.endswith('.safetensors') else torch.load(path, weights_only=True)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array, err_msg=name, strict=True)
