"""The contract of a network: all that the rest of the program may know of it.

Each file of models/ ends in a `Family`: its module, the names under which its forms are registered, and a function
that describes a module as a `Network`. Nothing outside models/ names a layer, a prefix, a stride or a number of heads.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.terms import ClassWeights, Term

GROUPS = ('backbone', 'head')  # of parameters; each can be frozen
UPSAMPLINGS = ('half_pixel', 'align_corners')


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What a network expects of an image: (value / scale - mean) / std for each channel, in the network's order.

    Attributes:
        mean: of the channels, in the network's order.
        std: likewise.
        scale: what pixel values 0..255 are divided by first.
        channels: the network's order, 'RGB' or 'BGR'.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 255.0
    channels: str = 'RGB'

    def __call__(self, images: jax.Array) -> jax.Array:
        """RGB pixel values 0..255, [..., 3] of any dtype -> float32, as the network takes them."""
        mean, std = self.in_pixel_values()
        images = images.astype(jnp.float32)
        return ((images if self.channels == 'RGB' else images[..., ::-1]) - mean) / std

    def inverse(self, images: jax.Array) -> jax.Array:
        """Normalised images, [..., 3] -> RGB pixel values, float32, not clipped."""
        mean, std = self.in_pixel_values()
        images = images * std + mean
        return images if self.channels == 'RGB' else images[..., ::-1]

    def in_pixel_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation in units of pixel values 0..255, [3] float32, in the network's order."""
        mean, std = (np.float32(self.scale) * np.array(values, np.float32) for values in (self.mean, self.std))
        return mean, std

    def mean_color(self) -> np.ndarray:
        """The colour that becomes 0, as RGB pixel values, [3] float32."""
        mean, _ = self.in_pixel_values()
        return mean if self.channels == 'RGB' else mean[::-1]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Modules of ours, and what a file of weights calls them.

    Attributes:
        path: regular expression for the whole path of a module that owns parameters, such as r'layer(\\d)/conv'.
        name: the file's name of it, a template for `re.Match.expand`.
        optional: a file may lack it, and then it starts fresh: heads that exist in training alone.
    """

    path: str
    name: str
    optional: bool = False


def conv_norm(path: str, conv: str, norm: str, optional: bool = False) -> tuple[Rule, Rule]:
    """The rules of a `ConvNorm`: its convolution and its batch normalisation."""
    return Rule(f'{path}/conv', conv, optional), Rule(f'{path}/bn', norm, optional)


def conv_bn(path: str, name: str, optional: bool = False) -> tuple[Rule, Rule]:
    """`conv_norm` where files, too, have one module with `conv` and `bn` in it."""
    return conv_norm(path, f'{name}.conv', f'{name}.bn', optional)


def prefixed(rules: Iterable[Rule], prefix: str) -> tuple[Rule, ...]:
    """The same rules for a file whose names begin with `prefix`."""
    return tuple(dataclasses.replace(rule, name=f'{prefix}{rule.name}') for rule in rules)


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """One vocabulary of weight files.

    Attributes:
        rules: of every module that owns parameters; the first one that fits a path counts.
        ignored: regular expression for names in files that are passed over.
        whole: module -> the module whose parameters such a file holds, where it has more than the module needs.
        void: numbers of outputs of published weights whose last output is for pixels of no class.
        heights: {number of outputs: height of the images that published weights with so many were trained on}.
        options: {number of outputs: options of the module that published weights with so many need}.
        adapt: a file's arrays by name -> as the network takes them, where a published file needs more than names.
        fixed: number of classes -> constant arrays that such a file also holds, such as kernels of fixed upsampling.
    """

    rules: tuple[Rule, ...]
    ignored: str = r'(?!)'
    whole: Callable[[Any], Any] = lambda module: module
    void: tuple[int, ...] = ()
    heights: Mapping[int, int] = dataclasses.field(default_factory=dict)
    options: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    adapt: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda arrays: arrays
    fixed: Callable[[int], Mapping[str, np.ndarray]] = lambda num_classes: {}

    def name_of(self, path: str) -> str | None:
        """The file's name of a module of ours; None where no rule fits."""
        for rule in self.rules:
            if match := re.fullmatch(rule.path, path):
                return match.expand(rule.name)
        return None

    def is_optional(self, path: str) -> bool:
        return next((rule.optional for rule in self.rules if re.fullmatch(rule.path, path)), False)


