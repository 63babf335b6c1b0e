"""Frames a second of `--mode=predict` on a video, against the bare network's on the same frames; and where time goes.

    python -m benchmarks.video --workdir runs/demo

Makes a video of the synthetic scenes through which a camera pans, and predicts it with the weights of a run. The bare
network has the frames decoded in memory, and throws its label maps away. The ways take turns, so that disturbances hit
all alike: medians of the rounds, and medians of their ratios. Then each stage runs alone, one frame after the other;
its CPU time counts all cores.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from atonet_jax.data.synthetic.scene import render_scene
from atonet_jax.inference import Segmenter
from atonet_jax.predict import Job
from atonet_jax.predict.batches import predicted
from atonet_jax.predict.inputs import Source
from atonet_jax.predict.labeling import Labeler
from atonet_jax.predict.outputs import Drawing, write_label_png
from atonet_jax.predict.video import Video, VideoFile
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.timing import in_turns
from atonet_jax.runs.environment import cpu_name
from atonet_jax.runs.network import trained_network
from atonet_jax.runs.workdir import load_config
from benchmarks import command

KINDS = ('color', 'overlay', 'side_by_side')
WAYS = {'predict: overlay': ('overlay',), 'predict: all four kinds': ('labels', *KINDS)}
STEP = 8  # pixels that the camera pans from frame to frame
RATE = 25.0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='of a run')
    parser.add_argument('--size', type=command.size, default=(720, 1280), help='HxW')
    parser.add_argument('--frames', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=5)
    arguments = parser.parse_args(argv)

    config = load_config(arguments.workdir)
    config.predict.batch_size = 1
    network = trained_network(config, arguments.workdir, create_mesh())
    label = Labeler(config, network)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'street.mp4')
        write_video(path, arguments.frames, *arguments.size)
        source = Source(path, 'street')
        with Video(source, max_pixels=arguments.size[0] * arguments.size[1]) as video:
            frames = list(video)

        def bare():
            for _ in predicted(enumerate(frames), label, 1):
                pass

        def predict(job):
            job.run([source])
            assert not job.failures, job.failures

        ways = {'bare network': bare}
        for name, config.predict.pictures in WAYS.items():
            job = Job(config.copy_and_resolve_references(), network, os.path.join(folder, 'out'))
            ways[name] = partial(predict, job)
        times = in_turns(ways, arguments.rounds)
        device = jax.devices()[0].device_kind if jax.default_backend() != 'cpu' else f'{os.cpu_count()} cores'
        print(f'{cpu_name()}, {device}; {config.model.name}, {config.model.dtype}; {arguments.size[0]}x'
              f'{arguments.size[1]}, {len(frames)} frames, {arguments.rounds} rounds')  # fmt: skip
        print('| | ms a frame | CPU ms a frame | frames/s | share of the bare rate, % |\n|---|---|---|---|---|')
        for name, of_way in times.items():
            wall, cpu = np.median(of_way, axis=0) / len(frames)
            share = 100 * np.median(times['bare network'][:, 0] / of_way[:, 0])
            print(f'| {name} | {1e3 * wall:.1f} | {1e3 * cpu:.1f} | {1 / wall:.2f} | {share:.1f} |')
        print('\n| stage | ms a frame | CPU ms a frame |\n|---|---|---|')
        for name, wall, cpu in stages(frames, source, Segmenter.of(network), network.class_table, folder):
            print(f'| {name} | {wall:.1f} | {cpu:.1f} |')


def write_video(path: str, count: int, height: int, width: int) -> None:
    """A camera pans over scenes, each twice as wide as a frame."""
    pans = width // STEP
    with VideoFile(path, RATE) as file:
        for i in range(count):
            if i % pans == 0:
                scene, _ = render_scene(seed=0, index=i // pans, height=height, width=2 * width)
            left = i % pans * STEP
            file.write(scene[:, left : left + width])


def stages(frames, source, segment, table, folder) -> Iterator[tuple[str, float, float]]:
    """(name, ms, CPU ms) a frame of each stage alone."""

    def timed(name, function, inputs):
        start, cpu_start = time.perf_counter(), time.process_time()
        results = [function(of_frame) for of_frame in inputs]
        taken = time.perf_counter() - start, time.process_time() - cpu_start
        return results, (name, *(1e3 * seconds / len(results) for seconds in taken))

    def to_device(frame):
        return jax.block_until_ready(jax.device_put(frame[None]))

    def drawings():
        return [Drawing(frame, of_frame, table, range(table.num_classes)) for frame, of_frame in pairs]

    with Video(source, frames[0].size) as video:
        yield timed('decode', lambda frame: frame, video)[1]
    on_device, times = timed('copy to the device', to_device, frames)
    yield times
    labels, times = timed('network', lambda frame: jax.block_until_ready(segment(frame)), on_device)
    yield times
    labels, times = timed('copy to the host', lambda of_frame: np.array(of_frame)[0], labels)
    yield times
    pairs = list(zip(frames, labels, strict=True))
    path = os.path.join(folder, 'labels.png')
    yield timed('write labels as PNG', lambda of_frame: write_label_png(of_frame, path, table, 'train'), labels)[1]
    for kind in KINDS:
        pictures, times = timed(f'draw {kind}', lambda drawing, kind=kind: drawing.picture(kind), drawings())
        yield times
        with VideoFile(os.path.join(folder, 'stage.mp4'), RATE) as file:
            yield timed(f'encode {kind}', file.write, pictures)[1]


if __name__ == '__main__':
    command.run(main)
