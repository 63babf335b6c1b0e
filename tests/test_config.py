"""Every config builds, and a value or key that cannot work is named before any data is read."""

import pathlib
import re
import runpy

import pytest

from atonet_jax.command_line import read_config
from atonet_jax.config import create_network, default_config, expand_home
from atonet_jax.data.labels import CLASS_TABLES
from atonet_jax.errors import InputError
from atonet_jax.models import abstract_variables
from atonet_jax.validation import validate, validate_batches, validate_classes

CONFIG_FILES = sorted(pathlib.Path(__file__).parents[1].glob('configs/*.py'))
PUBLISHED = runpy.run_path(str(CONFIG_FILES[0].with_name('published.py')))
RECIPES = PUBLISHED['RECIPES']

BAD_VALUES = [
    ('seed', -1),
    ('model.name', 'unet'),
    ('model.spp_bins', (8, 0)),
    ('model.spp_bins', (8, 2.5)),
    ('model.aux_levels', (3, 4, 6)),
    ('model.aux_levels', (3, 4, 4)),
    ('model.up_kernel_size', 2),
    ('model.up_kernel_size', -1),
    ('model.width', 0),
    ('model.backbone_width', 0),
    ('model.dtype', 'float16'),
    ('data.name', 'ade20k'),
    ('data.crop_size', (1024,)),
    ('data.crop_size', (1024, 32)),
    ('data.crop_size', (1024, 0.5)),
    ('data.scale_range', (1.0,)),
    ('data.cache', 'gpu'),
    ('data.on_corrupt', 'ignore'),
    ('data.augmentation.hue', 0.6),
    ('data.augmentation.blur', -0.1),
    ('data.augmentation.rotation', float('nan')),
    ('data.augmentation.blur_sigma', (0.0, 1.0)),
    ('data.augmentation.erasing_area', (0.5, 0.2)),
    ('data.scale_range', (2.0, 1.0)),
    ('data.scale_range', (0.0, 1.0)),
    ('data.scale_range', (0.01, 1.0)),
    ('data.synthetic.val_scenes', 0),
    ('data.scale_range', (1.0, float('inf'))),
    ('loss.aux_weights', (1.0, 1.0, -1.0)),
    ('loss.aux_weights', (1.0, 1.0, float('nan'))),
    ('loss.aux_target', 'upsampled_labels'),
    ('loss.mining_threshold', 1.0),
    ('loss.mining_threshold', 0.0),
    ('loss.mining_min_kept', 0.0),
    ('loss.mining_min_kept', 100000.0),
    ('loss.class_weights', (-1.0,) * 19),
    ('optimizer.name', 'rmsprop'),
    ('optimizer.second_beta', 1.0),
    ('optimizer.decayed', 'biases'),
    ('optimizer.backbone_factor_on', 'decay'),
    ('optimizer.learning_rate', 0.0),
    ('optimizer.learning_rate', float('nan')),
    ('optimizer.momentum', 1.0),
    ('optimizer.weight_decay', -1e-4),
    ('optimizer.backbone_factor', 0.0),
    ('optimizer.ema_decay', 1.0),
    ('schedule.name', 'step'),
    ('schedule.step_epochs', 0.0),
    ('schedule.step_factor', 1.5),
    ('schedule.per', 'batch'),
    ('schedule.warmup_epochs', 200.0),
    ('schedule.warmup_epochs', -1.0),
    ('seed', 2**63),
    ('data.synthetic.seed', -1),
    ('loss.class_weights', (0.0, 0.0)),
    ('loss.class_weights', (1.0, float('nan'))),
    ('loss.class_weights', (1.0, -1.0)),
    ('loss.class_weights', ('balancd',)),
    ('loss.class_weights', ('balanced', 'enet')),
    ('loss.aux_weights', ('heavy',)),
    ('eval.scales', ('small',)),
    ('data.scale_range', ('small', 'large')),
    ('train.batch_size', 0),
    ('train.epochs', 0.0),
    ('train.epochs', float('inf')),
    ('train.log_every_steps', 0),
    ('train.checkpoint_every_steps', 0),
    ('train.eval_every_epochs', 0.0),
    ('train.keep_checkpoints', 0),
    ('eval.batch_size', 0),
    ('eval.checkpoint', 'newest'),
    ('eval.center_crop', (1024,)),
    ('eval.window', (0, 1024)),
    ('eval.window_stride', (512, 1.5)),
    ('eval.window_stride', (512, 512)),  # without a window
    ('eval.pictures', -1),
    ('export.dynamic_size', True),  # of the format weights
    ('schedule.floor', -1.0),
    ('schedule.floor', 0.5),
    ('data.sample_range', (7, 7)),
    ('model.aux_levels', (3.0,)),
    ('schedule.power', 0.0),
    ('optimizer.weight_decay', float('inf')),
    ('data.name', 'kitti'),
    ('eval.scales', ()),
    ('eval.scales', (1.0, 0.0)),
    ('eval.scales', ('1.0',)),
    ('eval.scales', (1.0, None)),
    ('eval.center_crop', (True, True)),
    ('data.scale_range', ('a', 'b')),
    ('data.augmentation.blur_sigma', (0.1, 'b')),
    ('loss.aux_weights', ('a',)),
    ('benchmark.sizes', ((512, 'b'),)),
    ('benchmark.dtypes', ((1,),)),
    ('optimizer.frozen', ('backbone', 1)),
    ('predict.pictures', ([1],)),
]
OTHER_VALUES = {
    'model.dtype': 'bfloat16',
    'model.spp_bins': (),
    'model.aux_levels': (5,),
    'model.up_kernel_size': 1,
    'data.crop_size': (33, 33),
    'loss.aux_weights': (0.5,),
    'loss.aux_target': 'upsampled_features',
    'loss.mining': True,
    'loss.class_weights': (1.0,) * 19,
    'optimizer.name': 'adamw',
    'schedule.name': 'poly',
    'eval.center_crop': (1024, 1024),
    'eval.window': (512, 512),
    'eval.window_stride': (256, 256),
    'eval.scales': (0.75, 1.0),
}


