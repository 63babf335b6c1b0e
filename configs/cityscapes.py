"""The paper's Cityscapes run: 74.4% mIoU on the test server, 75.58% on val at full size (Table 4, 200 epochs).

    python main.py --config=configs/cityscapes.py --workdir=runs/cityscapes --config.data.root=/path/to/cityscapes

Needs leftImg8bit and gtFine unpacked in the root, and about 30 GB of GPU memory at batch 4 in float32
(--config.model.dtype=bfloat16 takes half). 148,750 steps. The published run starts from an ImageNet backbone.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config() -> ConfigDict:
    return default_config()
