"""Checks on the values of settings that no type can make: before any data is read, in every mode."""

import functools
import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from atonet_jax.config import CHOICES, SIDE_STEP, benchmark_sizes, create_network, default_config, flat_settings
from atonet_jax.data.augmentation import SMALLEST_CROP
from atonet_jax.errors import InputError

_LARGEST_SEED = 2**63 - 1  # that JAX takes
_SMALLEST_SCALE = 0.1
INT8_FORMATS = ('onnx', 'tflite')


def validate(config: ConfigDict) -> None:
    """Checks everything that depends on the config alone.

    Raises:
        InputError: names a key whose value cannot work, and what would.
    """
    checks = _Checks(config)
    defaults = flat_settings(default_config(config.model.name))
    if _options_of(flat_settings(config)) != _options_of(defaults):
        raise InputError(
            f'config.model.name={config.model.name}: the config has the options of another network; give '
            f'--config=FILE:{config.model.name}'
        )
    for key, value in flat_settings(config).items():
        if key.startswith('model.') and defaults[key] == ():
            continue  # of which type it is, the network alone knows
        if key in CHOICES:
            checks.words(key)
        elif isinstance(value, (tuple, list)):
            holds_numbers = _holds_numbers(value, nested=key == 'benchmark.sizes')
            checks.require(holds_numbers, key, 'numbers alone, such as (1,) or (2,3)')
    create_network(config, num_classes=19)
    for check_section in (
        _check_train, _check_data, _check_loss, _check_optimizer, _check_eval, _check_predict, _check_benchmark,
        _check_export, _check_serve,
    ):  # fmt: skip
        check_section(config, checks)


def _options_of(settings: Iterable[str]) -> set[str]:
    return {key for key in settings if key.startswith('model.')}


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


def validate_classes(config: ConfigDict, num_classes: int) -> None:
    """Checks the values that depend on how many classes the data has.

    Raises:
        InputError: as `validate`.
    """
    weights = config.loss.class_weights
    if len(weights) not in (0, num_classes) and weights[0] not in CHOICES['loss.class_weights']:
        raise InputError(
            f'config.loss.class_weights={weights!r}: must be {num_classes} numbers, one a class; or one of '
            f'{", ".join(CHOICES["loss.class_weights"])}; or ()'
        )


class _Checks:
    """Requirements on the values of a config. Each raises InputError, naming the key and what it must be."""

    def __init__(self, config: ConfigDict):
        self._config = config

    def value(self, key: str) -> Any:
        return functools.reduce(lambda section, name: section[name], key.split('.'), self._config)

    def require(self, holds: bool, key: str, wanted: str) -> None:
        if not holds:
            raise InputError(f'config.{key}={self.value(key)!r}: must be {wanted}')

    def words(self, key: str) -> None:
        value, words = self.value(key), CHOICES[key]
        if isinstance(value, str):
            self.require(value in words, key, f'one of {", ".join(words)}')
        elif key != 'loss.class_weights':  # which may hold numbers
            self.require(all(word in words for word in value), key, f'some of {", ".join(words)}')

    def positive(self, *keys: str) -> None:
        for key in keys:
            self.require(math.isfinite(self.value(key)) and self.value(key) > 0, key, 'greater than 0')

    def not_negative(self, *keys: str) -> None:
        for key in keys:
            self.require(0 <= self.value(key) < math.inf, key, 'not below 0')

    def between(self, low: float, high: float, *keys: str) -> None:
        for key in keys:
            self.require(low <= self.value(key) <= high, key, f'from {low} to {high}')

    def low_and_high(self, key: str, lowest: float, highest: float, wanted: str) -> None:
        value = self.value(key)
        holds = len(value) == 2 and _are_finite(value) and lowest < value[0] <= value[1] <= highest
        self.require(holds, key, wanted)

    def size(self, key: str, *, optional: bool) -> None:
        value = self.value(key)
        wanted = 'two whole numbers greater than 0, height and width' + (', or ()' if optional else '')
        self.require(len(value) == 2 and _are_counts(value) or (optional and not value), key, wanted)


