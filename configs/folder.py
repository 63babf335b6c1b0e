"""Your own images and label files.

    python main.py --config=configs/folder.py --workdir=runs/mine --config.data.root=/path/to/data --mode=check_data
    python main.py --config=configs/folder.py --workdir=runs/mine --config.data.root=/path/to/data

Expects images/{train,val}/ and labels/{train,val}/ with files of the same names, and a class file: name, color and
value in label files of each class (docs/data.md). How long it takes and what comes of it depends on the data; the
recipe is the paper's for CamVid, on crops of 512x512.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config


def get_config(network: str = 'atonet') -> ConfigDict:
    config = default_config(network)
    config.data.update(name='folder', root='data/folder', crop_size=(512, 512))
    config.train.update(batch_size=16, epochs=200.0)
    return config
