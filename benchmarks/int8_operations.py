"""Where an int8 export spends its time, operation by operation, and how fast one large int8 convolution runs.

    python -m benchmarks.int8_operations --size 512x1024

ATONet with random weights, in ONNX Runtime and in OpenVINO on all cores. The least time of each node over the runs
counts, so that disturbances count least; the sums are by kind of operation. The convolution, 3x3 from 256 to 256
channels, is measured in the same way, by itself. Needs requirements-benchmarks.txt.
"""

import argparse
import collections
import json
import os
import tempfile
from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.export.onnx.quantization import quantize
from atonet_jax.export.onnx_format import build
from atonet_jax.models import create_model, init_variables
from atonet_jax.models.counts import count_macs
from atonet_jax.runs.environment import device_names, versions
from atonet_jax.runs.network import TrainedNetwork
from benchmarks import command

CORES = os.cpu_count()
CHANNELS = 256
_CONVOLUTIONS = ('QLinearConv', 'Convolution')  # as the runtimes call them


def network(size: tuple[int, int], folder: str) -> tuple[str, np.ndarray]:
    """The int8 export of ATONet, and an image for it."""
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    model = create_model('atonet', CITYSCAPES.num_classes)
    options = default_config().export
    options.update(size=size, batch_size=1)
    path = os.path.join(folder, 'network.onnx')
    trained = TrainedNetwork(model, init_variables(model, 0), CITYSCAPES, step=None)
    quantize(build(trained, options, for_int8=True), [image], path)
    return path, image


def convolution(size: tuple[int, int], folder: str) -> tuple[str, np.ndarray]:
    """Two convolutions in int8, of which the second takes int8 and gives it, and a map for them."""
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(1, CHANNELS, *size)).astype(np.float32)
    shape = list(maps.shape)
    kernels = [
        helper.make_tensor(f'k{i}', TensorProto.FLOAT, (CHANNELS, CHANNELS, 3, 3),
                           generator.normal(size=CHANNELS * CHANNELS * 9).astype(np.float32) / 48)
        for i in range(3)
    ]  # fmt: skip
    names = ['x', 'a', 'b', 'y']
    nodes = [
        helper.make_node('Conv', [names[i], f'k{i}'], [names[i + 1]], kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        for i in range(3)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in 'xy']
    graph = helper.make_graph(nodes, 'convolutions', ends[:1], ends[1:], kernels)
    path = os.path.join(folder, 'convolution.onnx')
    quantize(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=10), [maps], path)
    return path, maps


def in_onnxruntime(path: str, given: np.ndarray, runs: int, folder: str) -> dict[str, tuple[str, float]]:
    """{node: (kind, least milliseconds)}."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(folder, 'profile')
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: given})
    with open(session.end_profiling()) as file:
        events = [event for event in json.load(file) if event.get('cat') == 'Node' and 'op_name' in event['args']]
    least = {}
    for event in events:
        kind, time = event['args']['op_name'], event['dur'] / 1e3
        least[event['name']] = kind, min(time, least.get(event['name'], (kind, time))[1])
    return least


def in_openvino(path: str, given: np.ndarray, runs: int, folder: str) -> dict[str, tuple[str, float]]:
    """The same; `folder` is not needed."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise SystemExit('openvino is not installed: pip install -r requirements-benchmarks.txt') from error

    settings = {'INFERENCE_NUM_THREADS': CORES, 'PERFORMANCE_HINT': 'LATENCY', 'PERF_COUNT': True}
    request = openvino.compile_model(path, 'CPU', settings).create_infer_request()
    least = {}
    for _ in range(runs):
        request.infer([given])
        for node in request.get_profiling_info():
            time = node.real_time.total_seconds() * 1e3
            if time:
                before = least.get(node.node_name, (node.node_type, time))[1]
                least[node.node_name] = node.node_type, min(time, before)
    return least


RUNTIMES: dict[str, Callable] = {'ONNX Runtime': in_onnxruntime, 'OpenVINO': in_openvino}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=command.size, default=(512, 1024), help='of the image, HxW')
    parser.add_argument('--runs', type=int, default=25)
    arguments = parser.parse_args()
    size = arguments.size
    giga_macs = count_macs(create_model('atonet', CITYSCAPES.num_classes), size) / 1e9
    map_size = size[0] // 8, size[1] // 8
    of_one = CHANNELS * CHANNELS * 9 * map_size[0] * map_size[1] / 1e9
    print(f'{device_names()}; {versions("onnxruntime", "openvino")}; {size[0]}x{size[1]}: {giga_macs:.1f} GMACs')
    with tempfile.TemporaryDirectory() as folder:
        whole, single = network(size, folder), convolution(map_size, folder)
        for name, times_of in RUNTIMES.items():
            kinds = collections.Counter()
            for kind, time in times_of(*whole, arguments.runs, folder).values():
                kinds[kind] += time
            fastest = min(t for kind, t in times_of(*single, arguments.runs, folder).values() if kind in _CONVOLUTIONS)
            rate = of_one / fastest * 1e3
            print(f'\n{name}: one convolution of {of_one:.1f} GMACs: {fastest:.2f} ms, {rate:.0f} GMAC/s; at this rate '
                  f'the network takes {1e3 * giga_macs / rate:.1f} ms')  # fmt: skip
            print('| operation | ms |\n|---|---|')
            for kind, time in kinds.most_common():
                print(f'| {kind} | {time:.2f} |')
            print(f'| all | {sum(kinds.values()):.2f} |')


if __name__ == '__main__':
    command.run(main)