def _holds_numbers(values: Any, nested: bool) -> bool:
    """Whether all of `values` are numbers, or tuples of numbers where these may be."""
    return all(
        _holds_numbers(value, nested=False)
        if nested and isinstance(value, (tuple, list))
        else isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in values
    )


def _are_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _are_counts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)


def _check_data(config: ConfigDict, checks: _Checks) -> None:
    checks.between(0, _LARGEST_SEED, 'seed', 'data.synthetic.seed')
    checks.between(0, 1, 'data.unknown_as_void')
    checks.positive('data.max_pixels')
    black_and_white = config.data.sample_range
    if black_and_white:
        wanted = 'two numbers, black and a larger one for white, or ()'
        checks.low_and_high('data.sample_range', -math.inf, math.inf, wanted)
        checks.require(black_and_white[0] < black_and_white[1], 'data.sample_range', wanted)
    checks.size('data.crop_size', optional=True)
    least = min(config.data.crop_size, default=SMALLEST_CROP)
    checks.require(least >= SMALLEST_CROP, 'data.crop_size', f'at least {SMALLEST_CROP} both ways')
    wanted = f'lowest and highest scale, at least {_SMALLEST_SCALE}'  # a crop is cut from so many times its size
    checks.low_and_high('data.scale_range', 0, math.inf, wanted)
    checks.require(config.data.scale_range[0] >= _SMALLEST_SCALE, 'data.scale_range', wanted)
    checks.positive('data.synthetic.train_scenes', 'data.synthetic.val_scenes')
    for name in ('class_aware_crops', 'brightness', 'contrast', 'saturation', 'blur', 'erasing'):
        checks.between(0, 1, f'data.augmentation.{name}')
    checks.between(0, 0.5, 'data.augmentation.hue')
    checks.between(0, 180, 'data.augmentation.rotation')
    wanted = 'lowest and highest, above 0 and at most'
    checks.low_and_high('data.augmentation.blur_sigma', 0, 10, f'{wanted} 10 pixels')
    checks.low_and_high('data.augmentation.erasing_area', 0, 1, f'{wanted} 1')


def _check_loss(config: ConfigDict, checks: _Checks) -> None:
    weights = config.loss.aux_weights
    is_valid = _are_finite(weights) and min(weights, default=0) >= 0
    checks.require(is_valid, 'loss.aux_weights', 'numbers not below 0, or ()')
    checks.require(0 < config.loss.mining_threshold < 1, 'loss.mining_threshold', 'between 0 and 1')
    checks.require(0 < config.loss.mining_min_kept <= 1, 'loss.mining_min_kept', 'greater than 0 and at most 1')
    weights, words = config.loss.class_weights, CHOICES['loss.class_weights']
    is_word = len(weights) == 1 and weights[0] in words
    checks.require(
        not weights or is_word or (_are_finite(weights) and min(weights) >= 0 and max(weights) > 0),
        'loss.class_weights',
        f'numbers not below 0, one a class and not all 0; or one of {", ".join(words)}; or ()',
    )


def _check_optimizer(config: ConfigDict, checks: _Checks) -> None:
    options, schedule = config.optimizer, config.schedule
    checks.positive('optimizer.learning_rate', 'optimizer.backbone_factor')
    checks.not_negative('optimizer.weight_decay')
    for name in ('momentum', 'second_beta', 'ema_decay'):
        checks.require(0 <= options[name] < 1, f'optimizer.{name}', 'from 0 to below 1')
    is_part = set(options.frozen) < set(CHOICES['optimizer.frozen'])
    checks.require(is_part, 'optimizer.frozen', 'fewer than all groups')
    has_floor = schedule.name != 'constant'
    wanted = f'from 0 to below optimizer.learning_rate={options.learning_rate:g}'
    checks.require(not has_floor or 0 <= schedule.floor < options.learning_rate, 'schedule.floor', wanted)
    checks.positive('schedule.power', 'schedule.step_epochs')
    checks.require(0 < schedule.step_factor <= 1, 'schedule.step_factor', 'greater than 0 and at most 1')
    is_shorter = 0 <= schedule.warmup_epochs < config.train.epochs
    checks.require(is_shorter, 'schedule.warmup_epochs', 'from 0 to below train.epochs')


