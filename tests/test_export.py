"""Exports hold the network that they were made of, and no file is lost to one."""

import shutil

import pytest
import torch

from atonet_jax.errors import InputError
from atonet_jax.evaluate import evaluate
from atonet_jax.export import export
from tests import torch_reference


@pytest.fixture
def config(tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    config.export.output = str(tmp_path / 'atonet.pth')
    return config


def test_published_network_takes_the_torch_export_and_its_file_scores_as_the_run_does(config, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / 'run')
    path = export(config, workdir, force=False)
    reference = torch_reference.ATONet(19, width=16, backbone_width=8)
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)

    config.init_from = path
    from_file = evaluate(config, str(tmp_path / 'no_run'))
    from_run = evaluate(config, workdir)
    assert from_file.miou == from_run.miou


def test_a_file_that_is_there_is_replaced_only_by_force(config, finished):
    path = export(config, finished, force=False)
    with pytest.raises(InputError, match='atonet.pth: is there already; .* --force'):
        export(config, finished, force=False)
    assert export(config, finished, force=True) == path


def test_file_goes_into_the_workdir_where_none_is_named(config, finished, tmp_path):
    config.export.output = ''
    workdir = shutil.copytree(finished, tmp_path / 'run')
    assert export(config, str(workdir), force=False) == str(workdir / 'export' / 'atonet.pth')


def test_no_run_and_no_weights_is_said(config, tmp_path):
    with pytest.raises(InputError, match='no such file; name the --workdir of a run'):
        export(config, str(tmp_path / 'nothing'), force=False)
