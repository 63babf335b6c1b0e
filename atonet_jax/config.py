"""Every setting there is, with its default and the words that it may be. validation.py checks their values.

A file of configs/ starts from `default_config(network)` and changes what its run needs; the command line changes it
further (`--config.train.batch_size=8`). A key that is not here is refused. The section `model` holds the options of the
chosen network alone.
"""

import os
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from atonet_jax.data.labels import DATA_NAMES
from atonet_jax.data.pictures import MAX_PIXELS
from atonet_jax.errors import InputError
from atonet_jax.models import create_model, default_options
from atonet_jax.models.contract import GROUPS

DTYPES = ('float32', 'bfloat16')
SIDE_STEP = 64  # pixels; in the server, the least side, and where sizes share no programs sides are multiples of it
CHOICES = {  # what a setting may be that is a word, or the words in it where it is a tuple
    'model.dtype': DTYPES,
    'data.name': DATA_NAMES,
    'data.on_corrupt': ('error', 'skip'),
    'data.label_values': ('auto', 'index', 'color'),
    'data.label_orientation': ('upright', 'stored'),
    'data.cache': ('auto', 'none', 'memory', 'disk', 'device'),
    'loss.aux_target': ('', 'downsampled_labels', 'upsampled_features'),
    'loss.class_weights': ('balanced', 'enet', 'equal'),  # one of them alone, or numbers
    'optimizer.name': ('sgd', 'adam', 'adamw'),
    'optimizer.decayed': ('all', 'kernels'),
    'optimizer.backbone_factor_on': ('both', 'rate'),
    'optimizer.frozen': GROUPS,
    'schedule.name': ('cosine', 'poly', 'steps', 'constant'),
    'schedule.per': ('epoch', 'step'),
    'eval.checkpoint': ('best', 'latest'),
    'predict.format': ('pictures', 'cityscapes_submission'),
    'predict.pictures': ('labels', 'color', 'overlay', 'side_by_side'),
    'predict.ids': ('train', 'raw'),
    'benchmark.dtypes': DTYPES,
    'export.format': ('weights', 'jax_export', 'saved_model', 'onnx', 'tflite', 'torch'),
    'export.inputs': ('uint8', 'normalized'),
    'export.outputs': ('labels', 'logits'),
    'export.layout': ('NHWC', 'NCHW'),
    'export.precision': ('float32', 'int8'),
}
_NO_OPTIONS = ('name', 'pretrained_backbone', 'pretrained_strict')  # of config.model; the network takes the others


