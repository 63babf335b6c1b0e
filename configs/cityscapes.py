"""The paper's Cityscapes run: 74.4% mIoU on the test server, 75.58% on val at full size (Table 4, 200 epochs).

    python main.py --config=configs/cityscapes.py --workdir=runs/cityscapes --config.data.root=/path/to/cityscapes

Needs leftImg8bit and gtFine unpacked in the root. 200 epochs are 148,750 steps; --config.model.dtype=bfloat16 makes
them faster on a GPU or TPU. The published run starts from an ImageNet backbone: where you have torchvision's file, add
--config.model.pretrained_backbone=resnet18.pth.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config(network: str = 'atonet') -> ConfigDict:
    return default_config(network)
