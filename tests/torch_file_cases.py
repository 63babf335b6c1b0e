"""Weights of PyTorch files are read and written as PyTorch does it; bad files are refused in a line and run nothing.

`FileParity` holds the tests of files that PyTorch wrote. tests/weights/test_torch_files.py takes them from
tests/golden/, tests/parity/test_torch_files.py has PyTorch write them.
"""

import os
import pathlib
import pickle
import pickletools

import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.torch_files import read_state_dict, write_state_dict

WRITTEN = ('written.pth', 'written.pt', 'written.safetensors')

both_formats = pytest.mark.parametrize('form', ['zip', 'legacy'])
file_kinds = pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])


def read_error(path):
    with pytest.raises(InputError) as raised:
        read_state_dict(str(path))
    assert str(raised.value).startswith(f'{path}: ') and '\n' not in str(raised.value)
    return str(raised.value)


def assert_same(arrays, expected):
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype, name
        np.testing.assert_array_equal(arrays[name], array, err_msg=name, strict=True)


def arrays_to_write(network):
    """Weights with all that matters in writing them: a transposed view, a scalar, nothing, other dtypes."""
    transposed = {'0.weight': network['0.weight'].transpose(2, 3, 1, 0), 'empty': np.zeros((0, 3), np.float32)}
    return network | transposed | {'half': np.ones(2, np.float16), 'mask': np.array([True, False])}


