"""DeepLab-LargeFOV: Chen, Papandreou, Kokkinos, Murphy, Yuille, "Semantic Image Segmentation with Deep Convolutional
Nets and Fully Connected CRFs" (ICLR 2015), without the CRF.

A VGG16 that stops shrinking at an eighth of the image: its last block is dilated instead, and so is the first of its
fully connected layers, which sees a large field with few weights. Layers follow the authors' definition for Caffe.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Conv, kaiming_fan_in_init
from atonet_jax.models.contract import IMAGENET, Family, Network, Normalization, Published, Rule, WeightNames
from atonet_jax.models.terms import Term
from atonet_jax.models.vgg import TORCHVISION_RULES, vgg16_block

CAFFE = Normalization((104.008, 116.669, 122.675), scale=1.0, channels='BGR')


class DeepLabLargeFOV(nn.Module):
    """The network whose "large field of view" the paper's Section 4.2 compares with others.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of the first block; those of the other blocks are multiples of it.
        fc_features: channels of fc6 and fc7.
        caffe_sizes: pools of stride 2 round up as in Caffe, n -> floor(n / 2) + 1, instead of n -> ceil(n / 2). Sides
            8 * k + 1 give the same in both. Logits are also resized as there, with corners on corners.
        caffe_images: images are BGR minus a mean, as weights from Caffe take them, instead of ImageNet's usual RGB.
        dropout_rate: share of the values of fc6 and fc7 that training zeroes.
        dtype: compute type, float32 or bfloat16. Parameters and logits are float32 in both.
    """

    num_classes: int
    width: int = 64
    fc_features: int = 1024
    caffe_sizes: bool = False
    caffe_images: bool = False
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, h, w, num_classes] float32}; (h, w) is (ceil(H / 8), ceil(W / 8)), or with `caffe_sizes`
        up to one more. With `train`, a 'dropout' key must be given.
        """
        halve = partial(ops.max_pool, window=3, stride=2, padding=1, ceil=self.caffe_sizes)
        smooth = partial(ops.max_pool, window=3, stride=1, padding=1)
        block = partial(vgg16_block, width=self.width, dtype=self.dtype)
        fully_connected = partial(Conv, self.fc_features, use_bias=True, kernel_init=kaiming_fan_in_init,
                                  bias_init=nn.initializers.zeros, dtype=self.dtype)  # fmt: skip
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x = halve(block(images, 1))
        x = halve(block(x, 2))
        x = halve(block(x, 3))
        x = smooth(block(x, 4))
        x = smooth(block(x, 5, dilation=2))
        x = ops.avg_pool(x, 3, 1, 1)
        x = dropout()(nn.relu(fully_connected(kernel_size=3, dilation=12, name='fc6')(x)))
        x = dropout()(nn.relu(fully_connected(kernel_size=1, name='fc7')(x)))
        fc8 = Conv(self.num_classes, 1, use_bias=True, kernel_init=nn.initializers.normal(0.01),
                   bias_init=nn.initializers.zeros, name='fc8')  # fmt: skip
        return {'logits': fc8(x)}


def describe(model: DeepLabLargeFOV) -> Network:
    return Network(
        terms=(Term('logits', at='output'),),
        in_backbone=lambda path: not path[0].startswith('fc'),
        reduced=lambda path: path[0] != 'fc8',  # it alone has ten times the rate in the published recipe
        normalization=CAFFE if model.caffe_images else IMAGENET,
        upsampling='align_corners' if model.caffe_sizes else 'half_pixel',
        on_canvas=True,
        weights=(_NAMES,),
        backbones=(WeightNames(TORCHVISION_RULES, ignored=r'classifier\..*'),),
        published=Published(
            title='DeepLab-LargeFOV',
            source='Chen et al.: ICLR 2015, and their Caffe code, without the CRF',
            parameters=20_503_379,
            macs=((512, 1024), 255_606_205_440 if model.caffe_sizes else 251_247_198_208),
            license='not known',
            rows=('DeepLab',),
            notes='the printed 61.6 % on CamVid were not measured at 720x960, the size of the printed 4.9 FPS',
        ),
    )


# A PyTorch copy (github.com/wangleihitcs/DeepLab-V1-PyTorch) numbers its layers, and so do torchvision's VGG16 files.
_NAMES = WeightNames(
    (*TORCHVISION_RULES, Rule('fc6', 'features.32'), Rule('fc7', 'features.35'), Rule('fc8', 'features.38'))
)

FAMILY = Family(
    DeepLabLargeFOV,
    describe,
    {'deeplab_largefov': {}, 'deeplab': {}},
    changeable=('dropout_rate',),
)