def default_config(network: str = 'atonet') -> ConfigDict:
    """The paper's recipe on Cityscapes, for one of `models.MODEL_NAMES`. Locked: no key can be added.

    `CHOICES` holds the words that settings may be.

    Raises:
        InputError: no such network.
    """
    try:
        options = default_options(network)
    except ValueError as error:
        raise InputError(f'config.model.{error}') from error
    config = ConfigDict(
        {
            'seed': 0,
            'init_from': '',  # a file of PyTorch weights, or the workdir of a run, to start from
            'init_strict': True,  # False: layers that do not fit the file, as for other classes, start fresh
            'model': {
                'name': network,
                'pretrained_backbone': '',  # file of the backbone alone, such as torchvision's ResNet-18
                'pretrained_strict': True,  # False: parts that this file lacks start fresh, at the full learning rate
                'dtype': 'float32',  # compute type
                **options,
            },
            'data': {
                'name': 'cityscapes',
                'root': 'data/cityscapes',
                'tfds_dir': '',  # folder or bucket of a prepared TFDS copy to read instead of `root`
                'train_split': 'train',  # or several: 'train+val'
                'eval_split': 'val',
                'on_corrupt': 'error',  # skip: leaves out what cannot be read, and says so
                'label_values': 'auto',  # what label files hold: index, color; auto: decided over all files of a split
                'unknown_as_void': 0.0,  # share of a label file's pixels that may have values of no class
                'trust_labels': False,  # True: doubtful labels are warned of and not refused
                'max_pixels': MAX_PIXELS,  # of an image; larger ones are refused before they are decoded
                # Samples that become 0 and 255, such as (0, 4095), in images of more than 8 bits; (): each file's own.
                'sample_range': (),
                'label_orientation': 'upright',  # stored: drawn on the image as its file stores it, despite EXIF
                'cache': 'auto',  # of decoded images. auto: device, where an accelerator has room; else none
                'cache_dir': '',  # of disk; none: in the workdir
                'crop_size': (1024, 1024),  # height, width; none: the size that most training images have
                'scale_range': (1.0, 2.0),
                'flip': True,
                # Beyond the paper's recipe; 0: off.
                'augmentation': {
                    'class_aware_crops': 0.0,  # probability that a crop shows a class drawn evenly
                    'rotation': 0.0,  # degrees, drawn from +- that
                    'brightness': 0.0,  # factor from 1 +- that
                    'contrast': 0.0,
                    'saturation': 0.0,
                    'hue': 0.0,  # of a full turn, from +- that
                    'blur': 0.0,  # probability
                    'blur_sigma': (0.1, 2.0),  # pixels
                    'erasing': 0.0,  # probability
                    'erasing_area': (0.02, 0.2),  # share of the crop
                },
                # Of 'folder' alone; '{split}' stands for a part of the split.
                'folder': {
                    'classes': 'classes.json',  # or .csv: name, color, value
                    'images': 'images/{split}',
                    'labels': 'labels/{split}',
                    'image_suffix': '',  # what ends the names of image files before the extension
                    'label_suffix': '',
                    'list': '',  # text file with an image name a line, such as '{split}.txt'; none: all files
                },
                # Of 'synthetic' alone, which is generated into `root` where it is not there yet.
                'synthetic': {'train_scenes': 2000, 'val_scenes': 100, 'height': 128, 'width': 256, 'seed': 0},
            },
            'loss': {
                'aux_weights': (),  # one an auxiliary term; none: the network's own
                'aux_target': '',  # of auxiliary terms; none: the network's own
                'mining': False,  # online hard example mining
                'mining_threshold': 0.7,
                'mining_min_kept': 1 / 16,  # share of a term's pixels
                # One a class; none: the network's own; equal; or balanced, enet: by its share of the training pixels.
                'class_weights': (),
            },
            'optimizer': {
                'name': 'sgd',  # adam adds its decay to the gradient, as torch's does
                'learning_rate': 0.02,
                'momentum': 0.9,  # Adam's first beta
                'second_beta': 0.99,  # of Adam: runs of a few hundred steps are too short for the usual 0.999
                'weight_decay': 1e-4,
                'decayed': 'all',  # kernels: no decay of biases and batch normalisation
                'backbone_factor': 0.1,  # on rate and decay of the backbone's parameters
                'backbone_factor_on': 'both',  # rate: the backbone has the decay of all else
                'frozen': (),  # groups of parameters that stay as they are
                'ema_decay': 0.0,  # of the averaged parameters that are then evaluated; 0: none
            },
            'schedule': {
                'name': 'cosine',
                'per': 'epoch',  # the rate changes once an epoch, or at every step
                'floor': 1e-6,
                'power': 0.9,  # of poly
                'step_epochs': 100.0,  # of steps: epochs after which the rate is multiplied by step_factor, each time
                'step_factor': 0.1,
                'warmup_epochs': 0.0,
            },
            'train': {
                'batch_size': 4,  # over all devices
                'accumulation': 1,  # parts that a batch is taken in, one after the other, to save memory
                'remat': False,  # computes activations again for the gradient, to save memory
                'epochs': 200.0,
                'log_every_steps': 10,
                'checkpoint_every_steps': 500,
                'eval_every_epochs': 5.0,
                'keep_checkpoints': 3,  # the latest ones; the best one is kept beside them
            },
            'debug': {
                'nans': False,  # looks at every step, and says in which layer a loss that is no number began
            },
            'eval': {
                'batch_size': 1,  # images, or windows; over all devices, made up to a multiple of them
                'checkpoint': 'best',
                'center_crop': (),  # height, width; none: the whole image
                'height': 0,  # to which images are resized for the network; 0: none, they are taken as they are
                'window': (),  # height, width of sliding windows; none: all at once
                'window_stride': (),  # rows, columns from one window to the next; none: two thirds of the window
                'scales': (1.0,),
                'flip': False,  # averages with the mirrored image
                'pictures': 8,  # examples drawn with their prediction
                'output': '',  # folder of --mode=evaluate; none: evaluation/ of the workdir
            },
            # As `eval` says which checkpoint, scales, flip and window.
            'predict': {
                'input': '',  # a picture, a folder, a pattern such as 'photos/**/*.jpg', a video, or camera:0
                'output': '',  # folder; none: predictions/ of the workdir
                'format': 'pictures',  # cityscapes_submission: what the test server takes
                'pictures': ('labels', 'color', 'overlay', 'side_by_side'),  # kinds that are written
                'ids': 'train',  # in label files
                'batch_size': 1,  # pictures of one program, or windows, that go through the network together
                'max_pixels': 64_000_000,  # of a picture
                'max_frames': 0,  # of a video or camera; 0: all, or until Ctrl-C
            },
            'benchmark': {
                'sizes': (1024, 2048),  # height, width of the images; or several: ((1024, 2048), (720, 960))
                'batch_sizes': (1,),
                'dtypes': ('float32',),  # compute types
                'rounds': 50,
                'warmup': 5,  # rounds before those that count
                'seconds': 60.0,  # after which a measurement's rounds end, however few; its warm-up too
            },
            'export': {
                'format': 'weights',  # docs/deployment.md
                'output': '',  # file or folder to write; none: in export/ of the workdir
                # Of programs, which weights and torch are not:
                'size': (512, 1024),  # height, width of images
                'batch_size': 0,  # 0: any, one in tflite
                'dynamic_size': False,  # in onnx: images of any height and width; `size` is what is checked
                'inputs': 'uint8',  # RGB bytes; normalized: float32, as the model card says
                'outputs': 'labels',  # uint8 train ids; logits: float32 at the images' resolution
                'layout': 'NHWC',  # of images and logits
                'winograd': True,  # in onnx of a fixed size: faster in ONNX Runtime, slower in OpenVINO
                'precision': 'float32',  # int8 in onnx and tflite alone
                'calibration_images': 32,  # of the training split, which ranges of int8 come from
                'int8_tolerance': 0.5,  # points of mIoU that int8 may lose
            },
            'serve': {
                'host': '127.0.0.1',  # this machine alone; 0.0.0.0: whoever reaches it over the network
                'port': 8000,  # 0: any that is free
                'max_megabytes': 20.0,  # of a request
                'max_pixels': 40_000_000,  # of a picture
                'long_side': 1024,  # pixels to which pictures are reduced for the network
                'waiting': 8,  # requests; what comes then is told to try again
            },
        }
    )
    return config.lock()


