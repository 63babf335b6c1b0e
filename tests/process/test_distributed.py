"""One device, several, and several processes train and evaluate alike."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from atonet_jax.data.sources import load_dataset
from atonet_jax.errors import InputError
from atonet_jax.process import distributed
from tests import devices_worker

STEPS = 10
# Weights that have settled: from fresh ones a rounding error grows to per cents within a few steps.
SETTLING = {'learning_rate': 0.02, 'num_steps': 60, 'seed': 1}
# Small steps: where rounding moves an activation over ReLU's kink, gradients part by what one pixel counts.
OPTIONS = {'learning_rate': 0.0005, 'num_steps': STEPS}


@pytest.fixture(scope='module')
def scenes(tiny_config):
    load_dataset(tiny_config.data, 'train')  # written where nobody has yet
    return tiny_config.data.root


@pytest.fixture(scope='module')
def start(scenes, tmp_path_factory):
    """File of the variables that all begin with."""
    model = devices_worker.tiny_network()
    key = jax.random.key(0, impl='rbg')
    variables = jax.jit(lambda: model.init(key, np.zeros((1, 64, 64, 3), np.float32), train=True))()
    _, variables, _ = devices_worker.run(scenes, jax.tree.map(np.asarray, variables), **SETTLING)
    path = tmp_path_factory.mktemp('start') / 'variables.npz'
    np.savez(path, **{f'{i:03}': array for i, array in enumerate(jax.tree.leaves(variables))})
    return str(path)


def run_workers(repository, start, scenes, out, num_processes=1, num_devices=1, **options):
    """What the first of `num_processes` with `num_devices` each found."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={num_devices}'
    processes = []
    for i in range(num_processes):
        address = [f'localhost:{port}', str(num_processes), str(i)] if num_processes > 1 else []
        process = subprocess.Popen(
            [sys.executable, '-m', 'tests.devices_worker', str(out), start, scenes, *address],
            cwd=repository,
            env=os.environ | {'XLA_FLAGS': flags},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(json.dumps(OPTIONS | options))
        process.stdin.close()
        processes.append(process)
    for process in processes:
        errors = process.stderr.read()
        assert process.wait(timeout=300) == 0, errors
    with np.load(out) as file:
        return dict(file)


@pytest.fixture(scope='module')
def one_device(repository, start, scenes, tmp_path_factory):
    return run_workers(repository, start, scenes, tmp_path_factory.mktemp('one') / 'out.npz')


@pytest.mark.parametrize(('num_processes', 'num_devices'), [(1, 2), (1, 4), (1, 8), (2, 1), (2, 2)])
def test_all_train_and_evaluate_as_one_device_does(
    repository, start, scenes, one_device, tmp_path, num_processes, num_devices
):
    found = run_workers(repository, start, scenes, tmp_path / 'out.npz', num_processes, num_devices)
    assert found.pop('devices') == num_processes * num_devices
    assert len(found['losses']) == STEPS
    np.testing.assert_array_equal(found.pop('confusion'), one_device['confusion'])
    for name, array in found.items():
        scale = np.abs(one_device[name]).max()
        np.testing.assert_allclose(array, one_device[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_accumulated_parts_do_not_depend_on_the_devices(repository, start, scenes, one_device, tmp_path):
    one, two = (
        run_workers(repository, start, scenes, tmp_path / f'{n}.npz', num_devices=n, accumulation=2) for n in (1, 2)
    )
    for name in set(one) - {'devices', 'confusion'}:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-5 * np.abs(one[name]).max(), err_msg=name)
    # Batch normalisation sees four images at a time instead of eight, so it is another training.
    assert np.abs(one['losses'] / one_device['losses'] - 1).max() > 1e-3


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        (('localhost:1', None, 0), '--coordinator, --num_processes and --process_id go together'),
        (('localhost:1', 2, 2), '--process_id=2: must be from 0 to 1'),
    ],
)
def test_half_an_address_is_refused(address, message):
    with pytest.raises(InputError, match=message):
        distributed.initialize(*address)


@pytest.mark.parametrize(
    ('environment', 'joins'),
    [
        ({}, False),
        ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, False),  # a batch script that reserved four tasks and runs one
        ({'SLURM_STEP_NUM_TASKS': '1'}, False),
        ({'SLURM_STEP_NUM_TASKS': '4'}, True),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
        ({'TPU_WORKER_HOSTNAMES': 'host-0,host-1'}, True),
    ],
)
def test_launchers_are_recognised(monkeypatch, environment, joins):
    for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'TPU_WORKER_HOSTNAMES'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(distributed.jax.distributed, 'initialize', lambda *address: joined.append(address))
    distributed.initialize(None, None, None)
    assert joined == ([(None, None, None)] if joins else [])
