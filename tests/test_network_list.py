"""`--networks` lists every network, without compiling and without a config."""

import dataclasses

import pytest

from atonet_jax.models import MODEL_NAMES, network
from atonet_jax.network_list import list_networks
from tests.commands import run_command


@pytest.fixture(scope='module')
def rows():
    return {row.name: row for row in list_networks()}


def test_every_name_is_there_once(rows):
    names = [name for row in rows.values() for name in (row.name, *row.others)]
    assert sorted(names) == sorted(MODEL_NAMES)
    assert rows['erfnet'].parameters == 2_064_191 and rows['pidnet_s'].others == ('pidnet',)


def test_every_network_tells_its_licence(rows):
    assert not [name for name, row in rows.items() if not row.license]


def test_what_is_not_on_record_is_counted(rows, monkeypatch):
    def unrecorded(model):
        contract = network(model)
        published = dataclasses.replace(contract.published, parameters=None, macs=None)
        return dataclasses.replace(contract, published=published)

    monkeypatch.setattr('atonet_jax.network_list.distinct_networks', lambda: {'enet': ()})
    monkeypatch.setattr('atonet_jax.network_list.network', unrecorded)
    (row,) = list_networks()
    assert (row.parameters, row.size, row.macs) == (rows['enet_paper'].parameters, (512, 1024), 3_922_067_456)


def test_the_command_needs_neither_config_nor_workdir(repository):
    finished = run_command('--networks', cwd=repository)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ['network', 'parameters', 'GMACs', 'at', 'licence', 'public', 'weights']
    erfnet = next(line for line in lines if line.startswith('erfnet '))
    assert erfnet.split()[1:5] == ['2,064,191', '26.60', '512x1024', 'CC'] and 'ImageNet; the authors' in erfnet


def test_the_list_stands_alone(repository):
    finished = run_command('--networks', '--mode=train', cwd=repository)
    assert finished.returncode == 2 and finished.stderr.startswith('error: --networks stands alone')