def flat_settings(config: ConfigDict) -> dict[str, Any]:
    """Every setting by its whole key, such as 'train.batch_size', in the config's order."""
    return flatten_dict(config.to_dict(), sep='.')


def benchmark_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """(height, width) of each of `config.benchmark.sizes`, which may be one pair or several."""
    sizes = config.benchmark.sizes
    return tuple(map(tuple, sizes)) if all(isinstance(size, (tuple, list)) for size in sizes) else (tuple(sizes),)


def expand_home(config: ConfigDict) -> None:
    """Makes of `~` at the beginning of a path the home folder. No setting but a path begins with it."""
    for key, value in flat_settings(config).items():
        if isinstance(value, str) and value.startswith('~') and not key.endswith('_suffix'):
            config.update_from_flattened_dict({key: os.path.expanduser(value)})


def create_network(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of the config's section `model`.

    Raises:
        InputError: no such network, or an option that cannot work.
    """
    options = {key: value for key, value in config.model.items() if key not in _NO_OPTIONS}
    if options['dtype'] not in DTYPES:
        raise InputError(f'config.model.dtype={options["dtype"]!r}: must be one of {", ".join(DTYPES)}')
    try:
        return create_model(config.model.name, num_classes, **options | {'dtype': jnp.dtype(options['dtype'])})
    except ValueError as error:
        raise InputError(f'config.model.{error}') from error
