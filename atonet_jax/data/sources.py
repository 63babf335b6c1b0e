"""Which data set a config means."""

import dataclasses

from ml_collections import ConfigDict

from atonet_jax.data.camvid import load_camvid
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.synthetic import write_dataset


def load_dataset(data: ConfigDict, split: str) -> SegmentationDataset:
    """A split of the data set that the config's section `data` names.

    'synthetic' is generated first where `data.root` does not hold it yet, and then read as Cityscapes.

    Raises:
        DataError: files are missing or do not fit each other, or `data.root` holds other data than asked for.
    """
    if data.name == 'camvid':
        return load_camvid(data.root, split)
    if data.name == 'synthetic':
        scenes = data.synthetic
        write_dataset(
            data.root,
            splits={'train': scenes.train_scenes, 'val': scenes.val_scenes},
            height=scenes.height,
            width=scenes.width,
            seed=scenes.seed,
        )
    return dataclasses.replace(load_cityscapes(data.root, split), name=data.name)