@dataclasses.dataclass(frozen=True)
class Published:
    """What is published of a network.

    Attributes:
        title: of the network, as tables print it.
        source: paper, and the code that the definition follows.
        parameters: of inference with 19 classes; exact for registered networks, held by a test.
        macs: ((height, width), multiply-accumulates of the convolutions) with 19 classes; likewise.
        notes: what published figures mean where they do not mean what their columns say.
        license: of the code that `source` names; 'none' where it has no licence. It does not bind this package, whose
            code is its own, but may bind weights.
        weights: the data sets that public weights are trained for, and whose they are; '' where there are none.
        rows: what the tables of `benchmark/published/` call the network; a name for each size, where it has several.
    """

    title: str
    source: str
    parameters: int | None = None
    macs: tuple[tuple[int, int], int] | None = None
    notes: str = ''
    license: str = ''
    weights: str = ''
    rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """What the rest of the program knows of one network.

    Attributes:
        terms: of the training loss; between them they take every training output.
        published: figures and sources.
        training_only: names of the modules at the top that only training has.
        in_backbone: path of a parameter -> whether it is of the group 'backbone'; all others are of 'head'.
        reduced: path of a parameter -> whether it takes the backbone's learning rate and weight decay. By default none
            does: the published recipe has one rate for all.
        normalization: of the images.
        multiple_of: sides that the module takes; others are padded at the right and the bottom with zeros after
            normalisation, and the outputs cut back.
        smallest: the least height and width that it takes.
        upsampling: how an output's pixels lie on the image, when it is enlarged or labels are reduced to its size:
            'half_pixel' or 'align_corners'.
        on_canvas: whether the module gives an image on a larger canvas (`ops.canvas`) what it gives it by itself. It
            does if its maps have power-of-two strides, sizes rounded up, and meet neighbouring pixels in `ops` alone.
        class_weights: how much each class counts in the loss, where the published recipe weighs them by their pixels.
        weights: vocabularies of whole networks; the first one is written by `to_torch`.
        backbones: vocabularies of files that hold the backbone alone; none where no such file is known.
    """

    terms: tuple[Term, ...]
    published: Published
    training_only: tuple[str, ...] = ()
    in_backbone: Callable[[tuple[str, ...]], bool] = lambda path: False
    reduced: Callable[[tuple[str, ...]], bool] = lambda path: False
    normalization: Normalization = IMAGENET
    multiple_of: int = 1
    smallest: int = 1
    upsampling: str = 'half_pixel'
    on_canvas: bool = False
    class_weights: ClassWeights | None = None
    weights: Sequence[WeightNames] = ()
    backbones: Sequence[WeightNames] = ()

    def __post_init__(self):
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(f'upsampling={self.upsampling!r}: must be one of {", ".join(UPSAMPLINGS)}')

    def with_fresh(self, modules: Sequence[str]) -> 'Network':
        """The same, but parameters of `modules` (paths such as 'layer4/block0') are none of the backbone's."""

        def is_fresh(path):
            return '/'.join(path).startswith(tuple(f'{module}/' for module in modules))

        def in_backbone(path):
            return not is_fresh(path) and self.in_backbone(path)

        def reduced(path):
            return not is_fresh(path) and self.reduced(path)

        return dataclasses.replace(self, in_backbone=in_backbone, reduced=reduced)


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks of one module.

    Attributes:
        module: a Flax module with attributes `num_classes`, `dtype` and options with defaults;
            __call__(images, train) -> {'logits': ..., and with `train` other outputs by name}.
        describe: the contract of a module with its options.
        variants: {registered name: options that make it}.
        choices: {option: the words that it may be}.
        least: {option of a whole number: its least value, where that is not 1}.
        multiples: {option of a whole number: what it must be a multiple of}.
        changeable: options that may change where weights have been trained, because these fit and mean the same.
        check: raises ValueError, naming the option, where a module's options cannot work for other reasons.
    """

    module: type[nn.Module]
    describe: Callable[[Any], Network]
    variants: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    least: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    changeable: Sequence[str] = ()
    check: Callable[[Any], None] = lambda module: None

    def options(self) -> dict[str, Any]:
        """The options of the module, with their defaults."""
        of_every_module = 'parent', 'name', 'num_classes', 'dtype'
        fields = dataclasses.fields(self.module)
        return {field.name: field.default for field in fields if field.name not in of_every_module}

    def check_options(self, module: nn.Module) -> None:
        """Raises ValueError, naming the option, where the options of a module cannot work.

        Beside what the attributes say: kernel sizes are odd, dropout rates from 0 to below 1, and a tuple whose
        default holds whole numbers holds whole numbers.
        """
        for option, default in self.options().items():
            value = getattr(module, option)
            least, choices = self.least.get(option, 1), self.choices.get(option)
            holds_counts = type(default) is tuple and default and type(default[0]) is int
            if choices and value not in choices:
                wanted = f'must be one of {", ".join(choices)}'
            elif option.endswith('kernel_size') and (value < 1 or value % 2 == 0):
                wanted = 'must be odd and greater than 0'
            elif type(default) is int and value < least:
                wanted = 'must be greater than 0' if least == 1 else f'must be {least} or more'
            elif type(default) is int and value % self.multiples.get(option, 1):
                wanted = f'must be a multiple of {self.multiples[option]}'
            elif holds_counts and any(type(each) is not int for each in value):
                wanted = 'must be whole numbers'
            elif option == 'dropout_rate' and not 0 <= value < 1:
                wanted = 'must be from 0 to below 1'
            else:
                continue
            raise ValueError(f'{option}={value!r}: {wanted}')
        self.check(module)


def pad_to_multiple(images: jax.Array, multiple: int) -> jax.Array:
    """[B, H, W, C], padded at the bottom and the right with zeros until `multiple` divides both sides."""
    bottom, right = (-length % multiple for length in images.shape[1:3])
    return jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0))) if bottom or right else images


def cut_back(
    outputs: Mapping[str, jax.Array], padded: Sequence[int], size: Sequence[int], upsampling: str
) -> dict[str, jax.Array]:
    """Outputs [B, h, w, C] of images that were padded to `padded`, without what lies beyond `size`, (height, width).

    Where no pixel of an output ends at the image's border, the output is enlarged to `padded` before it is cut. Pixels
    that are cut as a whole would be stretched to the wrong places later.
    """

    def cut(output):
        if any(new * n % old for n, old, new in zip(output.shape[1:3], padded, size, strict=True)):
            output = ops.resize(output, tuple(padded), upsampling)
        rows, columns = (new * n // old for n, old, new in zip(output.shape[1:3], padded, size, strict=True))
        return output[:, :rows, :columns]

    return {name: cut(output) for name, output in outputs.items()}
