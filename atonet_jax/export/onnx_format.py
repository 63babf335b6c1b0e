"""`onnx`: one file for ONNX Runtime, OpenVINO and others, float32."""

import jax
import onnx
import onnxruntime
from ml_collections import ConfigDict

from atonet_jax.export.comparison import compare
from atonet_jax.export.onnx_graph import build
from atonet_jax.models import prepare
from atonet_jax.runs.network import TrainedNetwork

ENDING = '.onnx'
_OPTIONS = ('size', 'batch_size', 'inputs', 'outputs', 'layout', 'winograd')  # of config.export, for the graph


def write(path: str, network: TrainedNetwork, config: ConfigDict) -> None:
    network = network.in_float32()
    params = jax.device_get(prepare(network.model, network.variables))['prepared']
    options = {name: config.export[name] for name in _OPTIONS}
    onnx.save(build(network.model, params, **options), path)


def check(path: str, network: TrainedNetwork, config: ConfigDict) -> str:
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return compare(lambda images: session.run(None, {'images': images})[0], network.in_float32(), config.export)
