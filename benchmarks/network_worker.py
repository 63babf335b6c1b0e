"""The processes of benchmarks/networks.py: each prepares one way from image to labels, and times calls of it."""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from atonet_jax.models import create_model, network

NUM_CLASSES = 19
_ENDING = 10  # seconds that a process has to end


class WorkerError(Exception):
    """A process did not do what was asked of it; says why in a line."""


def work(task: dict[str, Any]) -> None:
    """What a process of its own does: prepares one way, then answers the lines of its standard input in JSON lines."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(figures):
        print(json.dumps(figures), file=answers, flush=True)

    if task['system'] == 'machine':
        answer(_machine())
        return
    if task['system'] == 'export':
        answer(_export(task))
        return
    prepare = {'segmenter': _segmenter, 'plain': _plain, 'onnx': _onnxruntime, 'train': _train,
               'plain_train': _train}[task['system']]  # fmt: skip
    start = time.perf_counter()
    call, memory, figures = prepare(task)
    np.save(os.path.join(task['folder'], f'{task["system"]}.npy'), np.asarray(call()))
    answer(figures | {'start_seconds': time.perf_counter() - start})
    for line in sys.stdin:
        if line.strip() == 'memory':
            answer({'memory_bytes': memory()})
            continue
        start = time.perf_counter()
        call()
        answer({'seconds': time.perf_counter() - start})


def _machine() -> dict[str, Any]:
    import jax

    from atonet_jax.runs.environment import device_names, git_revision, versions

    backend = jax.default_backend()
    names = versions('jax', 'flax', 'numpy', *(['onnxruntime'] if backend == 'cpu' else []))
    return {'backend': backend, 'device': device_names(), 'versions': names, 'revision': git_revision()}


def _model_and_variables(task):
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import path_aware_map

    from atonet_jax.models import abstract_variables

    model = create_model(task['network'], NUM_CLASSES, dtype=jnp.dtype(task['dtype']), **task['options'])

    def draw(path, array):
        generator = np.random.default_rng(zlib.crc32('/'.join(path).encode()))
        if array.ndim > 1:
            return generator.standard_normal(array.shape, np.float32) * np.sqrt(2 / np.prod(array.shape[:-1]))
        low, high = {'scale': (0.8, 1.2), 'var': (0.5, 1.5), 'slope': (0.1, 0.4)}.get(path[-1], (-0.1, 0.1))
        return generator.uniform(low, high, array.shape).astype(np.float32)

    variables = path_aware_map(draw, abstract_variables(model, train=False))
    return model, jax.tree.map(lambda array: array.astype(np.float32), variables)


def _image(task) -> np.ndarray:
    """[1, H, W, 3] uint8: patches of colour, whose edges noise would not have."""
    height, width = task['size']
    patches = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return patches.repeat(16, 0).repeat(16, 1)[None, :height, :width].copy()


def _jax_call(start: Callable, task) -> tuple[Callable, Callable, dict[str, Any]]:
    """Prepares what `start`(model, variables, shape) gives: images -> labels, and the plan of its memory."""
    import jax

    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(3)))  # what every process has
    before = _memory('VmRSS')
    model, variables = _model_and_variables(task)
    labels_of, memory_analysis = start(model, variables, (1, *task['size'], 3))
    del variables
    image = _image(task)
    plan = memory_analysis()
    planned = plan and plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    figures = {'planned_bytes': planned}
    if jax.default_backend() == 'cpu':
        return lambda: np.asarray(labels_of(image)), _peak_since(before), figures

    image = jax.device_put(image)

    def memory():
        return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')

    return lambda: jax.block_until_ready(labels_of(image)), memory, figures


def _segmenter(task):
    from atonet_jax.inference import Segmenter
    from atonet_jax.models.counts import count_macs, count_parameters

    def start(model, variables, shape):
        segment = Segmenter(model, variables)
        return segment, segment.compile('__call__', shape[:3]).memory_analysis

    model = create_model(task['network'], NUM_CLASSES, **task['options'])
    counts = count_parameters(model) | {'macs': count_macs(model, task['size'])}
    call, memory, figures = _jax_call(start, task)
    return call, memory, figures | counts


def _plain(task):
    import jax
    import jax.numpy as jnp

    from atonet_jax.models import apply
    from atonet_jax.ops import cpu, resize

    def start(model, variables, shape):
        contract = network(model)

        def labels(variables, images):
            logits = apply(model, variables, contract.normalization(images))['logits']
            size = images.shape[1:3]
            if contract.upsampling == 'half_pixel':
                logits = jax.image.resize(logits, (1, *size, logits.shape[3]), 'bilinear')
            else:
                logits = resize(logits, size, contract.upsampling)
            return jnp.argmax(logits, -1).astype(jnp.uint8)

        variables = jax.device_put(variables)
        with cpu.fast_paths(False):
            program = jax.jit(labels).lower(variables, jax.ShapeDtypeStruct(shape, np.uint8)).compile()
        return partial(program, variables), program.memory_analysis

    return _jax_call(start, task)


def _train(task):
    before = _memory('VmRSS')
    _, call, macs = training_step(task)
    return call, _peak_since(before), {'forward_macs': macs}


def training_step(task: dict[str, Any]) -> tuple[Any, Callable[[], np.ndarray], int]:
    """A step of the network's default recipe on two crops of half the image's height and width.

    Returns:
        The compiled program, a call of it that gives the loss, and the multiply-accumulates of its forward pass.
    """
    from atonet_jax.config import default_config
    from atonet_jax.ops import cpu
    from benchmarks.recipe import compiled_step

    config = default_config(task['network'])
    config.model.update(task['options'])
    config.model.dtype = task['dtype']
    config.data.crop_size = tuple(length // 2 for length in task['size'])
    config.train.batch_size = 2
    with cpu.fast_paths(task['system'] == 'train'):
        program, call, macs = compiled_step(config, NUM_CLASSES)
    return program, lambda: np.asarray(call()['loss']), macs


def _export(task) -> dict[str, Any]:
    import onnx

    from atonet_jax.config import default_config
    from atonet_jax.data.labels import CITYSCAPES
    from atonet_jax.export.onnx_format import build
    from atonet_jax.runs.network import TrainedNetwork

    model, variables = _model_and_variables(task)
    options = default_config(task['network']).export
    options.update(size=tuple(task['size']), batch_size=1)
    path = os.path.join(task['folder'], 'network.onnx')
    onnx.save(build(TrainedNetwork(model, variables, CITYSCAPES, step=None), options), path)
    return {'file_bytes': os.path.getsize(path)}


def _onnxruntime(task):
    import onnxruntime

    before = _memory('VmRSS')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    path = os.path.join(task['folder'], 'network.onnx')
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    image = _image(task)
    figures = {'file_bytes': os.path.getsize(path)}
    return lambda: session.run(None, {'images': image})[0], _peak_since(before), figures


def _peak_since(before: int) -> Callable[[], int | None]:
    """Gives the most memory of the process from here on, less `before`; None where the system does not tell.

    What compiling took and gave back does not count.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the count begins anew
    except OSError:
        return lambda: None
    return lambda: _memory('VmHWM') - before


