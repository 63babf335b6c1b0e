"""Times ways from a uint8 image to a uint8 label map side by side, on one machine, with the same weights.

    python -m benchmarks.compare_inference --size 512x1024
    python -m benchmarks.compare_inference --size 1024x2048 --dtype bfloat16        # where there is a CUDA GPU

On CPU: our jitted Segmenter and our ONNX export, beside the PyTorch reference (tests/torch_reference.py) eager,
compiled, and as its own ONNX export; exports in ONNX Runtime and in OpenVINO, ours of bfloat16 and of int8 too (int8 in
OpenVINO with bfloat16 between its operations, the default where the CPU has it). Weights are random, so of these the
speed counts and the labels do not. All start from a NumPy image and end with NumPy labels. On CUDA: our Segmenter
beside torch.compile (max-autotune, which takes CUDA graphs; channels_last), from an image on the device to labels on
the device. A round calls each once, so that disturbances hit all alike: medians, and medians of the rounds' ratios.
Needs requirements-benchmarks.txt.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.inference import Segmenter
from atonet_jax.models import create_model
from atonet_jax.models.contract import IMAGENET
from atonet_jax.process.timing import PAUSE, in_turns
from atonet_jax.runs.network import TrainedNetwork
from atonet_jax.torch_weights import from_torch
from benchmarks import command
from tests import torch_reference

NUM_CLASSES = 19
CORES = os.cpu_count()
MEAN_RGB, STDDEV_RGB = IMAGENET.in_pixel_values()


class EndToEnd(nn.Module):
    """The PyTorch reference with what comes before and after it: [B, H, W, 3] uint8 -> [B, H, W] uint8."""

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.register_buffer('mean', torch.from_numpy(MEAN_RGB))
        self.register_buffer('stddev', torch.from_numpy(STDDEV_RGB))

    def forward(self, images):
        x = ((images.float() - self.mean) / self.stddev).permute(0, 3, 1, 2).to(self.dtype)
        logits = self.network(x.contiguous(memory_format=torch.channels_last) if images.is_cuda else x)
        logits = functional.interpolate(logits, images.shape[1:3], mode='bilinear', align_corners=False)
        return logits.argmax(1).to(torch.uint8)


def settled_reference(image: np.ndarray) -> torch_reference.ATONet:
    """Random weights, with running statistics of the image, so that activations are of a trained network's size."""
    torch.manual_seed(0)
    network = torch_reference.ATONet(NUM_CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # averages all that it sees
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    with torch.no_grad():
        network.train()(torch.from_numpy((image - MEAN_RGB) / STDDEV_RGB).permute(0, 3, 1, 2))
    return network.eval()


def cpu_systems(image: np.ndarray, folder: str) -> dict[str, Callable[[], np.ndarray]]:
    """{name: () -> labels}; the image's batch is 1."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx.export needs it
        import openvino
    except ModuleNotFoundError as error:
        raise SystemExit(f'{error.name} is not installed: pip install -r requirements-benchmarks.txt') from error

    from atonet_jax.export.onnx.quantization import quantize
    from atonet_jax.export.onnx_format import build

    torch.set_num_threads(CORES)
    reference = settled_reference(image)
    end_to_end = EndToEnd(reference).eval()
    compiled = torch.compile(end_to_end)
    model = create_model('atonet', NUM_CLASSES)
    variables = from_torch(reference.state_dict(), model)
    segment = Segmenter(model, variables, shapes=[image.shape[:3]])
    tensor = torch.from_numpy(image)

    names = 'reference', 'ours', 'plain', 'int8'
    theirs, ours, plain, int8 = (os.path.join(folder, f'{name}.onnx') for name in names)
    torch.onnx.export(end_to_end, (tensor,), theirs, dynamo=True, input_names=['images'], verbose=False)
    network, options = TrainedNetwork(model, variables, CITYSCAPES, step=None), default_config().export
    options.update(size=image.shape[1:3], batch_size=1)
    for path, options.winograd in ((ours, True), (plain, False)):
        onnx.save(build(network, options), path)
    quantize(build(network, options, for_int8=True), [image], int8)

    def in_torch(module):
        def run():
            with torch.inference_mode():
                return module(tensor).numpy()

        return run

    def in_onnxruntime(path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda: session.run(None, {'images': image})[0]

    def in_openvino(path, precision=None):
        hints = {'INFERENCE_NUM_THREADS': CORES, 'PERFORMANCE_HINT': 'LATENCY'}
        hints |= {'INFERENCE_PRECISION_HINT': precision} if precision else {}
        network = openvino.compile_model(path, 'CPU', hints)
        request = network.create_infer_request()
        return lambda: request.infer([image])[0]

    return {
        'PyTorch eager': in_torch(end_to_end),
        'PyTorch torch.compile': in_torch(compiled),
        'ours, JAX': lambda: np.asarray(segment(image)),
        "ONNX Runtime, the reference's export": in_onnxruntime(theirs),
        'ONNX Runtime, our export': in_onnxruntime(ours),
        "OpenVINO, the reference's export": in_openvino(theirs, 'f32'),
        'OpenVINO, our export (winograd=False)': in_openvino(plain, 'f32'),
        'OpenVINO, our export (winograd=False), bfloat16': in_openvino(plain, 'bf16'),
        'ONNX Runtime, our int8 export': in_onnxruntime(int8),
        'OpenVINO, our int8 export': in_openvino(int8),
    }


def cuda_systems(image: np.ndarray, dtype: str) -> dict[str, Callable[[], object]]:
    """{name: () -> labels on the device, finished}."""
    reference = settled_reference(image)
    model = create_model('atonet', NUM_CLASSES, dtype=jax.numpy.dtype(dtype))
    segment = Segmenter(model, from_torch(reference.state_dict(), model), shapes=[image.shape[:3]])
    jax_image = jax.device_put(image)

    torch_dtype = getattr(torch, dtype)
    end_to_end = EndToEnd(reference.to('cuda', torch_dtype, memory_format=torch.channels_last), torch_dtype).to('cuda')
    compiled = torch.compile(end_to_end.eval(), mode='max-autotune')
    torch_image = torch.from_numpy(image).cuda()

    def in_torch():
        with torch.inference_mode():
            labels = compiled(torch_image)
        torch.cuda.synchronize()
        return labels

    return {'PyTorch torch.compile': in_torch, 'ours, JAX': lambda: jax.block_until_ready(segment(jax_image))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=command.size, default=(512, 1024), help='HxW')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'), help='on CUDA alone')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--warmup', type=int, default=3)
    arguments = parser.parse_args()
    image = structured_image(*arguments.size)

    with tempfile.TemporaryDirectory() as folder:
        on_cuda = jax.default_backend() == 'gpu'
        systems = cuda_systems(image, arguments.dtype) if on_cuda else cpu_systems(image, folder)
        labels = {name: _to_numpy(run()) for name, run in systems.items()}
        times = in_turns(systems, arguments.rounds, arguments.warmup, PAUSE)
        times = {name: of_system[:, 0] for name, of_system in times.items()}

    device = torch.cuda.get_device_name() if on_cuda else f'{platform.machine()}, {CORES} cores'
    print(f'{device}; {arguments.size[0]}x{arguments.size[1]}, batch 1, '
          f'{arguments.dtype if on_cuda else "float32"}; {arguments.rounds} rounds')  # fmt: skip
    first = next(iter(systems))
    print(f'| system | median ms | p5 | p95 | times as fast as {first} | labels as {first} % |')
    print('|---|---|---|---|---|---|')
    for name, seconds in times.items():
        low, median, high = 1e3 * np.percentile(seconds, [5, 50, 95])
        speed = np.median(times[first] / seconds)
        same = 100 * np.mean(labels[name] == labels[first])
        print(f'| {name} | {median:.1f} | {low:.1f} | {high:.1f} | {speed:.3f} | {same:.3f} |')
    if not on_cuda:
        reference = times["ONNX Runtime, the reference's export"]
        for name in ('ONNX Runtime, our export', 'ONNX Runtime, our int8 export', 'OpenVINO, our int8 export'):
            ratio = np.median(reference / times[name])
            print(f"{name}: {ratio:.3f} times as fast as the reference's export in ONNX Runtime")


def _to_numpy(labels) -> np.ndarray:
    return labels.cpu().numpy() if torch.is_tensor(labels) else np.asarray(labels)


def structured_image(height: int, width: int) -> np.ndarray:
    """[1, height, width, 3] uint8: patches of colour, whose edges noise would not have."""
    from PIL import Image

    patches = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))[None].copy()


if __name__ == '__main__':
    command.run(main)