def changed_config(values):
    config = default_config()
    config.update_from_flattened_dict(values)
    return config


@pytest.mark.parametrize('path', [p for p in CONFIG_FILES if p.name != 'published.py'], ids=lambda path: path.name)
def test_config_file_is_valid_and_its_network_can_be_created(path):
    config = runpy.run_path(str(path))['get_config']()
    validate(config)
    num_classes = CLASS_TABLES[config.data.name].num_classes if config.data.name in CLASS_TABLES else 5
    model = create_network(config, num_classes)
    variables = abstract_variables(model)
    assert variables['params']['head']['classifier']['conv']['kernel'].shape[-1] == num_classes


@pytest.mark.parametrize('recipe', RECIPES)
def test_published_recipe_is_valid_and_says_what_is_known(recipe):
    config = PUBLISHED['get_config'](recipe)
    validate(config)
    validate_classes(config, CLASS_TABLES[config.data.name].num_classes)
    assert recipe == f'{config.model.name}_{config.data.name}'
    assert 'nown' in RECIPES[recipe].__doc__ or 'same recipe' in RECIPES[recipe].__doc__


def test_recipes_for_camvid_choose_nothing_on_test():
    of_camvid = {name: make() for name, make in RECIPES.items() if name.endswith('_camvid')}
    assert len(of_camvid) > 5
    for name, config in of_camvid.items():
        assert (config.data.eval_split, config.eval.checkpoint) == ('test', 'latest'), name


@pytest.mark.parametrize('argument', ['', ':erfnet'])
def test_a_published_recipe_that_is_not_there_is_refused_with_a_list(argument, monkeypatch):
    monkeypatch.chdir(CONFIG_FILES[0].parents[1])
    with pytest.raises(InputError, match='there is atonet_camvid, .*pidnet_s_cityscapes'):
        read_config(['main.py', f'--config=configs/published.py{argument}'])


def test_there_are_config_files():
    assert {'camvid.py', 'cityscapes.py', 'synthetic.py', 'tiny.py'} <= {path.name for path in CONFIG_FILES}


@pytest.mark.parametrize(('key', 'value'), BAD_VALUES, ids=lambda value: str(value))
def test_value_that_cannot_work_is_named(key, value):
    with pytest.raises(InputError) as refusal:
        validate(changed_config({key: value}))
    assert str(refusal.value).startswith(f'config.{key}={value!r}: must be ')
    assert '\n' not in str(refusal.value)


