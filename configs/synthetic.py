"""The demo: the full-size ATONet, from random weights, on synthetic street scenes of 128x256.

    python main.py --config=configs/synthetic.py --workdir=runs/demo

Trains for 500 steps, once over 2000 scenes: 48.2% mIoU in 3 minutes on 2 cores of an AMD EPYC. Longer runs are in
docs/synthetic.md. The paper's recipe fine-tunes an ImageNet backbone over days. Training from random weights in minutes
needs AdamW and one learning rate for all layers. It also needs class weights, because road has 90 times as many pixels
as riders.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config

# From benchmarks/class_frequencies.py: (share of the training pixels) ** -0.5, scaled to a mean of 1 over the pixels.
CLASS_WEIGHTS = (
    0.52, 1.2, 0.64, 2.49, 2.26, 1.96, 3.81, 3.38, 0.82, 2.5, 0.82, 2.7, 5.01, 1.35, 2.45, 2.98, 2.41, 4.11, 3.35,
)  # fmt: skip


def get_config(network: str = 'atonet') -> ConfigDict:
    config = default_config(network)
    config.data.update(name='synthetic', root='data/synthetic', crop_size=(128, 256), scale_range=(1.0, 1.0))
    config.loss.class_weights = CLASS_WEIGHTS
    config.optimizer.update(name='adamw', learning_rate=0.0015, weight_decay=0.01, backbone_factor=1.0)
    config.schedule.update(per='step', warmup_epochs=0.08)
    config.train.update(batch_size=4, epochs=1.0, checkpoint_every_steps=250, eval_every_epochs=1.0)
    config.eval.batch_size = 10
    return config
