"""What a network declares of its training loss: the terms, each a frozen dataclass without code.

`training.losses` computes them. A network lists its terms, and the loss is their weighted sum:

    terms=(
        Term('logits'),
        Term('aux4', weight=0.4, at='output'),
        Term('boundary', weight=20.0, target=Edges(), criterion=BalancedBinaryCrossEntropy()),
    )
"""

import dataclasses

SIZES = ('labels', 'output')


def _one_of(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{field}={value!r}: must be one of {", ".join(choices)}')


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, averaged over the labelled pixels.

    Attributes:
        over: 'labelled': a mean weighted by the pixels' class weights, as in torch. 'all': the sum of weight * loss is
            divided by the number of all pixels, ignored ones too, as in HRNet's and PIDNet's code.
    """

    over: str = 'labelled'

    def __post_init__(self):
        _one_of('CrossEntropy.over', self.over, ('labelled', 'all'))


@dataclasses.dataclass(frozen=True)
class HardExampleShare:
    """Cross-entropy over hard pixels: online hard example mining by a share of the pixels, as in BiSeNet.

    A pixel counts where the probability of its true class is at most max(threshold, the k-th smallest probability);
    k is `min_kept` times the term's pixels. Ignored pixels have probability 1. The mean is weighted by class weights.

    Attributes:
        threshold: probability, 0 .. 1.
        min_kept: share of the term's pixels in the batch, 0 .. 1.
    """

    threshold: float = 0.7
    min_kept: float = 1 / 16


@dataclasses.dataclass(frozen=True)
class HardExampleCount:
    """Cross-entropy over hard pixels: online hard example mining by a number of pixels, as in HRNet, PIDNet and DDRNet.

    The probabilities of the n labelled pixels' true classes are sorted upwards. A pixel counts where its probability is
    below max(threshold, the one at index min(min_kept, n - 1)). The sum of weight * loss is divided by the number of
    pixels that count.

    Attributes:
        threshold: probability, 0 .. 1.
        min_kept: pixels of the batch.
    """

    threshold: float = 0.9
    min_kept: int = 131_072


@dataclasses.dataclass(frozen=True)
class BootstrappedCrossEntropy:
    """The mean of the largest losses of each image, then the mean over images, as in FRRN.

    Attributes:
        count: losses of each image that count; all of a smaller image. Ignored pixels have loss 0.
    """

    count: int = 512 * 64


@dataclasses.dataclass(frozen=True)
class BoundaryWeightedCrossEntropy:
    """Cross-entropy that weighs pixels near another class more, as SwiftNet with a pyramid of images has it.

    The loss is the sum of a * exp(focus * (1 - p)) * -log p, divided by the number of labelled pixels. p is the
    probability of the true class; no gradient flows through the exp. a depends on the distance to the nearest pixel of
    another class in the label map; ignored pixels are another class.

    Attributes:
        distances: in pixels, ascending.
        weights: a below each distance, and beyond the last one.
        focus: factor in the exponent.
    """

    distances: tuple[int, ...] = (16, 64, 128)
    weights: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    focus: float = 0.5


@dataclasses.dataclass(frozen=True)
class BalancedBinaryCrossEntropy:
    """Sigmoid cross-entropy of one logit a pixel with a 0/1 target, the mean over all pixels, as in PIDNet.

    Positive pixels are weighted by the share of negative pixels in the batch, and negative ones by that of positive.
    """


@dataclasses.dataclass(frozen=True)
class ExcessMean:
    """How far the mean of an output is above a limit: max(0, mean - limit). No label is compared.

    Attributes:
        limit: of the mean.
    """

    limit: float


Criterion = (
    CrossEntropy
    | HardExampleShare
    | HardExampleCount
    | BootstrappedCrossEntropy
    | BoundaryWeightedCrossEntropy
    | BalancedBinaryCrossEntropy
    | ExcessMean
)


@dataclasses.dataclass(frozen=True)
class InverseLogShare:
    """Class weights 1 / ln(offset + share), as in ENet.

    The share is that of the class among all pixels of the training labels, ignored ones too.

    Attributes:
        offset: greater than 1; the larger it is, the more alike the weights are.
    """

    offset: float = 1.02


@dataclasses.dataclass(frozen=True)
class MedianFrequency:
    """Class weights median / frequency: median frequency balancing, as in SegNet.

    The frequency is the share of the class among the labelled pixels of the images that show it. The median is over
    the classes that occur.
    """


@dataclasses.dataclass(frozen=True)
class InverseRootShare:
    """Class weights 1 / sqrt(share), milder than the share itself.

    The share is that of the class among the labelled pixels, which have weight 1 on average. A class without any pixel
    has the largest weight of the others.
    """


ClassWeights = InverseLogShare | MedianFrequency | InverseRootShare


@dataclasses.dataclass(frozen=True)
class Edges:
    """Target 1 on the edges of the label map and 0 elsewhere, as in PIDNet: Canny's edges, made wider.

    They are made on the device from the crop that the loss sees. PIDNet's code makes them before scaling and cropping.

    Attributes:
        border: pixels along the map's border that hold no edge before it is made wider.
        width: side of the box of ones that makes edges wider; 1 leaves them alone.
    """

    border: int = 0
    width: int = 4


@dataclasses.dataclass(frozen=True)
class LabelsOnEdges:
    """The labels, where a network's own edge logit is high; ignored elsewhere.

    Attributes:
        output: the edge logits, [B, h, w, 1].
        threshold: a label stays where sigmoid(logit) is above this.
    """

    output: str = 'boundary'
    threshold: float = 0.8


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the training loss.

    Attributes:
        output: key of the network's training outputs, [B, h, w, C] float32.
        weight: of the term in the sum.
        target: 'labels', `Edges` or `LabelsOnEdges`; 'nothing' goes with `ExcessMean`.
        criterion: how output and target become one number.
        at: the size of the comparison. 'labels': the output is enlarged to the label map's size, as the network
            enlarges its logits. 'output': the target is brought to the output's size by nearest neighbour.
        name: of the term in the metrics, without '_loss'. By default 'main' for the output 'logits' and the output's
            name for others; with `LabelsOnEdges` the output's name and '_on_edges'.
    """

    output: str
    weight: float = 1.0
    target: str | Edges | LabelsOnEdges = 'labels'
    criterion: Criterion = CrossEntropy()
    at: str = 'labels'
    name: str = ''

    def __post_init__(self):
        _one_of('Term.at', self.at, SIZES)
        if not isinstance(self.target, Edges | LabelsOnEdges):
            _one_of('Term.target', self.target, ('labels', 'nothing', 'Edges(...)', 'LabelsOnEdges(...)'))
        if isinstance(self.target, Edges) != isinstance(self.criterion, BalancedBinaryCrossEntropy):
            raise ValueError(f'Term of {self.output!r}: Edges and BalancedBinaryCrossEntropy go together alone')
        if (self.target == 'nothing') != isinstance(self.criterion, ExcessMean):
            raise ValueError(f"Term of {self.output!r}: target='nothing' and ExcessMean go together alone")

    @property
    def loss_name(self) -> str:
        """The term's name in the metrics."""
        name = self.output
        if isinstance(self.target, LabelsOnEdges):
            name += '_on_edges'
        elif name == 'logits':
            name = 'main'
        return f'{self.name or name}_loss'
