"""Memory that one label map takes, ours beside the plain way, as XLA plans it.

    python -m benchmarks.inference_memory --size 1024x2048

The plain way is what a user writes first, each line jitted: normalise, apply the network, resize the logits, argmax.
Its peak is that of the greediest line, with the arrays that earlier lines left. Weights are counted apart.
"""

import argparse
import platform

import jax
import jax.numpy as jnp

from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import create_model, init_variables
from atonet_jax.models.contract import IMAGENET
from benchmarks import command


def planned_bytes(program: jax.stages.Compiled) -> int:
    """Outputs and temporaries."""
    memory = program.memory_analysis()
    return memory.output_size_in_bytes + memory.temp_size_in_bytes


def num_bytes(tree) -> int:
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(tree))


def plain_peak(model, variables, images: jax.ShapeDtypeStruct) -> int:
    size = images.shape[1:3]
    lines = [
        IMAGENET,
        lambda x: model.apply(variables, x, train=False)['logits'],
        lambda logits: jax.image.resize(logits, (*logits.shape[:1], *size, logits.shape[3]), 'bilinear'),
        lambda logits: jnp.argmax(logits, -1).astype(jnp.uint8),
    ]
    held, peak, x = num_bytes(images), 0, images
    for line in lines:
        peak = max(peak, held + planned_bytes(jax.jit(line).lower(x).compile()))
        x = jax.eval_shape(line, x)
        held += num_bytes(x)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=command.size, default=(1024, 2048), help='of the image, HxW')
    arguments = parser.parse_args()
    model = create_model('atonet', 19)
    variables = init_variables(model, 0)
    images = jax.ShapeDtypeStruct((1, *arguments.size, 3), jnp.uint8)

    program = Segmenter(model, variables).compile('__call__', images.shape[:3])
    ours = num_bytes(images) + planned_bytes(program)
    weights = program.memory_analysis().argument_size_in_bytes - num_bytes(images)
    plain = plain_peak(model, variables, images)
    height, width = arguments.size
    print(f'{platform.machine()}, {jax.default_backend()}; {height}x{width}')
    print('| way | MB a label map | MB of weights |')
    print('|---|---|---|')
    print(f'| plain | {plain / 1e6:.0f} | {num_bytes(variables) / 1e6:.0f} |')
    print(f'| ours | {ours / 1e6:.0f} | {weights / 1e6:.0f} |')
    print(f"ours takes {ours / plain:.3f} of the plain way's memory")


if __name__ == '__main__':
    command.run(main)