def test_the_name_alone_does_not_change_the_network():
    with pytest.raises(InputError, match=r'^config.model.name=enet: .*; give --config=FILE:enet$'):
        validate(changed_config({'model.name': 'enet'}))


def test_a_centre_crop_is_refused_beside_a_height():
    """The crop would be resized to the rows of the whole image, and its scores would be those of another scale."""
    with pytest.raises(InputError, match=r'^config.eval.center_crop=.*unless config.eval.height is 0'):
        validate(changed_config({'eval.center_crop': (64, 64), 'eval.height': 512}))


def test_class_weights_that_do_not_fit_the_classes_are_named():
    config = changed_config({'loss.class_weights': (1.0,) * 18})
    validate_classes(config, 18)
    validate_classes(changed_config({'loss.class_weights': ('balanced',)}), 19)
    with pytest.raises(InputError, match=r'^config.loss.class_weights=\(1.0, .*must be 19 numbers.*; or one of bal'):
        validate_classes(config, 19)


def test_documented_alternatives_are_accepted():
    validate(changed_config(OTHER_VALUES))


def test_training_batch_that_devices_cannot_share_is_named_with_the_nearest_ones_that_can():
    config = changed_config({'train.batch_size': 3})
    with pytest.raises(InputError, match=r'config.train.batch_size=3: cannot be split over 2 device.*give 2 or 4$'):
        validate_batches(config, num_devices=2)
    config = changed_config({'train.batch_size': 3, 'train.accumulation': 4})
    with pytest.raises(InputError, match='give 8$'):
        validate_batches(config, num_devices=2)


def test_commands_for_several_processes_give_each_device_a_part_of_the_batch(repository):
    text = (repository / 'docs' / 'scaling.md').read_text()
    commands = re.findall(r'(?:--ntasks=|-n )(\d+) .*train\.batch_size=(\d+)', text)
    assert len(commands) == len(re.findall(r'^(?:srun|mpirun) ', text, re.MULTILINE)) == 2
    for devices, batch_size in commands:
        validate_batches(changed_config({'train.batch_size': int(batch_size)}), int(devices))


@pytest.mark.parametrize(
    'arguments',
    [
        ['--config=configs/camvid.py:pidnet_s'],
        ['--config=configs/camvid.py', '--config.model.name=pidnet_s'],
        ['--config=configs/camvid.py', '--config.model.name', 'pidnet_s'],
    ],
)
def test_a_network_is_chosen_beside_the_file(arguments, monkeypatch):
    monkeypatch.chdir(CONFIG_FILES[0].parents[1])
    _, config = read_config(['main.py', *arguments])
    assert config.model.name == 'pidnet_s' and 'edge_border' in config.model
    assert 'spp_bins' not in config.model and config.data.name == 'camvid'


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['--config=configs/camvid.py:unet'], "^config.model.name='unet': must be one of atonet"),
        (['--config=configs/camvid.py:pidnet_s', '--config.model.spp_bins=(1,)'], 'spp_bins: there is no such setting'),
        (['--config=configs/camvid.py:atonet', '--config.model.name=pidnet_s'], 'name two networks'),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, error, monkeypatch):
    monkeypatch.chdir(CONFIG_FILES[0].parents[1])
    with pytest.raises(InputError, match=error):
        read_config(['main.py', *arguments])


@pytest.mark.parametrize('value', ['labels,overlay', '(labels, overlay)', "('labels','overlay')"])
@pytest.mark.parametrize('joined', [True, False])
def test_a_list_of_words_may_be_given_without_quotes(value, joined, repository, monkeypatch):
    monkeypatch.chdir(repository)
    name = '--config.predict.pictures'
    given = [f'{name}={value}'] if joined else [name, value]
    _, config = read_config(['main.py', '--config=configs/tiny.py', *given])
    assert config.predict.pictures == ('labels', 'overlay')


