"""Files of weights, those that PyTorch wrote and others, without PyTorch."""

import errno
import functools
import io
import itertools
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest

from atonet_jax.errors import InputError
from atonet_jax.torch_files import read_state_dict, write_state_dict
from tests import golden_files
from tests.torch_file_cases import FileParity, read_error


@functools.cache
def golden():
    files, arrays = {}, {}
    with np.load(golden_files.FOLDER / 'torch_files.npz') as file:
        for key in file.files:
            kind, name, *names = key.split('/')
            if kind == 'file':
                files[name] = file[key].tobytes()
            else:
                arrays.setdefault(name, {})[names[0]] = file[key]
    return files, arrays


class TestGolden(FileParity):
    def files(self):
        return golden()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'weights.pth')


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['module.a.weight', 'module.b'], ['a.weight', 'b']),
        (['module._orig_mod.model.a', 'module._orig_mod.model.b'], ['a', 'b']),
        (['module.a', 'b'], ['module.a', 'b']),
    ],
)
def test_prefixes_that_all_names_share_are_stripped(path, names, expected):
    write_state_dict(path, {name: np.ones(1, np.float32) for name in names})
    assert list(read_state_dict(path)) == expected


class RunsCommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_code_in_a_bare_pickle_is_named_and_not_run(tmp_path, path):
    marker = tmp_path / 'marker'
    with open(path, 'wb') as file:
        pickle.dump(RunsCommand(f'touch {marker}'), file)
    assert 'would run posix.system when opened; nothing was run; ' in read_error(path)
    assert not marker.exists()
    with open(path, 'rb') as file:
        pickle.load(file)
    assert marker.exists()  # so the file is one that does harm


def test_missing_file_and_folder_are_told(tmp_path):
    assert 'cannot be read (No such file or directory); name a file of weights' in read_error(tmp_path / 'no.pth')
    assert 'cannot be read (Is a directory)' in read_error(tmp_path)


def test_empty_file_is_told(path):
    open(path, 'w').close()
    assert 'empty; download or copy it again' in read_error(path)


def test_tar_of_old_pytorch_is_refused_with_what_to_do(path):
    with tarfile.open(path, 'w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert 'the tar format of PyTorch before 0.1.10; load it with PyTorch and save it again' in read_error(path)


def test_bare_pickle_is_refused(path):
    with open(path, 'wb') as file:
        pickle.dump({'weight': [1.0, 2.0]}, file)
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


def test_huge_memo_index_takes_no_memory(path):
    with open(path, 'wb') as file:
        file.write(pickle.PROTO + b'\2' + pickle.NONE + pickle.LONG_BINPUT + b'\xff' * 4 + pickle.STOP)
    assert 'memo index out of range' in read_error(path)


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

    data = pathlib.Path(path).read_bytes()
    for damaged in (data[:-30], data[: len(data) // 3], data[:150] + b'xxxxxxxx' + data[158:]):
        with open(path, 'wb') as file:
            file.write(damaged)
        assert 'damaged or cut short' in read_error(path)


def test_any_damaged_byte_of_a_compressed_numpy_archive_is_harmless_or_told(tmp_path):
    """12 would make bzip2 of its compression."""
    path = tmp_path / 'weights.npz'
    np.savez_compressed(path, a=np.arange(64) % 5)
    data = path.read_bytes()
    told = 0
    for position, byte in itertools.product(range(len(data)), (None, 12)):
        damaged = bytearray(data)
        damaged[position] = damaged[position] ^ 255 if byte is None else byte
        path.write_bytes(damaged)
        try:
            read_state_dict(str(path))
        except InputError:
            told += 1
    assert told > len(data)


def test_numpy_archive_of_objects_is_refused(tmp_path):
    path = str(tmp_path / 'weights.npz')
    np.savez(path, a=np.array([{}, []], object))
    assert 'kind of tensor that is not read here (a of Python objects)' in read_error(path)
    np.savez(path, a=np.array(['text']))
    assert 'kind of tensor that is not read here (a of <U4)' in read_error(path)


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
