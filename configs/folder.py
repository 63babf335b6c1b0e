"""A run on your own images and label files.

    python main.py --config=configs/folder.py --workdir=runs/mine --config.data.root=/path/to/data --mode=check_data
    python main.py --config=configs/folder.py --workdir=runs/mine --config.data.root=/path/to/data

The first command checks the data, the second one trains. The root holds images/{train,val}/ and labels/{train,val}/
with files of the same names, and a class file. The class file has the name, the color and the label value of each
class (docs/data.md). It is classes.json, or the file that --config.data.folder.classes names. The recipe is that of
ATONet's paper for CamVid, with crops of 512x512 and 200 epochs. Time and result depend on the data. Without
--config.model.pretrained_backbone=FILE, add --config.optimizer.backbone_factor=1.0.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config(network: str = 'atonet') -> ConfigDict:
    config = default_config(network)
    config.data.update(name='folder', root='data/folder', crop_size=(512, 512))
    config.train.update(batch_size=16, epochs=200.0)
    return config
