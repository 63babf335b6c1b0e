"""Weights of PyTorch files are read and written as PyTorch does it; bad files are refused in a line and run nothing."""

import argparse
import errno
import io
import os
import pickle
import pickletools
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from atonet_jax.errors import InputError
from atonet_jax.torch_files import read_state_dict, write_state_dict


def save_zip(saved, path):
    torch.save(saved, path)


def save_legacy(saved, path):
    torch.save(saved, path, _use_new_zipfile_serialization=False)


both_formats = pytest.mark.parametrize('save', [save_zip, save_legacy])


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


def read_error(path):
    with pytest.raises(InputError) as raised:
        read_state_dict(str(path))
    assert str(raised.value).startswith(f'{path}: ') and '\n' not in str(raised.value)
    return str(raised.value)


def assert_same(arrays, tensors):
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().numpy()
        assert arrays[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(arrays[name], expected, err_msg=name, strict=True)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


@both_formats
def test_state_dict_of_a_network_is_read(network, path, save):
    save(network.state_dict(), path)
    arrays = read_state_dict(path)
    assert_same(arrays, network.state_dict())
    assert arrays['1.num_batches_tracked'].shape == () and arrays['1.num_batches_tracked'].dtype == np.int64


@both_formats
def test_views_of_one_storage_keep_their_offsets_and_strides(path, save):
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        'whole': base, 'rows': base[1:3], 'steps': base[1:, 1::2], 'transposed': base.t(), 'one': base[3, 5],
        'none': base[4:], 'expanded': base[0].expand(3, 6), 'channels_last': torch.rand(2, 3, 4, 5).permute(0, 3, 1, 2),
    }  # fmt: skip
    save(views, path)
    arrays = read_state_dict(path)
    assert_same(arrays, views)
    assert np.shares_memory(arrays['whole'], arrays['rows'])


@both_formats
def test_parameters_are_read_as_tensors(path, save):
    saved = {'weight': torch.nn.Parameter(torch.rand(2, 3)), 'bias': torch.rand(3, requires_grad=True)}
    saved['weight'].note = 'an attribute'
    save(saved, path)
    assert_same(read_state_dict(path), saved)


FLOATS = {name: torch.linspace(-3, 3, 7).to(getattr(torch, name)) for name in ('float16', 'bfloat16', 'float64')}


@both_formats
def test_floats_become_float32_and_other_numbers_stay(path, save):
    others = {name: torch.tensor([[0], [1]], dtype=getattr(torch, name)) for name in ('uint8', 'int32', 'bool')}
    save(FLOATS | others, path)
    assert_same(read_state_dict(path), {name: tensor.float() for name, tensor in FLOATS.items()} | others)


