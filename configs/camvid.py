"""CamVid, any network: crops of the size of its frames, so 360x480 in the repack and 720x960 in the original.

    python main.py --config=configs/camvid.py --workdir=runs/camvid --config.data.root=/path/to/camvid
    python main.py --config=configs/camvid.py:pidnet_s --workdir=runs/pidnet --config.data.root=/path/to/camvid

Trains on train+val (468 frames), from random weights, and scores on test (233). These flags make the result better:

    --config.model.pretrained_backbone=resnet18.pth --config.optimizer.backbone_factor=0.5
        starts from torchvision's ImageNet ResNet-18
    --config.data.scale_range=1.0,2.25 --config.eval.height=720
        also enlarges the frames of the repack, in training and inference
    --config.data.scale_range=1.5,2.25 --config.eval.height=720 --config.data.crop_size=540,720
        the same with larger crops, which gave the best result with --config.train.batch_size=4

docs/results.md has the results, and how the recipe was chosen. ATONet's own recipe for CamVid is atonet_camvid in
configs/published.py.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config

# Share of the labelled pixels of train to the power -0.4; 1 on average over pixels.
CLASS_WEIGHTS = (0.92, 0.81, 2.87, 0.72, 1.56, 1.15, 2.68, 2.72, 1.41, 3.41, 4.67)


def get_config(network: str = 'atonet') -> ConfigDict:
    config = default_config(network)
    config.data.update(
        name='camvid',
        root='data/camvid',
        train_split='train+val',
        eval_split='test',
        crop_size=(),
        scale_range=(0.5, 2.0),
    )
    config.data.augmentation.update(brightness=0.3, contrast=0.3, saturation=0.3)
    config.loss.class_weights = CLASS_WEIGHTS
    config.optimizer.update(name='adamw', learning_rate=1e-3, weight_decay=0.02, backbone_factor=1.0, ema_decay=0.998)
    config.schedule.update(per='step', warmup_epochs=2.0)
    config.train.update(batch_size=16, epochs=100.0, eval_every_epochs=100.0)
    config.eval.update(batch_size=4, checkpoint='latest')  # test chooses nothing
    return config
