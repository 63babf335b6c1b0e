"""A file of published weights alone says which network, classes and images it is for, and void is no class."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import linen as nn

from atonet_jax import identification
from atonet_jax.command_line import read_config
from atonet_jax.data.batches import Batches
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import CAMVID, CITYSCAPES, IGNORE_LABEL
from atonet_jax.data.sources import load_dataset
from atonet_jax.errors import InputError
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.report import write_report
from atonet_jax.identification import identify, named_otherwise
from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.predict.outputs import write_label_png
from atonet_jax.process.devices import create_mesh
from atonet_jax.published_weights import load_backbone, load_network
from atonet_jax.runs.network import config_of_file, trained_network
from atonet_jax.runs.workdir import claim, load_class_table
from atonet_jax.torch_files import write_state_dict
from atonet_jax.torch_weights import from_torch, to_torch
from atonet_jax.validation import validate


def arrays_of(name, outputs, **options):
    """What a file of the network holds: in each array that is learned a number of its own."""
    model = create_model(name, outputs, **options)
    blank = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), abstract_variables(model))
    arrays = to_torch(blank, model)
    fixed = network(model).weights[0].fixed(outputs)
    return {entry: np.full_like(array, 1 + i) for i, (entry, array) in enumerate(arrays.items())} | fixed


def config_for(path, tmp_path, *arguments):
    argv = ['main.py', f'--workdir={tmp_path / "run"}', '--mode=predict', f'--config.init_from={path}', *arguments]
    return read_config(argv)[1]


@pytest.mark.parametrize(
    ('name', 'outputs', 'data', 'void', 'height'),
    [
        ('espnet', 20, 'cityscapes', True, 512),
        ('espnet_camvid', 12, 'camvid', True, 360),
        ('erfnet', 20, 'cityscapes', True, 512),
        ('fcn8s_fc1024', 11, 'camvid', False, 0),
    ],
)
def test_a_file_says_network_variant_classes_and_images(tmp_path, name, outputs, data, void, height):
    path = str(tmp_path / 'weights.pth')
    write_state_dict(path, arrays_of(name, outputs))
    config = config_for(path, tmp_path)
    validate(config)
    assert (config.model.name, config.data.name, config.eval.height) == (name, data, height)
    network = trained_network(config, str(tmp_path / 'run'), create_mesh())
    assert network.model.num_classes == outputs
    assert network.class_table.has_void_output == void
    assert network.class_table.class_names == {'camvid': CAMVID, 'cityscapes': CITYSCAPES}[data].class_names


def test_the_fixed_kernels_of_a_file_tell_the_original_fcn():
    arrays = arrays_of('fcn8s_original', 21, width=4, fc_features=16)
    assert identify(arrays) == 'fcn8s_original'
    assert arrays['upscore8.weight'].shape == (21, 21, 16, 16)
    assert identify({name: array for name, array in arrays.items() if 'upscore' not in name}) == 'fcn8s'
    for name in ('fcn8s', 'fcn8s_original'):  # both take them
        from_torch(arrays, create_model(name, 21, width=4, fc_features=16))
    arrays['upscore8.weight'] = arrays['upscore8.weight'] + np.float32(0.1)
    with pytest.raises(InputError, match='upscore8.weight: was learned, and the network has a fixed kernel there'):
        from_torch(arrays, create_model('fcn8s_original', 21, width=4, fc_features=16))


def test_options_that_published_weights_need_are_said(tmp_path, caplog):
    path = str(tmp_path / 'fcn8s_from_caffe.pth')
    write_state_dict(path, arrays_of('fcn8s_original', 21, width=4, fc_features=16))
    with pytest.raises(InputError, match='for 21 classes, .* that it is for and --config.model.caffe_images=true$'):
        config_of_file(path)
    for name in ('fcn8s_original', 'fcn8s'):  # both take the file
        caplog.clear()
        model = create_model(name, 21, width=4, fc_features=16)
        with caplog.at_level('WARNING', 'atonet_jax'):
            load_network(path, model)
            load_network(path, model.clone(caffe_images=True))
        assert caplog.messages == [f'{path}: published weights for 21 classes need --config.model.caffe_images=true']


def test_fine_tuning_on_other_classes_needs_the_options_of_the_file(tmp_path, caplog):
    path = str(tmp_path / 'fcn8s_from_caffe.pth')
    write_state_dict(path, arrays_of('fcn8s_original', 21, width=4, fc_features=16))
    model = create_model('fcn8s_original', 11, width=4, fc_features=16)
    fresh = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), abstract_variables(model))
    with caplog.at_level('WARNING', 'atonet_jax'):
        load_network(path, model, fresh, strict=False)
        assert caplog.messages == [f'{path}: published weights for 21 classes need --config.model.caffe_images=true']
        load_network(path, model.clone(caffe_images=True), fresh, strict=False)
        assert len(caplog.messages) == 1


def test_a_file_that_is_named_after_another_network_is_said(tmp_path, caplog):
    path, model = str(tmp_path / 'ERFNet_best.pth'), create_model('espnet', 20)
    write_state_dict(path, arrays_of('espnet', 20))
    load_network(path, model)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert warning == f"{path}: is named after erfnet, but its arrays are not that network's; the arrays count"


@pytest.mark.parametrize(
    ('file', 'name', 'named'),
    [
        ('espnet_c_cityscapes_p2_q8.pth', 'espnet_c', None),
        ('espnet_c_cityscapes_p2_q8.pth', 'espnet', 'espnet_c'),
        ('espnet_cityscapes_p2_q8.pth', 'espnet', None),
        ('DFANet-B.pth', 'dfanet_a', 'dfanet_b'),
        ('dfanet.pth', 'dfanet_b', None),
        ('swiftnet_ss_cs.pt', 'swiftnet_ss_2020', None),
        ('swiftnet_pyr_cs.pt', 'swiftnet_ss_2020', 'swiftnet_pyr'),
        ('model_best.pth', 'atonet', None),
    ],
)
def test_which_network_a_file_is_named_after(file, name, named):
    assert named_otherwise(f'pidnet_s/{file}', create_model(name, 11)) == named


def test_imagenet_files_of_erfnet_and_pidnet_start_their_backbones(tmp_path, caplog):
    caplog.set_level('INFO', 'atonet_jax')
    files = {
        'erfnet': {f'module.features.{n}': a for n, a in arrays_of('erfnet', 19).items() if n.startswith('encoder.')}
        | {'module.classifier.1.weight': np.ones((1000, 128), np.float32)},
        'pidnet_s': {n: a for n, a in arrays_of('pidnet_s', 19).items() if re.match(r'(conv1|layer[1-4]_?)\.', n)}
        | {'linear.weight': np.ones((1000, 512), np.float32)},
    }
    for name, arrays in files.items():
        path = str(tmp_path / f'{name}.pth')
        write_state_dict(path, arrays)
        model = create_model(name, 19)
        blank = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), abstract_variables(model))
        variables, fresh = load_backbone(path, model, blank)
        first, last = {'erfnet': ('layer1', 'layer23'), 'pidnet_s': ('stem1', 'final')}[name]
        assert not fresh and all(array.any() for array in jax.tree.leaves(variables['params'][first]))
        assert not any(array.any() for array in jax.tree.leaves(variables['params'][last]))


def test_shapes_are_compared_only_where_networks_share_their_names(monkeypatch):
    """For its shapes, a network is traced twice more."""
    monkeypatch.setattr(identification, 'num_outputs', lambda *_: pytest.fail('asked for shapes'))
    assert identify(arrays_of('erfnet', 19)) == 'erfnet'


def test_a_backbone_is_not_taken_for_a_network(tmp_path):
    path = str(tmp_path / 'resnet18.pth')
    arrays = arrays_of('atonet', 19)  # named as torchvision's ResNet-18
    write_state_dict(path, {n: a for n, a in arrays.items() if re.match(r'(conv1|bn1|layer\d)\.', n)})
    with pytest.raises(InputError, match='holds a backbone alone; train a network from it: --config.model.pretrained'):
        config_for(path, tmp_path)
    with pytest.raises(InputError, match='holds a backbone alone; give it as --config.model.pretrained_backbone'):
        load_network(path, create_model('pidnet_s', 19))


def test_a_file_for_other_classes_or_of_no_known_network_says_what_to_give(tmp_path):
    path = str(tmp_path / 'weights.pth')
    write_state_dict(path, arrays_of('fcn8s_fc1024', 7))
    with pytest.raises(InputError, match='holds fcn8s_fc1024 for 7 classes, .*give --config=FILE:fcn8s_fc1024'):
        config_for(path, tmp_path)
    write_state_dict(path, {'layer.weight': np.zeros((3, 3), np.float32)})
    with pytest.raises(InputError, match='holds none of the known networks; give --config'):
        config_for(path, tmp_path)


def test_the_file_of_another_variant_is_named_though_its_names_are_the_same(tmp_path):
    path = str(tmp_path / 'weights.pth')
    write_state_dict(path, arrays_of('espnet_camvid', 12))
    with pytest.raises(InputError, match='holds another network, espnet_camvid; give --config=FILE'):
        load_network(path, create_model('espnet', 12))


def test_twelve_outputs_are_void_only_where_the_published_weights_have_it(tmp_path):
    path = str(tmp_path / 'weights.pth')
    write_state_dict(path, arrays_of('erfnet', 12))
    with pytest.raises(InputError, match='holds erfnet for 12 classes'):
        config_for(path, tmp_path)


def test_what_an_export_of_such_weights_holds_says_that_there_is_void(tmp_path):
    path = str(tmp_path / 'weights.pth')
    write_state_dict(path, arrays_of('espnet_c', 12))
    config = config_for(path, tmp_path)
    network = trained_network(config, str(tmp_path / 'run'), create_mesh())
    claim(str(tmp_path / 'run'), config, network.class_table)
    assert load_class_table(str(tmp_path / 'run')) == network.class_table


def test_the_arrays_of_the_authors_of_enet_are_those_of_torch7_with_void_first():
    counters = arrays_of('enet_paper', 20)
    arrays = {name: array for name, array in counters.items() if not name.endswith('.num_batches_tracked')}
    for name in ('fullconv.weight', 'fullconv.bias'):
        axis = 1 if arrays[name].ndim > 1 else 0
        index = np.arange(20, dtype=np.float32)
        arrays[name] = arrays[name] * 0 + (index[:, None, None] if axis else index)
    model = create_model('enet_paper', 20)
    assert identify(arrays) == 'enet_paper'
    loaded = from_torch(arrays, model)
    order = [*range(1, 20), 0]
    np.testing.assert_array_equal(loaded['params']['classifier']['bias'], order)
    np.testing.assert_array_equal(loaded['params']['classifier']['transposed_kernel'][0, 0, 0], order)
    for name, ours, factor in [
        ('stage1.4.bn3.weight', 'stage1_4', 0.99),
        ('stage2.0.bn3.weight', 'stage2_0', 0.9),
        ('stage3.7.bn3.weight', 'stage3_7', 0.9),
        ('stage4.0.bn3.weight', 'stage4_0', 1.0),
    ]:
        np.testing.assert_allclose(loaded['params'][ours]['widen']['bn']['scale'], factor * arrays[name], rtol=1e-6)

    ours = from_torch(counters, model)  # a file of a run of this package has PyTorch's counters
    np.testing.assert_array_equal(ours['params']['stage2_0']['widen']['bn']['scale'], counters['stage2.0.bn3.weight'])


class AlwaysVoid(nn.Module):
    num_classes: int = 20
    dtype: jnp.dtype = jnp.float32

    def __call__(self, images, train):
        return {'logits': jnp.broadcast_to(jnp.arange(20.0), (*images.shape[:3], 20))}


def test_void_is_a_miss_in_scores_and_report_and_no_class_in_files(tiny_config, tmp_path):
    dataset = load_dataset(tiny_config.data, 'val')
    evaluation = Evaluator(AlwaysVoid(), Batches(Examples(dataset), create_mesh()), tiny_config.eval).run({})
    assert evaluation.confusion.shape == (19, 20)
    assert evaluation.confusion[:, 19].sum() == evaluation.confusion.sum() > 0
    assert evaluation.scores.miou == evaluation.scores.pixel_accuracy == 0
    assert {score.miou for score in evaluation.per_image} == {0}
    report = str(tmp_path / 'report.html')
    write_report(report, evaluation, tiny_config, CITYSCAPES, workdir=str(tmp_path), weights='', mode='evaluate',
                 environment={'time': '', 'revision': None, 'devices': '', 'versions': ''})  # fmt: skip
    with open(report) as file:
        assert 'of road is taken for void' in file.read()

    labels = np.array([[0, 10, 11]], np.uint8)
    for ids, expected in (('train', [0, 10, IGNORE_LABEL]), ('raw', [21, 2, 30])):
        write_label_png(labels, str(tmp_path / 'a.png'), CAMVID, ids)
        assert np.asarray(PIL.Image.open(tmp_path / 'a.png')).tolist() == [expected]
