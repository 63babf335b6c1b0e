"""ATONet's Cityscapes run: the paper reports 74.4% mIoU on the test server, 75.58% on val at full size (Table 4).

    python main.py --config=configs/cityscapes.py --workdir=runs/cityscapes --config.data.root=/path/to/cityscapes

Needs leftImg8bit and gtFine, unpacked in the root. Trains for 200 epochs, which are 148,750 steps. The paper's run
starts from an ImageNet backbone: with torchvision's file, add --config.model.pretrained_backbone=resnet18.pth. Without
it, add --config.optimizer.backbone_factor=1.0. --config.model.dtype=bfloat16 is faster on a GPU or TPU. The figures
are the paper's; they have not been repeated here.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config(network: str = 'atonet') -> ConfigDict:
    return default_config(network)
