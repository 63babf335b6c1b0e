"""For tests: ATONet with 16 channels, or SegNet-Basic with 8, on a few scenes of 64x128. A run takes seconds and learns
nothing useful.

    python main.py --config=configs/tiny.py --workdir=runs/tiny
    python main.py --config=configs/tiny.py:segnet_basic --workdir=runs/tiny_basic
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config(network: str = 'atonet') -> ConfigDict:
    config = default_config(network)
    if network == 'atonet':
        config.model.update(width=16, backbone_width=8)
    if network == 'segnet_basic':
        config.model.width = 8
    config.data.update(name='synthetic', root='data/tiny', crop_size=(64, 64), scale_range=(0.75, 1.25))
    config.data.synthetic.update(train_scenes=12, val_scenes=5, height=64, width=128)
    config.optimizer.update(learning_rate=0.05, backbone_factor=1.0)
    config.schedule.per = 'step'
    config.train.update(epochs=2.0, log_every_steps=1, checkpoint_every_steps=2, eval_every_epochs=1.0)
    config.eval.update(batch_size=2, pictures=2)
    return config
