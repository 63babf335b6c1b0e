"""The demo: the full-size network, from scratch, on synthetic street scenes of 128x256.

    python main.py --config=configs/synthetic.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.update(name='synthetic', root='data/synthetic', crop_size=(128, 256), scale_range=(1.0, 1.0))
    config.optimizer.update(learning_rate=0.05, backbone_factor=1.0)
    config.schedule.update(per='step', warmup_epochs=0.1)
    config.train.update(batch_size=8, epochs=1.5, checkpoint_every_steps=100, eval_every_epochs=1.0)
    config.eval.batch_size = 10
    return config
