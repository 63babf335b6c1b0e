"""Every setting there is, with its default, and the checks on their values.

A file of configs/ starts from `default_config()` and changes what its run needs; the command line changes it further
(`--config.train.batch_size=8`). A key that is not here is refused.
"""

import math

from ml_collections import ConfigDict

from atonet_jax.data.labels import CLASS_TABLES
from atonet_jax.errors import InputError
from atonet_jax.models import MODEL_NAMES

DTYPES = ('float32', 'bfloat16')
EXPORT_FORMATS = ('weights', 'jax_export', 'saved_model', 'onnx', 'tflite', 'torch')


def default_config() -> ConfigDict:
    """The paper's recipe on Cityscapes."""
    return ConfigDict(
        {
            'seed': 0,
            'init_from': '',  # file of the published PyTorch network to start from, or to evaluate and export
            'init_strict': True,  # False: heads that do not fit the file, as for other classes, start fresh
            'model': {
                'name': 'atonet',
                'spp_bins': (8, 4, 2),
                'aux_levels': (3, 4, 5),
                'up_kernel_size': 3,
                'width': 128,
                'backbone_width': 64,
                'pretrained_backbone': '',  # file of torchvision's ResNet-18 to start from
                'dtype': 'float32',  # compute type: float32 or bfloat16
            },
            'data': {
                'name': 'cityscapes',
                'root': 'data/cityscapes',
                'train_split': 'train',
                'eval_split': 'val',
                'crop_size': (1024, 1024),  # height, width
                'scale_range': (1.0, 2.0),
                'flip': True,
                # Of 'synthetic' alone, which is generated into `root` where it is not there yet.
                'synthetic': {'train_scenes': 2000, 'val_scenes': 100, 'height': 128, 'width': 256, 'seed': 0},
            },
            'loss': {
                'aux_weights': (1.0, 1.0, 1.0),  # one a level of model.aux_levels
                'aux_target': 'downsampled_labels',  # or upsampled_features
                'mining': False,  # online hard example mining
                'mining_threshold': 0.7,
                'mining_min_kept': 1 / 16,  # share of a term's pixels
                'class_weights': (),  # one a class; none: all alike
            },
            'optimizer': {
                'name': 'sgd',  # or adamw
                'learning_rate': 0.02,
                'momentum': 0.9,
                'weight_decay': 1e-4,
                'backbone_factor': 0.1,  # on rate and decay of layer1 .. layer4's convolutions
                'ema_decay': 0.0,  # of the averaged parameters that are then evaluated; 0: none
            },
            'schedule': {
                'name': 'cosine',  # or poly, constant
                'per': 'epoch',  # the rate changes once an epoch, or at every step
                'floor': 1e-6,
                'power': 0.9,  # of poly
                'warmup_epochs': 0.0,
            },
            'train': {
                'batch_size': 4,  # over all devices
                'epochs': 200.0,
                'log_every_steps': 10,
                'checkpoint_every_steps': 500,
                'eval_every_epochs': 5.0,
                'keep_checkpoints': 3,  # the latest ones; the best one is kept beside them
            },
            'eval': {
                'batch_size': 1,  # over all devices
                'checkpoint': 'best',  # or latest
                'center_crop': (),  # height, width; none: the whole image
                'window': (),  # height, width of sliding windows; none: all at once
                'window_stride': (),  # rows, columns from one window to the next; none: two thirds of the window
                'scales': (1.0,),
                'flip': False,  # averages with the mirrored image
                'pictures': 8,  # examples drawn with their prediction
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
                'inputs': 'uint8',  # RGB bytes; or normalized: float32, as augment.normalize gives them
                'outputs': 'labels',  # uint8 train ids; or logits: float32 at the images' resolution
                'layout': 'NHWC',  # of images and logits; or NCHW
                'winograd': True,  # in onnx: faster in ONNX Runtime, slower in OpenVINO
            },
        }
    )


def benchmark_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """(height, width) of each of `config.benchmark.sizes`, which may be one pair or several."""
    sizes = config.benchmark.sizes
    return tuple(map(tuple, sizes)) if all(isinstance(size, (tuple, list)) for size in sizes) else (tuple(sizes),)