def _memory(key: str) -> int:
    """Bytes, of /proc/self/status; 0 where there is none."""
    with contextlib.suppress(OSError):
        found = re.search(rf'^{key}:\s+(\d+) kB', pathlib.Path('/proc/self/status').read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0


class Worker:
    """A process that does `work`."""

    command = (sys.executable, '-m', 'benchmarks.network_worker')

    def __init__(self, task: dict[str, Any]):
        self._errors = tempfile.TemporaryFile()
        environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'TF_CPP_MIN_LOG_LEVEL': '2'}
        self._process = subprocess.Popen(
            [*self.command, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, kind, *_) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_ENDING if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_ENDING)
        self._errors.close()

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """Sends a line, unless it is '', and waits for the answer.

        Raises:
            WorkerError: the process ended, or does not answer within `seconds` and is ended.
        """
        with contextlib.suppress(OSError):
            if line:
                self._process.stdin.write(f'{line}\n')
                self._process.stdin.flush()
        try:
            answer = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self._process.kill()  # it would compute beside those that are timed
            raise WorkerError(f'no answer in {seconds:.0f} s') from None
        if answer is None:
            raise WorkerError(self._failure())
        return json.loads(answer)

    def _read(self) -> None:
        with self._process.stdout as answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put(None)

    def _failure(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors='replace').strip().splitlines()
        if code < 0:
            return f'ended by signal {-code}' + (', as where memory runs out' if code == -9 else '')
        return lines[-1][:300] if lines else f'ended with code {code}'


if __name__ == '__main__':
    work(json.loads(sys.argv[1]))