def _check_train(config: ConfigDict, checks: _Checks) -> None:
    checks.require(
        not (config.init_from and config.model.pretrained_backbone),
        'model.pretrained_backbone',
        'empty where config.init_from is given, which holds a backbone',
    )
    checks.positive('train.batch_size', 'train.epochs', 'train.log_every_steps', 'train.checkpoint_every_steps')
    checks.positive('train.eval_every_epochs', 'train.keep_checkpoints')
    checks.require(_are_counts([config.train.accumulation]), 'train.accumulation', 'a whole number greater than 0')


def _check_eval(config: ConfigDict, checks: _Checks) -> None:
    checks.positive('eval.batch_size')
    for name in ('center_crop', 'window', 'window_stride'):
        checks.size(f'eval.{name}', optional=True)
    window, stride = config.eval.window, config.eval.window_stride
    has_no_gaps = not stride or (len(window) == 2 and stride[0] <= window[0] and stride[1] <= window[1])
    wanted = 'no larger than config.eval.window, so that windows leave no gaps'
    checks.require(has_no_gaps, 'eval.window_stride', wanted)
    checks.not_negative('eval.pictures')
    height, scales = config.eval.height, config.eval.scales
    checks.require(isinstance(height, int) and height >= 0, 'eval.height', 'a whole number, or 0')
    wanted = '() unless config.eval.height is 0, because the crop would be resized to that height; give one of the two'
    checks.require(not (config.eval.center_crop and height), 'eval.center_crop', wanted)
    checks.require(scales and _are_finite(scales) and min(scales) > 0, 'eval.scales', 'numbers greater than 0')


def _check_predict(config: ConfigDict, checks: _Checks) -> None:
    checks.require(config.predict.pictures, 'predict.pictures', f'some of {", ".join(CHOICES["predict.pictures"])}')
    checks.positive('predict.batch_size', 'predict.max_pixels')
    checks.not_negative('predict.max_frames')


def _check_benchmark(config: ConfigDict, checks: _Checks) -> None:
    sizes, batch_sizes = benchmark_sizes(config), config.benchmark.batch_sizes
    are_sizes = sizes and all(len(size) == 2 and _are_counts(size) for size in sizes)
    wanted = 'whole numbers greater than 0: (height, width), or several such as ((1024, 2048), (720, 960))'
    checks.require(are_sizes, 'benchmark.sizes', wanted)
    are_counts = batch_sizes and _are_counts(batch_sizes)
    checks.require(are_counts, 'benchmark.batch_sizes', 'whole numbers greater than 0')
    checks.require(config.benchmark.dtypes, 'benchmark.dtypes', f'some of {", ".join(CHOICES["benchmark.dtypes"])}')
    checks.positive('benchmark.rounds', 'benchmark.seconds')
    checks.not_negative('benchmark.warmup')


def _check_export(config: ConfigDict, checks: _Checks) -> None:
    checks.size('export.size', optional=False)
    checks.require(min(config.export.size) >= 33, 'export.size', 'at least 33 both ways')
    form = config.export.format
    is_possible = not config.export.dynamic_size or form == 'onnx'
    checks.require(is_possible, 'export.dynamic_size', "False, except where config.export.format='onnx'")
    is_possible = config.export.precision == 'float32' or form in INT8_FORMATS
    wanted = f'float32, except where config.export.format is {" or ".join(INT8_FORMATS)}'
    checks.require(is_possible, 'export.precision', wanted)
    checks.positive('export.calibration_images')
    checks.require(0 <= config.export.int8_tolerance <= 100, 'export.int8_tolerance', 'from 0 to 100 points of mIoU')
    checks.not_negative('export.batch_size')


def _check_serve(config: ConfigDict, checks: _Checks) -> None:
    options = config.serve
    checks.require(options.host, 'serve.host', 'an address or a name of this machine, such as 127.0.0.1')
    checks.between(0, 65535, 'serve.port')
    checks.positive('serve.max_megabytes', 'serve.max_pixels')
    is_multiple = options.long_side > 0 and options.long_side % SIDE_STEP == 0
    checks.require(is_multiple, 'serve.long_side', f'a multiple of {SIDE_STEP}')
    checks.not_negative('serve.waiting')
