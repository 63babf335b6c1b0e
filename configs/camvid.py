"""ATONet's CamVid run: the paper reports 70.1% mIoU on the 233 test frames (Table 2).

    python main.py --config=configs/camvid.py --workdir=runs/camvid --config.data.root=/path/to/camvid
    python main.py --config=configs/camvid.py:pidnet_s --workdir=runs/pidnet --config.data.root=/path/to/camvid

Trains on train+val (468 frames of 720x960) for 400 epochs, 11,700 steps. The paper's run starts from an ImageNet
backbone: with torchvision's file, add --config.model.pretrained_backbone=resnet18.pth. The figure is the paper's. It
has not been repeated here. The second command trains another network by the same recipe.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config(network: str = 'atonet') -> ConfigDict:
    config = default_config(network)
    config.data.update(
        name='camvid', root='data/camvid', train_split='train+val', eval_split='test', crop_size=(720, 720)
    )
    config.train.update(batch_size=16, epochs=400.0)
    config.eval.batch_size = 4
    return config
