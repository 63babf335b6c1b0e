"""What bfloat16 gains on a CPU that has it: image to labels, in OpenVINO and in JAX, beside float32.

    python -m benchmarks.cpu_bfloat16 atonet pidnet_s --size 360x480
    python -m benchmarks.cpu_bfloat16 runs/demo --size 360x480              # after `make demo`

A name stands for the network with random weights, which leave many near ties; a folder for the run in it. Exports are
ONNX without Winograd's algorithm, the form for OpenVINO. Systems take turns, one call each; the medians are of the
milliseconds by the clock and of CPU time on all cores, which counts least what else the machine does. Needs
requirements-benchmarks.txt.
"""

import argparse
import os
import tempfile
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import onnx

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.synthetic import render_scene
from atonet_jax.errors import InputError
from atonet_jax.export.onnx_format import build
from atonet_jax.inference import Segmenter
from atonet_jax.models import MODEL_NAMES, create_model, init_variables
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.timing import PAUSE, in_turns
from atonet_jax.runs.environment import device_names, versions
from atonet_jax.runs.network import TrainedNetwork, trained_network
from atonet_jax.runs.workdir import load_config
from benchmarks import command


def network(name: str) -> TrainedNetwork:
    """The registered network `name` with random weights, or that of the run in the folder `name`."""
    if os.path.isdir(name):
        return trained_network(load_config(name), name, create_mesh())
    if name not in MODEL_NAMES:
        raise InputError(f'{name}: no network has this name, and no folder')
    model = create_model(name, CITYSCAPES.num_classes)
    return TrainedNetwork(model, init_variables(model, 0), CITYSCAPES, step=None)


def systems(trained: TrainedNetwork, image: np.ndarray, folder: str) -> dict[str, Callable[[], np.ndarray]]:
    """{name: () -> labels}, the float32 of each program before its bfloat16."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise SystemExit('openvino is not installed: pip install -r requirements-benchmarks.txt') from error

    options = default_config().export
    options.update(size=image.shape[1:3], batch_size=1, winograd=False)
    path = os.path.join(folder, 'network.onnx')
    onnx.save(build(trained, options), path)

    def in_openvino(precision):
        hints = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': precision}
        request = openvino.compile_model(path, 'CPU', hints).create_infer_request()
        return lambda: request.infer([image])[0]

    def in_jax(dtype):
        model = trained.model.clone(dtype=dtype)
        segment = Segmenter(model, trained.variables, height=trained.height, shapes=[image.shape[:3]])
        return lambda: np.asarray(segment(image))

    return {
        'OpenVINO, float32': in_openvino('f32'),
        'OpenVINO, bfloat16': in_openvino('bf16'),
        '`Segmenter`, float32': in_jax(jnp.float32),
        '`Segmenter`, bfloat16': in_jax(jnp.bfloat16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='+', help='names of networks, or folders of runs')
    parser.add_argument('--size', type=command.size, default=(360, 480), help='of the image, HxW')
    parser.add_argument('--rounds', type=int, default=9)
    arguments = parser.parse_args()
    image = render_scene(0, 0, *arguments.size)[0][None]
    print(f'{device_names()}; {versions("jax", "openvino")}; {arguments.size[0]}x{arguments.size[1]}')
    print('| network | system | ms | CPU ms | labels of float32, % |\n|---|---|---|---|---|')
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            runs = systems(network(name), image, folder)
            labels = {system: run() for system, run in runs.items()}
            reference = labels['OpenVINO, float32']
            for system, times in in_turns(runs, arguments.rounds, pause=PAUSE).items():
                clock, cpu = 1e3 * np.median(times, axis=0)
                same = 100 * np.mean(labels[system] == reference)
                print(f'| {name} | {system} | {clock:.1f} | {cpu:.1f} | {same:.2f} |', flush=True)


if __name__ == '__main__':
    command.run(main)
