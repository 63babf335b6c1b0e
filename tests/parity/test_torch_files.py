"""Files of weights are read as PyTorch writes them and written as it reads them, with the PyTorch that is here."""

import functools

import pytest
import torch

from atonet_jax.torch_files import write_state_dict
from tests.parity import saved_files
from tests.torch_file_cases import WRITTEN, FileParity, arrays_to_write, both_formats


@functools.cache
def written_now():
    return saved_files.golden_files()


class TestLive(FileParity):
    def files(self):
        return written_now()

    @both_formats
    def test_the_file_with_code_does_harm_in_pytorch(self, put, form, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.load(put(f'code.{form}'), weights_only=False)
        assert (tmp_path / 'ran').exists()

    @pytest.mark.parametrize('name', WRITTEN)
    def test_pytorch_loads_what_is_written(self, tmp_path, name):
        arrays = arrays_to_write(self.arrays('network.zip'))
        write_state_dict(str(tmp_path / name), arrays)
        saved_files.assert_pytorch_loads(str(tmp_path / name), arrays)

    def test_network_of_pytorch_takes_what_is_written(self, tmp_path):
        network, path = saved_files.small_network(), str(tmp_path / 'weights.pth')
        write_state_dict(path, {name: tensor.numpy() for name, tensor in network.state_dict().items()})
        copy = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        copy.load_state_dict(torch.load(path, weights_only=True, mmap=True))
        images = torch.rand(2, 3, 8, 8)
        assert torch.equal(copy.eval()(images), network.eval()(images))