def test_safetensors_are_read_with_the_same_rules(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    tensors = FLOATS | {'count': torch.tensor(7), 'empty': torch.zeros(0, 3)}
    safetensors.torch.save_file({f'module.{name}': tensor for name, tensor in tensors.items()}, path)
    arrays = read_state_dict(path)
    expected = {name: tensor.float() if name in FLOATS else tensor for name, tensor in tensors.items()}
    assert_same(arrays, {name: expected[name] for name in arrays})
    assert set(arrays) == set(tensors)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_numpy_archives_are_read_with_the_same_rules(tmp_path, save):
    path = str(tmp_path / 'weights.npz')
    save(path, **{'module.a': np.arange(6.0).reshape(2, 3), 'module.n': np.int64(3), 'module.h': np.float16([1, 2])})
    arrays = read_state_dict(path)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        'a': ((2, 3), 'float32'), 'n': ((), 'int64'), 'h': ((2,), 'float32')
    }  # fmt: skip
    np.testing.assert_array_equal(arrays['a'], np.arange(6.0).reshape(2, 3))
    assert not any(array.flags.writeable for array in arrays.values())

    data = open(path, 'rb').read()
    for damaged in (data[:-30], data[: len(data) // 3], data[:150] + b'xxxxxxxx' + data[158:]):
        with open(path, 'wb') as file:
            file.write(damaged)
        assert 'damaged or cut short' in read_error(path)


def test_numpy_archive_of_objects_is_refused(tmp_path):
    path = str(tmp_path / 'weights.npz')
    np.savez(path, a=np.array([{}, []], object))
    assert 'kind of tensor that is not read here (a of Python objects)' in read_error(path)
    np.savez(path, a=np.array(['text']))
    assert 'kind of tensor that is not read here (a of <U4)' in read_error(path)


def test_weights_of_a_big_endian_machine_are_read(path):
    torch.save({'a': torch.arange(3.0), 'b': torch.arange(3.0).bfloat16()}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records['weights/byteorder'] = b'big'
    for key, dtype in ((0, '>f4'), (1, '>u2')):
        records[f'weights/data/{key}'] = np.frombuffer(records[f'weights/data/{key}'], dtype).byteswap().tobytes()
    with zipfile.ZipFile(path, 'w') as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    assert_same(read_state_dict(path), {'a': torch.arange(3.0), 'b': torch.arange(3.0)})


@both_formats
def test_checkpoint_of_a_training_script_gives_its_weights_alone(network, path, save):
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    checkpoint = {
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
    save(checkpoint, path)
    assert_same(read_state_dict(path), network.state_dict())


@pytest.mark.parametrize('keys', [('state_dict',), ('model_state_dict',), ('model',), ('net', 'module')])
def test_wrapped_state_dict_is_found(network, path, keys):
    saved = network.state_dict()
    for key in keys:
        saved = {key: saved, 'epoch': 3}
    torch.save(saved, path)
    assert_same(read_state_dict(path), network.state_dict())


def test_entries_beside_tensors_that_are_none_are_left_out(path):
    torch.save({'weight': torch.ones(2), 'epoch': 3, 'model': 'atonet', 'list': [torch.ones(2)]}, path)
    assert list(read_state_dict(path)) == ['weight']


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['module.a.weight', 'module.b'], ['a.weight', 'b']),
        (['module._orig_mod.model.a', 'module._orig_mod.model.b'], ['a', 'b']),
        (['module.a', 'b'], ['module.a', 'b']),
    ],
)
def test_prefixes_that_all_names_share_are_stripped(path, names, expected):
    torch.save({name: torch.ones(1) for name in names}, path)
    assert list(read_state_dict(path)) == expected


class RunsCommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def save_pickle(saved, path):
    with open(path, 'wb') as file:
        pickle.dump(saved, file)


def load_pickle(path):
    with open(path, 'rb') as file:
        return pickle.load(file)


def load_with_torch(path):
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ('save', 'load'), [(save_zip, load_with_torch), (save_legacy, load_with_torch), (save_pickle, load_pickle)]
)
def test_code_in_a_file_is_named_and_not_run(tmp_path, path, save, load):
    marker = tmp_path / 'marker'
    save({'weight': torch.ones(2), 'epoch': RunsCommand(f'touch {marker}')}, path)
    if save is save_pickle:
        save(RunsCommand(f'touch {marker}'), path)
    assert 'would run posix.system when opened; nothing was run; ' in read_error(path)
    assert not marker.exists()
    load(path)
    assert marker.exists()  # so the file is one that does harm


@both_formats
def test_whole_model_is_refused_with_the_way_to_save_its_weights(network, path, save):
    save({'model': network, 'epoch': 3}, path)
    message = read_error(path)
    assert 'would run torch.nn.modules.container.Sequential when opened; nothing was run' in message
    assert message.endswith('it holds a whole model: save model.state_dict() instead')


