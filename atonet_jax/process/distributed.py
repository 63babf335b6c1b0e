"""Several processes as one run: how they find each other, and which one writes."""

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from atonet_jax.errors import InputError

# What launchers tell each process of how many there are: srun, mpirun, and a TPU pod's list of hosts. (A batch script
# of SLURM that starts Python itself is one process, whatever it has reserved.)
_SLURM_COUNT, _OPEN_MPI_COUNT = 'SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'
_HOSTS = 'TPU_WORKER_HOSTNAMES'
_OPEN_MPI_4 = 'OMPI_MCA_orte_hnp_uri'  # tells JAX where process 0 is; Open MPI 5 does not set it


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects the processes of a run. Does nothing for a single process. Must run before anything asks for devices.

    Args:
        coordinator: 'host:port' of process 0, the same in all processes. None: taken from SLURM, Open MPI 4 or a TPU
            pod, if they started more than one process.
        num_processes: how many there are.
        process_id: this one's number, from 0.

    Raises:
        InputError: only some of the three are given, or the others cannot be reached.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise InputError('--coordinator, --num_processes and --process_id go together; give all three or none')
    if all(given) and not 0 <= process_id < num_processes:
        raise InputError(f'--process_id={process_id}: must be from 0 to {num_processes - 1}, one for each process')
    if not any(given) and not _launched_as_several():
        return
    if not any(given) and _number(_OPEN_MPI_COUNT) > 1 and _OPEN_MPI_4 not in os.environ:
        raise InputError(
            'Open MPI 5 does not say where process 0 is; give --coordinator=HOST:PORT, --num_processes and '
            '--process_id=$OMPI_COMM_WORLD_RANK (docs/scaling.md)'
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, _local_device_ids(by_hand=any(given)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'the processes of the run do not find each other ({reason}); see docs/scaling.md') from error


def is_main_process() -> bool:
    """Whether this process writes what only one process writes: logs, metrics, pictures."""
    return jax.process_index() == 0


@contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Runs the body in the main process first. The others then find the files that it made."""
    if not is_main_process():
        multihost_utils.sync_global_devices(name)
    try:
        yield
    finally:  # an error here occurs in the others too
        if is_main_process():
            multihost_utils.sync_global_devices(name)


def in_main_process(call: Callable[[], Any]) -> Any:
    """Calls in the main process only; what that returns is returned in all of them.

    Args:
        call: returns what `pickle` can hold.

    Raises:
        InputError: in the other processes, if the call raised anything in the main process; it says what.
    """
    if jax.process_count() == 1:
        return call()
    outcome, failure = {}, None
    if is_main_process():
        try:
            outcome = {'result': call()}
        except Exception as error:
            outcome, failure = {'failure': str(error)}, error
    outcome = gathered(outcome)[0]
    if failure is not None:
        raise failure
    if 'failure' in outcome:
        raise InputError(outcome['failure'])
    return outcome['result']


def gathered(value: Any) -> list[Any]:
    """What each process gives, in the order of their numbers. All processes call this alike.

    Args:
        value: what `pickle` can hold.
    """
    if jax.process_count() == 1:
        return [value]
    message = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(message))).tolist()
    messages = multihost_utils.process_allgather(np.pad(message, (0, max(lengths) - len(message))))
    return [pickle.loads(one[:length].tobytes()) for one, length in zip(messages, lengths, strict=True)]


def processes_on_this_host() -> int:
    """How many processes of the run share the memory of this one's host. All processes call this alike."""
    name = socket.gethostname()
    return gathered(name).count(name)


def _launched_as_several() -> bool:
    return max(_number(_SLURM_COUNT), _number(_OPEN_MPI_COUNT)) > 1 or ',' in os.environ.get(_HOSTS, '')


def _number(name: str) -> int:
    return int(os.environ.get(name, 1))


def _local_device_ids(by_hand: bool) -> list[int] | None:
    """Which of the devices that this process sees are its own. []: all; None: as JAX decides.

    Under srun and mpirun JAX takes the device whose number is that of the process on its node. That is wrong where the
    process has the node to itself, and where the launcher shows each process one device, which then is number 0.
    """
    if 'JAX_LOCAL_DEVICE_IDS' in os.environ:  # which JAX obeys
        return None
    if 'OMPI_COMM_WORLD_LOCAL_SIZE' in os.environ:  # first, as in JAX: mpirun may have been started by srun
        is_alone = _number('OMPI_COMM_WORLD_LOCAL_SIZE') == 1
    else:
        is_alone = _number(_SLURM_COUNT) == _number('SLURM_STEP_NUM_NODES')  # each node has one task or more
    sees_one = ',' not in os.environ.get('CUDA_VISIBLE_DEVICES', ',')
    return [] if by_hand or is_alone or sees_one else None
