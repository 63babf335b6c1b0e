"""SwiftNet's ensemble: the networks for a single scale and for a pyramid of images, side by side.

Oršić, Krešo, Bevandić, Šegvić (CVPR 2019). Each is trained for itself; the ensemble averages their probabilities at the
image's size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models import swiftnet, swiftnet_pyramid
from atonet_jax.models.contract import Family, Network, Published, WeightNames, prefixed
from atonet_jax.models.resnet import in_resnet

PARTS = {'single': swiftnet, 'pyramid': swiftnet_pyramid}  # names of the networks within the ensemble


class SwiftNetEnsemble(nn.Module):
    """Both SwiftNets.

    Attributes:
        num_classes: classes to tell apart.
        single_form: of `swiftnet.SwiftNet`; '2020' has the published parameters.
        pyramid_form: of `swiftnet_pyramid.SwiftNetPyramid`; '2019' has the published parameters.
        levels: images of the pyramid.
        width: channels of both decoders.
        backbone_width: channels of the stem and of layer1, in both.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    single_form: str = '2020'
    pyramid_form: str = '2019'
    levels: int = 2
    width: int = 128
    backbone_width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised as for the pyramid; 2^(levels - 1) divides H and W.

        Returns {'logits': [B, H, W, num_classes] float32}, logarithms of the average probabilities. With `train`, where
        'batch_stats' must be mutable, 'logits' are those of the single scale and 'pyramid' those of the pyramid, each
        at a quarter of the image's size.
        """
        parts, contracts = self.parts(), self.contracts()
        pixels = contracts['pyramid'].normalization.inverse(images)
        is_alike = contracts['single'].normalization == contracts['pyramid'].normalization
        inputs = {
            'single': images if is_alike else contracts['single'].normalization(pixels),
            'pyramid': images,
        }
        single, pyramid = (
            part.clone(name=name, parent=self)(inputs[name], train)['logits'] for name, part in parts.items()
        )
        if train:
            return {'logits': single, 'pyramid': pyramid}
        size = images.shape[1:3]
        logarithms = [jax.nn.log_softmax(ops.resize_bilinear(logits, size)) for logits in (single, pyramid)]
        return {'logits': jnp.logaddexp(*logarithms) - jnp.log(2.0)}

    def parts(self) -> dict[str, nn.Module]:
        """The two networks, unbound."""
        common = {
            'num_classes': self.num_classes,
            'width': self.width,
            'backbone_width': self.backbone_width,
            'dtype': self.dtype,
            'parent': None,
        }
        return {
            'single': swiftnet.SwiftNet(form=self.single_form, **common),
            'pyramid': swiftnet_pyramid.SwiftNetPyramid(form=self.pyramid_form, levels=self.levels, **common),
        }

    def contracts(self) -> dict[str, Network]:
        """What the two networks declare."""
        return {name: PARTS[name].describe(part) for name, part in self.parts().items()}


def check(model: SwiftNetEnsemble) -> None:
    """Raises ValueError where an option cannot work."""
    for name, part in model.parts().items():
        PARTS[name].FAMILY.check_options(part)


def describe(model: SwiftNetEnsemble) -> Network:
    single, pyramid = contracts = tuple(model.contracts().values())
    (single_term,), (pyramid_term,) = (contract.terms for contract in contracts)
    forms = model.single_form, model.pyramid_form, model.levels
    parameters, macs = (24_694_415, 249_502_746_624) if forms == ('2020', '2019', 2) else (None, None)
    return Network(
        terms=(single_term, dataclasses.replace(pyramid_term, output='pyramid')),
        in_backbone=lambda path: in_resnet(path[1:]),
        reduced=lambda path: in_resnet(path[1:]),
        normalization=pyramid.normalization,
        multiple_of=pyramid.multiple_of,
        weights=(_both(*single.weights, *pyramid.weights, '{}.'),),
        backbones=(_both(*single.backbones, *pyramid.backbones, ''),),
        published=Published(
            title='SwiftNetRN-18 ens',
            source='Oršić et al.: CVPR 2019, arXiv 1903.08469, and their code',
            parameters=parameters,
            macs=macs and ((1024, 2048), macs),
            license='GPL-3.0',
            rows=('SwiftNetRN-18 ens',),
            notes='24.7 M and 218 GFLOPs of Table 1 are sums of the two networks',
        ),
    )


def _both(single: WeightNames, pyramid: WeightNames, prefix: str) -> WeightNames:
    """The vocabularies of the two networks as one; their names begin with `prefix`, of the network's name."""
    rules = tuple(
        dataclasses.replace(rule, path=f'{part}/(?:{rule.path})')
        for part, names in zip(PARTS, (single, pyramid), strict=True)
        for rule in prefixed(names.rules, prefix.format(part))
    )

    def fixed(num_classes):
        return {
            f'{prefix.format(part)}{name}': array
            for part, names in zip(PARTS, (single, pyramid), strict=True)
            for name, array in names.fixed(num_classes).items()
        }

    return WeightNames(rules, ignored=rf'(?:\w+\.)?(?:{single.ignored}|{pyramid.ignored})', fixed=fixed)


FAMILY = Family(
    SwiftNetEnsemble,
    describe,
    {'swiftnet_ens': {}},
    choices=dict.fromkeys(('single_form', 'pyramid_form'), swiftnet.FORMS),
    check=check,
)