@pytest.mark.parametrize(
    ('tensor', 'kind'),
    [
        (lambda: torch.zeros(2).to(torch.complex64), 'torch.ComplexFloatStorage'),
        (lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), 'torch._utils._rebuild_qtensor'),
        (lambda: torch.eye(2).to_sparse(), 'torch._utils._rebuild_sparse_tensor'),
        (lambda: torch.zeros(2).to(torch.float8_e4m3fn), 'torch._utils._rebuild_tensor_v3'),
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_other_kinds_of_tensors_are_named(path, tensor, kind):
    torch.save({'weight': tensor()}, path)
    assert f'a kind of tensor that is not read here ({kind})' in read_error(path)


def test_dtype_that_only_safetensors_has_is_named(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    safetensors.torch.save_file({'weight': torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    assert 'a kind of tensor that is not read here (F8_E4M3)' in read_error(path)


@pytest.mark.parametrize('saved', [{}, {'epoch': 3}, [torch.ones(2)], torch.ones(2), {0: torch.ones(2)}])
def test_file_without_named_tensors_is_told(path, saved):
    torch.save(saved, path)
    assert 'holds no named tensors' in read_error(path)


def test_safetensors_without_tensors_is_told(tmp_path):
    path = str(tmp_path / 'weights.safetensors')
    safetensors.torch.save_file({}, path)
    assert 'holds no tensors' in read_error(path)


def test_missing_file_and_folder_are_told(tmp_path):
    assert 'cannot be read (No such file or directory); name a file of weights' in read_error(tmp_path / 'no.pth')
    assert 'cannot be read (Is a directory)' in read_error(tmp_path)


def test_empty_file_is_told(path):
    open(path, 'w').close()
    assert 'empty; download or copy it again' in read_error(path)


def test_torchscript_is_refused_with_the_way_to_save_its_weights(network, path):
    with torch.jit.optimized_execution(False):
        torch.jit.save(torch.jit.trace(network[0], torch.zeros(1, 3, 8, 8)), path)
    assert 'a TorchScript archive; save torch.jit.load(file).state_dict()' in read_error(path)


def test_tar_of_old_pytorch_is_refused_with_what_to_do(path):
    with tarfile.open(path, 'w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert 'the tar format of PyTorch before 0.1.10; load it with PyTorch and save it again' in read_error(path)


def test_bare_pickle_is_refused(path):
    save_pickle({'weight': [1.0, 2.0]}, path)
    assert 'a pickle that torch.save did not write' in read_error(path)


def test_files_of_other_kinds_are_refused(path):
    def write_text():
        with open(path, 'w') as file:
            file.write('version https://git-lfs.github.com/spec/v1\n')

    def write_other_zip():
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('notes.txt', 'none')

    for write in (write_text, write_other_zip, lambda: PIL.Image.new('RGB', (4, 4)).save(path, 'PNG')):
        write()
        assert 'not a file of PyTorch weights' in read_error(path)


def small_file(tmp_path, kind):
    path = str(tmp_path / f'weights.{"safetensors" if kind == "safetensors" else "pth"}')
    tensors = {'weight': torch.arange(6.0).reshape(2, 3), 'half': torch.ones(2).half(), 'count': torch.tensor(3)}
    {'zip': save_zip, 'legacy': save_legacy, 'safetensors': safetensors.torch.save_file}[kind](tensors, path)
    return path


file_kinds = pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])


@file_kinds
def test_file_cut_short_is_told(tmp_path, kind):
    path = small_file(tmp_path, kind)
    size = os.path.getsize(path)
    for length in (size - 1, size // 2, 20, 5):
        os.truncate(path, length)
        assert 'damaged or cut short (' in read_error(path)


@file_kinds
def test_damaged_byte_gives_arrays_or_one_line(tmp_path, kind):
    path = small_file(tmp_path, kind)
    with open(path, 'rb') as file:
        whole = file.read()
    rng = np.random.default_rng(0)
    told = 0
    for position in rng.integers(len(whole), size=150):
        damaged = bytearray(whole)
        damaged[position] ^= rng.integers(1, 256)
        with open(path, 'wb') as file:
            file.write(damaged)
        try:
            read_state_dict(path)
        except InputError as error:
            told += '\n' not in str(error)
    assert told > 20


def test_tensor_beyond_its_storage_is_not_read(path):
    save_legacy({'weight': torch.ones(5)}, path)
    with open(path, 'rb') as file:
        data = file.read()
    shape = pickle.BININT1 + b'\5' + pickle.TUPLE1
    assert data.count(shape) == 1
    with open(path, 'wb') as file:
        file.write(data.replace(shape, pickle.BININT1 + b'\6' + pickle.TUPLE1))
    assert 'damaged or cut short (a tensor reaches beyond its storage)' in read_error(path)


def test_dictionary_that_holds_itself_does_not_hang(path):
    saved = {}
    saved['model'] = saved
    torch.save(saved, path)
    assert 'holds no named tensors' in read_error(path)


def test_huge_memo_index_takes_no_memory(path):
    with open(path, 'wb') as file:
        file.write(pickle.PROTO + b'\2' + pickle.NONE + pickle.LONG_BINPUT + b'\xff' * 4 + pickle.STOP)
    assert 'memo index out of range' in read_error(path)


def test_pickle_cannot_change_how_the_next_file_is_read(network, tmp_path, path):
    save_zip(network.state_dict(), path)
    rebuild = pickle.GLOBAL + b'torch._utils\n_rebuild_tensor_v2\n'
    attributes = pickle.dumps((None, {'__init__': None, 'storage': None}), protocol=2)[2:-1]
    evil = tmp_path / 'evil.pth'
    evil.write_bytes(pickle.PROTO + b'\2' + rebuild + attributes + pickle.BUILD + pickle.STOP)
    assert any(opcode.name == 'BUILD' for opcode, _, _ in pickletools.genops(evil.read_bytes()))
    read_error(evil)
    assert_same(read_state_dict(path), network.state_dict())


@pytest.fixture
def arrays(network):
    """Weights with all that matters in writing them: a transposed view, a scalar, nothing, other dtypes."""
    named = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    named |= {'0.weight': named['0.weight'].transpose(2, 3, 1, 0), 'empty': np.zeros((0, 3), np.float32)}
    return named | {'half': np.ones(2, np.float16), 'mask': np.array([True, False])}


@pytest.mark.parametrize('suffix', ['pth', 'pt', 'safetensors'])
def test_pytorch_loads_what_is_written(tmp_path, arrays, suffix):
    path = str(tmp_path / f'weights.{suffix}')
    write_state_dict(path, arrays)
    loaded = safetensors.torch.load_file(path) if suffix == 'safetensors' else torch.load(path, weights_only=True)
    assert_same(arrays, {name: loaded[name] for name in arrays})
    assert set(loaded) == set(arrays)
    assert os.listdir(tmp_path) == [f'weights.{suffix}']


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_what_is_written_is_read_again(tmp_path, arrays, suffix):
    path = str(tmp_path / f'weights.{suffix}')
    write_state_dict(path, arrays)
    read = read_state_dict(path)
    assert set(read) == set(arrays)
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_network_of_pytorch_takes_what_is_written(network, path):
    write_state_dict(path, {name: tensor.numpy() for name, tensor in network.state_dict().items()})
    copy = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    copy.load_state_dict(torch.load(path, weights_only=True, mmap=True))
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(copy.eval()(images), network.eval()(images))


def test_other_endings_are_refused_with_the_three(tmp_path):
    path = str(tmp_path / 'weights.npz')
    with pytest.raises(InputError, match=r'weights are written as \.pth, \.pt, \.safetensors; give the file one'):
        write_state_dict(path, {'weight': np.ones(2, np.float32)})
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_what_was_there(tmp_path, path, monkeypatch):
    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arrays = {'weight': np.ones(2, np.float32)}
    write_state_dict(path, arrays)
    with monkeypatch.context() as patched:
        patched.setattr(os, 'replace', replace)
        with pytest.raises(InputError, match=r'weights\.pth: cannot be written \(No space left on device\)'):
            write_state_dict(path, {'weight': np.zeros(2, np.float32)})
    assert os.listdir(tmp_path) == ['weights.pth']
    np.testing.assert_array_equal(read_state_dict(path)['weight'], arrays['weight'])


def test_missing_folder_is_told_when_writing(tmp_path):
    path = tmp_path / 'missing' / 'weights.pt'
    with pytest.raises(InputError, match=r'weights\.pt: cannot be written \(No such file or directory\)'):
        write_state_dict(str(path), {'weight': np.ones(2, np.float32)})