class FileParity:
    """The tests. A subclass gives the files."""

    def files(self):
        """({file: bytes}, {file: {name: array}}), as tests/parity/saved_files.py makes them."""
        raise NotImplementedError

    @pytest.fixture
    def put(self, tmp_path):
        """(file) -> the path where it then lies."""

        def put(name):
            form = name.rpartition('.')[2]
            path = tmp_path / f'weights.{"safetensors" if form == "safetensors" else "pth"}'
            path.write_bytes(self.files()[0][name])
            return str(path)

        return put

    def arrays(self, name):
        return self.files()[1][name]

    @both_formats
    def test_state_dict_of_a_network_is_read(self, put, form):
        arrays = read_state_dict(put(f'network.{form}'))
        assert_same(arrays, self.arrays(f'network.{form}'))
        assert arrays['1.num_batches_tracked'].shape == () and arrays['1.num_batches_tracked'].dtype == np.int64

    @both_formats
    def test_views_of_one_storage_keep_their_offsets_and_strides(self, put, form):
        arrays = read_state_dict(put(f'views.{form}'))
        assert_same(arrays, self.arrays(f'views.{form}'))
        assert np.shares_memory(arrays['whole'], arrays['rows'])

    @both_formats
    def test_parameters_are_read_as_tensors(self, put, form):
        assert_same(read_state_dict(put(f'parameters.{form}')), self.arrays(f'parameters.{form}'))

    @both_formats
    def test_floats_become_float32_and_other_numbers_stay(self, put, form):
        arrays = read_state_dict(put(f'numbers.{form}'))
        assert_same(arrays, self.arrays(f'numbers.{form}'))
        assert {name: array.dtype.name for name, array in arrays.items()} == {
            'float16': 'float32', 'bfloat16': 'float32', 'float64': 'float32', 'uint8': 'uint8', 'int32': 'int32',
            'bool': 'bool',
        }  # fmt: skip

    def test_safetensors_are_read_with_the_same_rules(self, put):
        arrays, expected = read_state_dict(put('numbers.safetensors')), self.arrays('numbers.safetensors')
        assert set(arrays) == set(expected)
        assert_same(arrays, {name: expected[name] for name in arrays})

    def test_weights_of_a_big_endian_machine_are_read(self, put):
        numbers = np.arange(3, dtype=np.float32)
        assert_same(read_state_dict(put('big_endian.zip')), {'a': numbers, 'b': numbers})

    @both_formats
    def test_checkpoint_of_a_training_script_gives_its_weights_alone(self, put, form):
        assert_same(read_state_dict(put(f'checkpoint.{form}')), self.arrays(f'checkpoint.{form}'))

    @pytest.mark.parametrize('keys', ['state_dict', 'model_state_dict', 'model', 'net-module'])
    def test_wrapped_state_dict_is_found(self, put, keys):
        assert_same(read_state_dict(put(f'{keys}.zip')), self.arrays('network.zip'))

    def test_entries_beside_tensors_that_are_none_are_left_out(self, put):
        assert list(read_state_dict(put('beside.zip'))) == ['weight']

    @both_formats
    def test_code_in_a_file_is_named_and_not_run(self, put, form, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert 'would run posix.system when opened; nothing was run; ' in read_error(put(f'code.{form}'))
        assert not os.path.exists('ran')

    @both_formats
    def test_whole_model_is_refused_with_the_way_to_save_its_weights(self, put, form):
        message = read_error(put(f'whole_model.{form}'))
        assert 'would run torch.nn.modules.container.Sequential when opened; nothing was run' in message
        assert message.endswith('it holds a whole model: save model.state_dict() instead')

    @pytest.mark.parametrize(
        'kind',
        [
            'torch.ComplexFloatStorage',
            'torch._utils._rebuild_qtensor',
            'torch._utils._rebuild_sparse_tensor',
            'torch._utils._rebuild_tensor_v3',
        ],
    )
    def test_other_kinds_of_tensors_are_named(self, put, kind):
        assert f'a kind of tensor that is not read here ({kind})' in read_error(put(f'{kind}.zip'))

    def test_dtype_that_only_safetensors_has_is_named(self, put):
        assert 'a kind of tensor that is not read here (F8_E4M3)' in read_error(put('float8.safetensors'))

    @pytest.mark.parametrize('saved', ['nothing', 'no_tensors', 'list', 'tensor', 'unnamed'])
    @both_formats
    def test_file_without_named_tensors_is_told(self, put, saved, form):
        assert 'holds no named tensors' in read_error(put(f'{saved}.{form}'))

    def test_safetensors_without_tensors_is_told(self, put):
        assert 'holds no tensors' in read_error(put('no_tensors.safetensors'))

    def test_torchscript_is_refused_with_the_way_to_save_its_weights(self, put):
        assert 'a TorchScript archive; save torch.jit.load(file).state_dict()' in read_error(put('torchscript.zip'))

    @file_kinds
    def test_file_cut_short_is_told(self, put, kind):
        path = put(f'small.{kind}')
        size = os.path.getsize(path)
        for length in (size - 1, size // 2, 20, 5):
            os.truncate(path, length)
            assert 'damaged or cut short (' in read_error(path)

    @file_kinds
    def test_damaged_byte_gives_arrays_or_one_line(self, put, kind):
        path = pathlib.Path(put(f'small.{kind}'))
        whole, rng, told = path.read_bytes(), np.random.default_rng(0), 0
        for position in rng.integers(len(whole), size=150):
            damaged = bytearray(whole)
            damaged[position] ^= rng.integers(1, 256)
            path.write_bytes(damaged)
            try:
                read_state_dict(str(path))
            except InputError as error:
                told += '\n' not in str(error)
        assert told > 20

    def test_tensor_beyond_its_storage_is_not_read(self, put):
        path = pathlib.Path(put('five_ones.legacy'))
        data, shape = path.read_bytes(), pickle.BININT1 + b'\5' + pickle.TUPLE1
        assert data.count(shape) == 1
        path.write_bytes(data.replace(shape, pickle.BININT1 + b'\6' + pickle.TUPLE1))
        assert 'damaged or cut short (a tensor reaches beyond its storage)' in read_error(path)

    @both_formats
    def test_dictionary_that_holds_itself_does_not_hang(self, put, form):
        assert 'holds no named tensors' in read_error(put(f'holds_itself.{form}'))

    def test_pickle_cannot_change_how_the_next_file_is_read(self, put, tmp_path):
        rebuild = pickle.GLOBAL + b'torch._utils\n_rebuild_tensor_v2\n'
        attributes = pickle.dumps((None, {'__init__': None, 'storage': None}), protocol=2)[2:-1]
        evil = tmp_path / 'evil.pth'
        evil.write_bytes(pickle.PROTO + b'\2' + rebuild + attributes + pickle.BUILD + pickle.STOP)
        assert any(opcode.name == 'BUILD' for opcode, _, _ in pickletools.genops(evil.read_bytes()))
        read_error(evil)
        assert_same(read_state_dict(put('network.zip')), self.arrays('network.zip'))

    @pytest.mark.parametrize('name', WRITTEN)
    def test_what_is_written_is_byte_for_byte_what_pytorch_has_loaded(self, tmp_path, name):
        """saved_files.py lets PyTorch load it; where the writer changes, make the golden files anew."""
        path = tmp_path / name
        write_state_dict(str(path), arrays_to_write(self.arrays('network.zip')))
        assert path.read_bytes() == self.files()[0][name]
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.parametrize('name', WRITTEN)
    def test_what_is_written_is_read_again(self, tmp_path, name):
        arrays = arrays_to_write(self.arrays('network.zip'))
        write_state_dict(str(tmp_path / name), arrays)
        read = read_state_dict(str(tmp_path / name))
        assert set(read) == set(arrays)
        for key, array in read.items():
            np.testing.assert_array_equal(array, arrays[key], err_msg=key)
