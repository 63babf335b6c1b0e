"""Every setting there is, with its default, and the checks on their values.

A file of configs/ starts from `default_config(network)` and changes what its run needs; the command line changes it
further (`--config.train.batch_size=8`). A key that is not here is refused. The section `model` holds the options of the
chosen network alone.
"""

import functools
import math
import os
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from atonet_jax.data.augmentation import SMALLEST_CROP
from atonet_jax.data.labels import DATA_NAMES, LABEL_VALUES
from atonet_jax.data.pictures import MAX_PIXELS
from atonet_jax.errors import InputError
from atonet_jax.models import create_model, default_options
from atonet_jax.models.contract import GROUPS

_LARGEST_SEED = 2**63 - 1  # that JAX takes
DTYPES = ('float32', 'bfloat16')
CLASS_WEIGHTS = ('balanced', 'enet', 'equal')
CACHES = ('auto', 'none', 'memory', 'disk', 'device')
ON_CORRUPT = ('error', 'skip')
LABEL_ORIENTATIONS = ('upright', 'stored')
PREDICTION_PICTURES = ('labels', 'color', 'overlay', 'side_by_side')
_LISTS_OF_WORDS = {  # tuples; others hold numbers, but for loss.class_weights
    'optimizer.frozen': 'backbone',
    'predict.pictures': 'labels,overlay',
    'benchmark.dtypes': 'float32,bfloat16',
}
_NO_OPTIONS = ('name', 'pretrained_backbone', 'pretrained_strict')  # of config.model; the network takes the others
EXPORT_FORMATS = ('weights', 'jax_export', 'saved_model', 'onnx', 'tflite', 'torch')
INT8_FORMATS = ('onnx', 'tflite')


