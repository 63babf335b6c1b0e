"""One device, several, and several processes train and evaluate alike."""

import json
import os
import socket
import subprocess
import sys
import zlib

import numpy as np
import pytest

from atonet_jax.data.sources import load_dataset
from atonet_jax.errors import InputError
from atonet_jax.process import distributed
from atonet_jax.runs.workdir import lock

STEPS = 4


@pytest.fixture(scope='module')
def scenes(tiny_config):
    load_dataset(tiny_config.data, 'train')  # written where nobody has yet
    return tiny_config.data.root


def run_workers(repository, folder, scenes, jobs, num_devices, num_processes=1):
    """{job: {name: array}} that the first of `num_processes` with `num_devices` each found."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={num_devices}'
    out = str(folder / f'{num_processes}.npz')
    processes = []
    for i in range(num_processes):
        address = [f'localhost:{port}', str(num_processes), str(i)] if num_processes > 1 else []
        process = subprocess.Popen(
            [sys.executable, '-m', 'tests.devices_worker', out, str(folder / 'start.npz'), scenes, *address],
            cwd=repository,
            env=os.environ | {'XLA_FLAGS': flags},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
        processes.append(process)
    for process in processes:
        with process.stderr:
            errors = process.stderr.read()
        assert process.wait(timeout=300) == 0, errors
    found = {}
    with np.load(out) as file:
        for key in file.files:
            job, name = key.split('/')
            found.setdefault(job, {})[name] = file[key]
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where the variables lie that all begin with."""
    return tmp_path_factory.mktemp('devices')


@pytest.fixture(scope='module')
def eight_devices(repository, folder, scenes):
    """What one process with eight devices finds on some of them."""
    jobs = {f'on {count}': {'devices': count, 'num_steps': STEPS} for count in (1, 8)}
    jobs |= {f'parts on {count}': {'devices': count, 'num_steps': STEPS, 'accumulation': 2} for count in (1, 2)}
    jobs |= {'segment': {}, 'other modes': {'folder': str(folder / 'benchmark')}}
    return run_workers(repository, folder, scenes, jobs, num_devices=8)


def assert_trains_and_evaluates_alike(found, expected):
    found, expected = dict(found), dict(expected)
    assert len(found['losses']) == STEPS
    np.testing.assert_array_equal(found.pop('confusion', 0), expected.pop('confusion', 0))
    del found['devices'], expected['devices']
    assert set(found) == set(expected)
    for name, array in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_eight_devices_of_a_process_train_and_evaluate_as_one_does(eight_devices):
    assert eight_devices['on 8']['devices'] == 8
    assert_trains_and_evaluates_alike(eight_devices['on 8'], eight_devices['on 1'])


def test_devices_of_two_processes_train_and_evaluate_as_one_does(repository, folder, scenes, eight_devices):
    workdir = str(folder / 'locked')
    jobs = {'all': {'num_steps': STEPS}, 'decide': {'locked': workdir}, 'gather': {}, 'cached': {}}
    with lock(workdir):
        found = run_workers(repository, folder, scenes, jobs, num_devices=2, num_processes=2)
        with pytest.raises(InputError) as refusal, lock(workdir):
            pass
    assert found['all']['devices'] == 4
    assert found['cached']['equal'].tolist() == [True, True], 'batches from the memory of the devices'
    assert_trains_and_evaluates_alike(found['all'], eight_devices['on 1'])
    assert found['gather']['here'].tolist() == [2, 2]
    reason = 'no such file; every image needs its label and the reverse'
    skipped = zlib.crc32(f'0 0.png: {reason} 1 1.png: {reason}'.encode())
    assert found['gather']['code'].tolist() == [skipped, skipped], 'each knows what the other has skipped'
    expected = [zlib.crc32(text.encode()) for text in ('ö 0', str(refusal.value))]
    assert found['decide']['codes'].tolist() == [expected, expected], 'the first process decides, and all end alike'


def test_accumulated_parts_do_not_depend_on_the_devices(eight_devices):
    one, two = (eight_devices[f'parts on {count}'] for count in (1, 2))
    assert_trains_and_evaluates_alike(two, one)
    # Batch normalisation sees four images at a time instead of eight, so it is another training.
    assert np.abs(one['losses'] / eight_devices['on 1']['losses'] - 1).max() > 1e-3


def test_a_training_batch_that_devices_cannot_share_stops_no_other_mode(eight_devices):
    assert eight_devices['other modes']['devices'] == 8


def test_a_batch_is_segmented_by_all_devices_where_they_divide_it(eight_devices):
    found = eight_devices['segment']
    assert found['even_shards'].tolist() == [[1, 64, 64]] * 8
    assert found['odd_shards'].tolist() == [[9, 64, 64]] * 8  # whole on each
    np.testing.assert_array_equal(found['even'], found['odd'][:8])
    np.testing.assert_array_equal(found['even'], found['of one device'])


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


SRUN = {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NUM_NODES': '1'}
MPIRUN = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://host:1'}
BY_HAND = ('host:1', 4, 0)
ALL, AS_JAX_DECIDES = [], None


@pytest.fixture
def joined(monkeypatch):
    """What JAX is called with, in a process that no launcher has started."""
    for name in os.environ:
        if name.startswith(('SLURM_', 'OMPI_', 'TPU_', 'CUDA_VISIBLE_DEVICES', 'JAX_LOCAL_DEVICE_IDS')):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(distributed.jax.distributed, 'initialize', lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    'environment',
    [
        {},
        {'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'},  # a batch script that reserved four tasks and runs one
        {'SLURM_STEP_NUM_TASKS': '1'},
        {'TPU_WORKER_HOSTNAMES': 'localhost'},
    ],
)
def test_a_single_process_joins_nothing(monkeypatch, joined, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize(None, None, None)
    assert joined == []


@pytest.mark.parametrize(
    ('environment', 'address', 'devices'),
    [
        (SRUN, (), AS_JAX_DECIDES),  # four tasks see the node's GPUs and take one each
        (SRUN | {'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, (), AS_JAX_DECIDES),
        (SRUN | {'CUDA_VISIBLE_DEVICES': '0'}, (), ALL),  # --gpus-per-task=1
        (SRUN | {'SLURM_STEP_NUM_NODES': '2'}, (), AS_JAX_DECIDES),
        (SRUN | {'SLURM_STEP_NUM_NODES': '4'}, (), ALL),  # --ntasks-per-node=1
        (SRUN | {'SLURM_STEP_NUM_NODES': '4', 'JAX_LOCAL_DEVICE_IDS': '0,1'}, (), AS_JAX_DECIDES),
        (SRUN, BY_HAND, ALL),
        (MPIRUN, (), AS_JAX_DECIDES),
        (MPIRUN | {'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, (), ALL),
        (MPIRUN | {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NUM_NODES': '2'}, (), AS_JAX_DECIDES),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, BY_HAND, ALL),
        ({'TPU_WORKER_HOSTNAMES': 'host-0,host-1'}, (), ALL),
    ],
)
def test_launchers_are_recognised_and_give_each_process_its_devices(monkeypatch, joined, environment, address, devices):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    address = address or (None, None, None)
    distributed.initialize(*address)
    assert joined == [(*address, devices)]


def test_open_mpi_5_needs_an_address(monkeypatch, joined):
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    with pytest.raises(InputError, match='Open MPI 5 does not say where process 0 is; give --coordinator=HOST:PORT'):
        distributed.initialize(None, None, None)
    assert joined == []