@pytest.mark.parametrize(
    ('content', 'error'),
    [
        ('import nothing_of_this_name', "mine.py: line 1: ModuleNotFoundError: No module named '.*'; mend"),
        ('def get_config(:', 'mine.py: line 1: SyntaxError: '),
        ('def get_config():\n    return 1 / 0', 'mine.py: line 2: ZeroDivisionError: division by zero'),
        ('open("none")', "mine.py: line 1: FileNotFoundError: .*: 'none'"),
    ],
)
def test_a_config_file_that_does_not_run_is_named_with_the_line(content, error, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(content)
    with pytest.raises(InputError, match=error):
        read_config(['main.py', f'--config={path}'])


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        ('config = None', r'get_config\(\) must return what default_config\(network\) made, .*, not NoneType$'),
        ('config = config.train', '.* must return what default_config'),
        ('config.train = {"epochs": 3.0}', r'config.train.\w+ is missing; change settings one by one'),
        ('config.data.crop_size = None', r'config.data.crop_size is None; the default is \(1024, 1024\)$'),
        ('with config.unlocked(): config.train.foo = 3', 'config.train.foo: there is no such setting$'),
    ],
)
def test_a_config_that_is_none_is_refused_before_a_run_keeps_it(change, error, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from atonet_jax.config import default_config\n'
        f'def get_config():\n    config = default_config()\n    {change}\n    return config\n'
    )
    with pytest.raises(InputError, match=f'^--config=.*mine.py: {error}'):
        read_config(['main.py', f'--config={path}'])


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(InputError, match='is a folder; name a file in it'):
        read_config(['main.py', f'--config={tmp_path}'])


def test_a_config_file_that_takes_no_network_is_named(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('def get_config():\n    pass\n')
    with pytest.raises(InputError, match=r'get_config\(\) takes no network; leave out :enet'):
        read_config(['main.py', f'--config={path}:enet'])


def test_the_last_value_of_a_setting_counts(repository, monkeypatch):
    monkeypatch.chdir(repository)
    size = '--config.export.size'
    _, config = read_config(['main.py', '--config=configs/tiny.py', f'{size}=(64,64)', size, '(32,48)'])
    assert config.export.size == (32, 48)


@pytest.mark.parametrize('flag', ['--config', '--workdir', '--mode'])
def test_a_flag_without_its_value_is_named(flag):
    with pytest.raises(InputError, match=f'^{flag}: has no value; give {flag}=VALUE$'):
        read_config(['main.py', flag])


def test_flags_may_lie_in_a_file(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    (tmp_path / 'flags').write_text('--config=configs/tiny.py\n--config.train.batch_size=3\n')
    _, config = read_config(['main.py', f'--flagfile={tmp_path}/flags'])
    assert config.train.batch_size == 3


def test_a_typing_error_in_a_config_file_is_refused(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from atonet_jax.config import default_config\n'
        'def get_config():\n    config = default_config()\n    config.train.update(batchsize=8)\n    return config\n'
    )
    with pytest.raises(InputError, match='mine.py.*batchsize'):
        read_config(['main.py', f'--config={path}'])


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['--config=configs/tiny.py', '--config.train.batchsize=8'], 'train.batchsize.*there is train.batch_size'),
        (['--config=configs/tiny.py', '--config.zzz=8'], 'zzz: there is no such setting.*seed.*model.name'),
        (['--config=configs/tiny.py', '--config.train=8'], 'config.train: there is no such setting'),
        (['--config=configs/none.py'], 'configs/none.py: no such file'),
        ([], 'give --config=configs/NAME.py'),
    ],
)
def test_command_line_that_names_no_setting_is_refused(arguments, error, monkeypatch):
    monkeypatch.chdir(CONFIG_FILES[0].parents[1])
    with pytest.raises(InputError, match=error):
        read_config(['main.py', *arguments])


@pytest.mark.parametrize('content', ['', 'get_config = {}["missing"]'])
def test_config_file_without_a_config_is_refused(content, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(content)
    with pytest.raises(InputError, match='mine.py: has an unknown or missing name .*; the file must define get_config'):
        read_config(['main.py', f'--config={path}'])


def test_every_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    config = changed_config(
        {
            'data.root': '~/data',
            'data.folder.classes': '~/classes.json',
            'init_from': '~/a~b.pth',
            'predict.input': '~/photos/*.jpg',
            'data.cache_dir': 'there/~',
            'data.folder.label_suffix': '~',
        }
    )
    expand_home(config)
    assert config.data.root == '/home/me/data' and config.data.folder.classes == '/home/me/classes.json'
    assert config.init_from == '/home/me/a~b.pth' and config.predict.input == '/home/me/photos/*.jpg'
    assert config.data.cache_dir == 'there/~' and config.data.folder.label_suffix == '~'