def default_config(network: str = 'atonet') -> ConfigDict:
    """The paper's recipe on Cityscapes, for one of `models.MODEL_NAMES`. Locked: no key can be added.

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
                'dtype': 'float32',  # compute type: float32 or bfloat16
                **options,
            },
            'data': {
                'name': 'cityscapes',
                'root': 'data/cityscapes',
                'tfds_dir': '',  # folder or bucket of a prepared TFDS copy to read instead of `root`
                'train_split': 'train',  # or several: 'train+val'
                'eval_split': 'val',
                'on_corrupt': 'error',  # or skip: leave out what cannot be read, and say so
                'label_values': 'auto',  # what label files hold: index, color; auto: decided over all files of a split
                'unknown_as_void': 0.0,  # share of a label file's pixels that may have values of no class
                'trust_labels': False,  # True: doubtful labels are warned of and not refused
                'max_pixels': MAX_PIXELS,  # of an image; larger ones are refused before they are decoded
                # Samples that become 0 and 255, such as (0, 4095), in images of more than 8 bits; (): each file's own.
                'sample_range': (),
                'label_orientation': 'upright',  # or stored: drawn on the image as its file stores it, despite EXIF
                # Of decoded images: none, memory, disk, device. auto: device, where an accelerator has room; else none.
                'cache': 'auto',
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
                'aux_target': '',  # of auxiliary terms: downsampled_labels, upsampled_features; none: the network's own
                'mining': False,  # online hard example mining
                'mining_threshold': 0.7,
                'mining_min_kept': 1 / 16,  # share of a term's pixels
                # One a class; none: the network's own; equal; or balanced, enet: by its share of the training pixels.
                'class_weights': (),
            },
            'optimizer': {
                'name': 'sgd',  # or adam, whose decay is added to the gradient as torch's is; adamw
                'learning_rate': 0.02,
                'momentum': 0.9,  # Adam's first beta
                'second_beta': 0.99,  # of Adam: runs of a few hundred steps are too short for the usual 0.999
                'weight_decay': 1e-4,
                'decayed': 'all',  # or kernels: no decay of biases and batch normalisation
                'backbone_factor': 0.1,  # on rate and decay of the backbone's parameters
                'backbone_factor_on': 'both',  # or rate: the backbone has the decay of all else
                'frozen': (),  # groups of parameters that stay as they are: backbone, head
                'ema_decay': 0.0,  # of the averaged parameters that are then evaluated; 0: none
            },
            'schedule': {
                'name': 'cosine',  # or poly, steps, constant
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
                'checkpoint': 'best',  # or latest
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
                'format': 'pictures',  # or cityscapes_submission: what the test server takes
                'pictures': ('labels', 'color', 'overlay', 'side_by_side'),  # kinds that are written
                'ids': 'train',  # in label files; or raw
                'batch_size': 1,  # pictures of one size, or windows, that go through the network together
                'max_pixels': 64_000_000,  # of a picture
                'max_frames': 0,  # of a video or camera; 0: all, or until Ctrl-C
            },
            'benchmark': {
                'sizes': (1024, 2048),  # height, width of the images; or several: ((1024, 2048), (720, 960))
                'batch_sizes': (1,),
                'dtypes': ('float32',),  # compute types: float32, bfloat16
                'rounds': 50,
                'warmup': 5,  # rounds before those that count
                'seconds': 60.0,  # after which a measurement's rounds end, however few; its warm-up too
            },
            'export': {
                'format': 'weights',  # or jax_export, saved_model, onnx, tflite, torch: docs/deployment.md
                'output': '',  # file or folder to write; none: in export/ of the workdir
                # Of programs, which weights and torch are not:
                'size': (512, 1024),  # height, width of images
                'batch_size': 0,  # 0: any, one in tflite
                'dynamic_size': False,  # in onnx: images of any height and width; `size` is what is checked
                'inputs': 'uint8',  # RGB bytes; or normalized: float32, as the model card says
                'outputs': 'labels',  # uint8 train ids; or logits: float32 at the images' resolution
                'layout': 'NHWC',  # of images and logits; or NCHW
                'winograd': True,  # in onnx of a fixed size: faster in ONNX Runtime, slower in OpenVINO
                'precision': 'float32',  # or int8, in onnx and tflite
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


def _holds_numbers(values: Any, nested: bool) -> bool:
    """Whether all of `values` are numbers, or tuples of numbers where these may be."""
    return all(
        _holds_numbers(value, nested=False)
        if nested and isinstance(value, (tuple, list))
        else isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in values
    )


def benchmark_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """(height, width) of each of `config.benchmark.sizes`, which may be one pair or several."""
    sizes = config.benchmark.sizes
    return tuple(map(tuple, sizes)) if all(isinstance(size, (tuple, list)) for size in sizes) else (tuple(sizes),)


def expand_home(config: ConfigDict) -> None:
    """Makes of `~` at the beginning of a path the home folder. No setting but a path begins with it."""
    for key, value in flat_settings(config).items():
        if isinstance(value, str) and value.startswith('~') and not key.endswith('_suffix'):
            config.update_from_flattened_dict({key: os.path.expanduser(value)})


def validate(config: ConfigDict) -> None:
    """Checks values that no type can: before any data is read, in every mode.

    Raises:
        InputError: names the first key whose value cannot work, and what would.
    """

    def value_of(key):
        return functools.reduce(lambda section, name: section[name], key.split('.'), config)

    def check(holds, key, wanted):
        if not holds:
            raise InputError(f'config.{key}={value_of(key)!r}: must be {wanted}')

    def one_of(key, values):
        check(value_of(key) in values, key, f'one of {", ".join(values)}')

    def positive(*keys):
        for key in keys:
            check(math.isfinite(value_of(key)) and value_of(key) > 0, key, 'greater than 0')

    def between(low, high, *keys):
        for key in keys:
            check(low <= value_of(key) <= high, key, f'from {low} to {high}')

    def low_and_high(key, lowest, highest, what):
        value = value_of(key)
        check(len(value) == 2 and numbers(value) and lowest < value[0] <= value[1] <= highest, key, what)

    def numbers(values):
        return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)

    def whole_numbers(values):
        return all(isinstance(value, int) and value > 0 for value in values)

    def size(key, optional):
        value = value_of(key)
        valid = len(value) == 2 and whole_numbers(value)
        wanted = 'two whole numbers greater than 0, height and width' + (', or ()' if optional else '')
        check(valid or (optional and not value), key, wanted)

    defaults = flat_settings(default_config(config.model.name))
    for key, value in flat_settings(config).items():
        if key in _LISTS_OF_WORDS:
            check(all(isinstance(word, str) for word in value), key, f'words, such as {_LISTS_OF_WORDS[key]}')
        elif key.startswith('model.') and defaults.get(key) == ():
            pass  # the network itself checks a list whose default is empty
        elif isinstance(value, (tuple, list)) and key != 'loss.class_weights':
            check(_holds_numbers(value, nested=key == 'benchmark.sizes'), key, 'numbers alone, such as (1,) or (2,3)')
    create_network(config, num_classes=19)
    check(not (config.init_from and config.model.pretrained_backbone), 'model.pretrained_backbone',
          'empty where config.init_from is given, which holds a backbone')
    one_of('data.name', DATA_NAMES)
    one_of('data.on_corrupt', ON_CORRUPT)
    one_of('data.cache', CACHES)
    one_of('data.label_values', LABEL_VALUES)
    between(0, 1, 'data.unknown_as_void')
    one_of('data.label_orientation', LABEL_ORIENTATIONS)
    one_of('loss.aux_target', ('', 'downsampled_labels', 'upsampled_features'))
    one_of('optimizer.name', ('sgd', 'adam', 'adamw'))
    one_of('optimizer.decayed', ('all', 'kernels'))
    one_of('optimizer.backbone_factor_on', ('both', 'rate'))
    one_of('schedule.name', ('cosine', 'poly', 'steps', 'constant'))
    one_of('schedule.per', ('epoch', 'step'))
    one_of('eval.checkpoint', ('best', 'latest'))
    one_of('predict.format', ('pictures', 'cityscapes_submission'))
    one_of('predict.ids', ('train', 'raw'))
    kinds = config.predict.pictures
    check(kinds and set(kinds) <= set(PREDICTION_PICTURES), 'predict.pictures', f'of {", ".join(PREDICTION_PICTURES)}')
    one_of('export.format', EXPORT_FORMATS)
    one_of('export.inputs', ('uint8', 'normalized'))
    one_of('export.outputs', ('labels', 'logits'))
    one_of('export.layout', ('NHWC', 'NCHW'))

    positive('optimizer.learning_rate', 'optimizer.backbone_factor')
    positive('train.batch_size', 'train.epochs', 'train.log_every_steps', 'train.checkpoint_every_steps')
    check(isinstance(config.train.accumulation, int) and config.train.accumulation > 0, 'train.accumulation',
          'a whole number greater than 0')
    positive('train.eval_every_epochs', 'train.keep_checkpoints', 'eval.batch_size', 'predict.batch_size')
    positive('data.max_pixels', 'predict.max_pixels')
    if config.data.sample_range:
        low_and_high('data.sample_range', -math.inf, math.inf, 'two numbers, black and white, or ()')
    check(config.predict.max_frames >= 0, 'predict.max_frames', 'not below 0')

    weights = config.loss.aux_weights
    check(numbers(weights) and min(weights, default=0) >= 0, 'loss.aux_weights', 'numbers not below 0, or ()')
    check(0 < config.loss.mining_threshold < 1, 'loss.mining_threshold', 'between 0 and 1')
    check(0 < config.loss.mining_min_kept <= 1, 'loss.mining_min_kept', 'greater than 0 and at most 1')
    weights = config.loss.class_weights
    check(
        not weights
        or (len(weights) == 1 and weights[0] in CLASS_WEIGHTS)
        or (numbers(weights) and min(weights) >= 0 and max(weights) > 0),
        'loss.class_weights',
        f'numbers not below 0, one a class and not all 0; or one of {", ".join(CLASS_WEIGHTS)}; or ()',
    )
    size('data.crop_size', optional=True)
    check(min(config.data.crop_size, default=SMALLEST_CROP) >= SMALLEST_CROP, 'data.crop_size',
          f'at least {SMALLEST_CROP} both ways')
    low_and_high('data.scale_range', 0, math.inf, 'lowest and highest scale')
    between(0, 1, *(f'data.augmentation.{name}' for name in ('class_aware_crops', 'brightness', 'contrast')))
    between(0, 1, *(f'data.augmentation.{name}' for name in ('saturation', 'blur', 'erasing')))
    between(0, 0.5, 'data.augmentation.hue')
    between(0, 180, 'data.augmentation.rotation')
    low_and_high('data.augmentation.blur_sigma', 0, 10, 'lowest and highest, above 0 and at most 10 pixels')
    low_and_high('data.augmentation.erasing_area', 0, 1, 'lowest and highest share, above 0 and at most 1')
    between(0, _LARGEST_SEED, 'seed', 'data.synthetic.seed')
    check(0 <= config.optimizer.momentum < 1, 'optimizer.momentum', 'from 0 to below 1')
    check(0 <= config.optimizer.second_beta < 1, 'optimizer.second_beta', 'from 0 to below 1')
    check(0 <= config.optimizer.weight_decay < math.inf, 'optimizer.weight_decay', 'not below 0')
    check(0 <= config.optimizer.ema_decay < 1, 'optimizer.ema_decay', 'from 0 to below 1')
    check(0 <= config.schedule.floor < config.optimizer.learning_rate, 'schedule.floor', 'from 0 to the learning rate')
    check(0 < config.schedule.power < math.inf, 'schedule.power', 'greater than 0')
    positive('schedule.step_epochs')
    check(0 < config.schedule.step_factor <= 1, 'schedule.step_factor', 'greater than 0 and at most 1')
    check(0 <= config.schedule.warmup_epochs < config.train.epochs, 'schedule.warmup_epochs', 'from 0 to train.epochs')
    size('export.size', optional=False)
    check(min(config.export.size) >= 33, 'export.size', 'at least 33 both ways')
    check(not config.export.dynamic_size or config.export.format == 'onnx', 'export.dynamic_size',
          "False, except where config.export.format='onnx'")
    one_of('export.precision', ('float32', 'int8'))
    check(config.export.precision == 'float32' or config.export.format in INT8_FORMATS, 'export.precision',
          f"float32, except where config.export.format is {' or '.join(INT8_FORMATS)}")
    positive('export.calibration_images')
    check(0 <= config.export.int8_tolerance <= 100, 'export.int8_tolerance', 'from 0 to 100 points of mIoU')
    check(config.export.batch_size >= 0, 'export.batch_size', 'not below 0')
    size('eval.center_crop', optional=True)
    size('eval.window', optional=True)
    size('eval.window_stride', optional=True)
    window, stride = config.eval.window, config.eval.window_stride
    check(
        not stride or (len(window) == 2 and stride[0] <= window[0] and stride[1] <= window[1]),
        'eval.window_stride',
        'no larger than config.eval.window, so that windows leave no gaps',
    )
    check(config.eval.pictures >= 0, 'eval.pictures', 'not below 0')
    check(isinstance(config.eval.height, int) and config.eval.height >= 0, 'eval.height', 'a whole number, or 0')
    sizes, batch_sizes, dtypes = benchmark_sizes(config), config.benchmark.batch_sizes, config.benchmark.dtypes
    check(
        sizes and all(len(size) == 2 and whole_numbers(size) for size in sizes),
        'benchmark.sizes',
        'whole numbers greater than 0: (height, width), or several such as ((1024, 2048), (720, 960))',
    )
    check(batch_sizes and whole_numbers(batch_sizes), 'benchmark.batch_sizes', 'whole numbers greater than 0')
    check(dtypes and set(dtypes) <= set(DTYPES), 'benchmark.dtypes', f'of {", ".join(DTYPES)}')
    positive('benchmark.rounds', 'benchmark.seconds')
    check(config.benchmark.warmup >= 0, 'benchmark.warmup', 'not below 0')
    check(config.serve.host, 'serve.host', 'an address or a name of this machine, such as 127.0.0.1')
    between(0, 65535, 'serve.port')
    positive('serve.max_megabytes')
    positive('serve.max_pixels')
    check(config.serve.long_side > 0 and config.serve.long_side % 64 == 0, 'serve.long_side', 'a multiple of 64')
    check(config.serve.waiting >= 0, 'serve.waiting', 'not below 0')
    scales = config.eval.scales
    check(len(scales) > 0 and numbers(scales) and min(scales) > 0, 'eval.scales', 'numbers greater than 0')
    frozen = config.optimizer.frozen
    check(set(frozen) < set(GROUPS), 'optimizer.frozen', f'of {", ".join(GROUPS)}, and not all of them')


def validate_batches(config: ConfigDict, num_devices: int) -> None:
    """Checks that a training batch can be split over the devices and into the parts of `train.accumulation`.

    Raises:
        InputError: names the nearest batch sizes that can.
    """
    batch, unit = config.train.batch_size, num_devices * config.train.accumulation
    if batch % unit:
        nearest = sorted({max(batch // unit, 1) * unit, (batch // unit + 1) * unit})
        raise InputError(
            f'config.train.batch_size={batch}: cannot be split over {num_devices} device(s) and '
            f'config.train.accumulation={config.train.accumulation} parts; give {" or ".join(map(str, nearest))}'
        )


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


def validate_classes(config: ConfigDict, num_classes: int) -> None:
    """Checks the values that depend on how many classes the data has.

    Raises:
        InputError: as `validate`.
    """
    weights = config.loss.class_weights
    if len(weights) not in (0, num_classes) and weights[0] not in CLASS_WEIGHTS:
        raise InputError(
            f'config.loss.class_weights={weights!r}: must be {num_classes} numbers, one a class; or one of '
            f'{", ".join(CLASS_WEIGHTS)}; or ()'
        )
