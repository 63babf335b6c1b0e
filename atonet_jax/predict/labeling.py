"""Which program labels a picture."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.inference.canvases import Canvases, programs_of
from atonet_jax.inference.programs import Programs
from atonet_jax.inference.segmenter import Segmenter, prepared_variables
from atonet_jax.inference.views import Views, predict_labels, winograd_pays
from atonet_jax.inference.windows import SlidingWindows
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import TrainedNetwork


class Labeler:
    """Pictures or frames to label maps, in the views of `config.eval`.

    Attributes:
        program_of: size -> what pictures of it have in common with others that can go through the network together.
        programs: how many the sizes that were given need.
    """

    def __init__(
        self,
        config: ConfigDict,
        trained: TrainedNetwork,
        sizes: Mapping[tuple[int, int], float] | None = None,
    ):
        """
        Args:
            config: of the call.
            trained: the network.
            sizes: {(height, width): number of pictures}, as far as they are known. None: of frames, which are many of
                one size.
        """
        views, sizes = Views.of(config.eval), sizes or {}
        self.program_of: Callable[[tuple[int, int]], Hashable] = programs_of(sizes, trained.model, views)
        self.programs = len({self.program_of(size) for size in sizes})
        self._label = _label_function(config, trained, views, winograd_pays(sizes, self.programs, views))

    def __call__(self, images: Sequence[np.ndarray]) -> jax.Array:
        """[H, W, 3] uint8 RGB each, of one program -> [B, H', W'] uint8 train ids: each label map is at the upper left.

        They are on the devices, which may not have computed them yet.
        """
        program = self.program_of(images[0].shape[:2])
        if isinstance(program, Canvases):
            return self._label.on_canvas(images, program.step)
        return self._label(np.stack(images))

    def compile(self, shape: tuple[int, int, int]) -> None:
        """Compiles the program for (batch, height, width), where it can be compiled by itself."""
        if isinstance(self._label, Segmenter):
            program = self.program_of(shape[1:])
            if isinstance(program, Canvases):
                self._label.compile('on_canvas', shape, program.step)
            else:
                self._label.compile('__call__', shape)


def _label_function(
    config: ConfigDict, trained: TrainedNetwork, views: Views, winograd: bool
) -> Callable[[np.ndarray], jax.Array]:
    """[B, H, W, 3] uint8 RGB -> [B, H, W] uint8 train ids."""
    if views.is_one:
        return Segmenter.of(trained, winograd=winograd)
    mesh = create_mesh()
    if views.window:
        label = SlidingWindows(trained.model, mesh, views, config.predict.batch_size)
    else:
        programs = Programs(lambda _: jax.jit(partial(predict_labels, trained.model, views=views)))

        def label(variables, images):
            return programs(images.shape)(variables, images)

    return partial(label, prepared_variables(trained.model, trained.variables, mesh, winograd))