def validate(config: ConfigDict, num_devices: int) -> None:
    """Checks values that no type can: before any data is read.

    Raises:
        InputError: names the first key whose value cannot work, and what would.
    """

    def check(holds, key, wanted):
        if not holds:
            value = config
            for part in key.split('.'):
                value = value[part]
            raise InputError(f'config.{key}={value!r}: must be {wanted}')

    def one_of(key, values):
        section, name = key.split('.')
        check(config[section][name] in values, key, f'one of {", ".join(values)}')

    def positive(*keys):
        for key in keys:
            section, name = key.split('.')
            value = config[section][name]
            check(math.isfinite(value) and value > 0, key, 'greater than 0')

    def whole_numbers(values):
        return all(isinstance(value, int) and value > 0 for value in values)

    def size(key, optional):
        section, name = key.split('.')
        value = config[section][name]
        valid = len(value) == 2 and whole_numbers(value)
        wanted = 'two whole numbers greater than 0, height and width' + (', or ()' if optional else '')
        check(valid or (optional and not value), key, wanted)

    one_of('model.name', MODEL_NAMES)
    check(not (config.init_from and config.model.pretrained_backbone), 'model.pretrained_backbone',
          'empty where config.init_from is given, which holds a backbone')
    one_of('model.dtype', DTYPES)
    one_of('data.name', CLASS_TABLES)
    one_of('loss.aux_target', ('downsampled_labels', 'upsampled_features'))
    one_of('optimizer.name', ('sgd', 'adamw'))
    one_of('schedule.name', ('cosine', 'poly', 'constant'))
    one_of('schedule.per', ('epoch', 'step'))
    one_of('eval.checkpoint', ('best', 'latest'))
    one_of('export.format', EXPORT_FORMATS)
    one_of('export.inputs', ('uint8', 'normalized'))
    one_of('export.outputs', ('labels', 'logits'))
    one_of('export.layout', ('NHWC', 'NCHW'))

    positive('model.up_kernel_size', 'model.width', 'model.backbone_width')
    positive('optimizer.learning_rate', 'optimizer.backbone_factor')
    positive('train.batch_size', 'train.epochs', 'train.log_every_steps', 'train.checkpoint_every_steps')
    positive('train.eval_every_epochs', 'train.keep_checkpoints', 'eval.batch_size')

    bins, levels = config.model.spp_bins, config.model.aux_levels
    check(all(isinstance(b, int) and b > 0 for b in bins), 'model.spp_bins', 'whole numbers greater than 0')
    check(set(levels) <= {1, 2, 3, 4, 5} and len(set(levels)) == len(levels), 'model.aux_levels', 'levels of 1 .. 5')
    check(config.model.up_kernel_size % 2 == 1, 'model.up_kernel_size', 'odd')
    weights = config.loss.aux_weights
    check(
        len(weights) == len(levels) and all(math.isfinite(w) and w >= 0 for w in weights),
        'loss.aux_weights',
        f'{len(levels)} numbers not below 0, one a level of config.model.aux_levels={tuple(levels)}',
    )
    check(0 < config.loss.mining_threshold < 1, 'loss.mining_threshold', 'between 0 and 1')
    check(0 < config.loss.mining_min_kept <= 1, 'loss.mining_min_kept', 'greater than 0 and at most 1')
    weights, num_classes = config.loss.class_weights, CLASS_TABLES[config.data.name].num_classes
    check(
        len(weights) in (0, num_classes) and all(math.isfinite(w) and w >= 0 for w in weights),
        'loss.class_weights',
        f'() or {num_classes} numbers not below 0, one a class',
    )

    size('data.crop_size', optional=False)
    check(min(config.data.crop_size) >= 33, 'data.crop_size', 'at least 33 both ways')
    scales = config.data.scale_range
    check(len(scales) == 2 and 0 < scales[0] <= scales[1] < math.inf, 'data.scale_range', 'lowest and highest scale')
    check(config.seed >= 0, 'seed', 'not below 0')
    check(0 <= config.optimizer.momentum < 1, 'optimizer.momentum', 'from 0 to below 1')
    check(0 <= config.optimizer.weight_decay < math.inf, 'optimizer.weight_decay', 'not below 0')
    check(0 <= config.optimizer.ema_decay < 1, 'optimizer.ema_decay', 'from 0 to below 1')
    check(0 <= config.schedule.floor < config.optimizer.learning_rate, 'schedule.floor', 'from 0 to the learning rate')
    check(0 < config.schedule.power < math.inf, 'schedule.power', 'greater than 0')
    check(0 <= config.schedule.warmup_epochs < config.train.epochs, 'schedule.warmup_epochs', 'from 0 to train.epochs')
    size('export.size', optional=False)
    check(min(config.export.size) >= 33, 'export.size', 'at least 33 both ways')
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
    scales = config.eval.scales
    check(len(scales) > 0 and all(0 < s < math.inf for s in scales), 'eval.scales', 'numbers greater than 0')
    for key in ('train.batch_size', 'eval.batch_size'):
        section, name = key.split('.')
        check(config[section][name] % num_devices == 0, key, f'a multiple of the {num_devices} devices')
