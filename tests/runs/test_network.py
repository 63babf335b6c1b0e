"""A network starts from what its config names: a seed, or a run of ours, on other classes too."""

import dataclasses
import re

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.config import create_network, default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.export import export
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import starting_variables, trained_network
from atonet_jax.runs.workdir import load_config


def started_from(workdir, config, table):
    config = config.copy_and_resolve_references()
    config.init_from = workdir
    model = create_network(config, table.num_classes)
    return flatten_dict(starting_variables(config, model, table, create_mesh())[0], sep='/')


def learned(workdir):
    network = trained_network(load_config(workdir), workdir, create_mesh())
    return flatten_dict(network.variables, sep='/')


def test_a_run_of_the_same_classes_gives_all_that_it_has_learned(finished, tiny_config):
    expected = learned(finished)
    for path, array in started_from(finished, tiny_config, CITYSCAPES).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_fresh_variables_follow_the_seed(tiny_config):
    def drawn(seed):
        config = tiny_config.copy_and_resolve_references()
        config.seed = seed
        variables, _ = starting_variables(config, create_network(config, 19), CITYSCAPES, create_mesh())
        return np.asarray(variables['params']['stem']['conv']['kernel'])

    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert (drawn(3) != drawn(4)).all()


def test_a_start_takes_the_checkpoint_that_is_asked_for_and_its_faults_name_the_setting(
    finished, tiny_config, monkeypatch
):
    def refuse(of_run, workdir, mesh):
        raise InputError(f'no {of_run.eval.checkpoint}')

    monkeypatch.setattr('atonet_jax.runs.network.trained_network', refuse)
    config = tiny_config.copy_and_resolve_references()
    for which in ('best', 'latest'):
        config.eval.checkpoint = which
        with pytest.raises(InputError, match=f'config.init_from={finished}: no {which}'):
            started_from(finished, config, CITYSCAPES)


def test_layers_of_other_classes_start_fresh_and_are_named(finished, tiny_config, caplog):
    others = dataclasses.replace(
        CITYSCAPES,
        class_names=('lane', *CITYSCAPES.class_names[1:]),  # as many classes, so that all shapes fit
    )
    expected = learned(finished)
    with caplog.at_level('INFO', 'atonet_jax'):
        started = started_from(finished, tiny_config, others)
    fresh = {path for path, array in started.items() if not np.array_equal(array, expected[path])}
    assert fresh == {path for path in started if 'classifier' in path}
    assert 'fresh: aux3, aux4, aux5, head' in caplog.text
    config = tiny_config.copy_and_resolve_references()
    config.seed = 1
    kernel = 'params/head/classifier/conv/kernel'
    assert (started_from(finished, config, others)[kernel] != started[kernel]).all(), 'they follow the seed'


def test_a_run_of_another_network_is_refused(finished, tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.model.width = 32
    with pytest.raises(InputError, match='no weights of these shapes for .*up1.*give the options of that run'):
        started_from(finished, config, CITYSCAPES)


def test_a_run_of_another_variant_or_network_is_named(finished, tiny_config):
    config = default_config('enet_paper')
    refused = f'config.init_from={finished}: is a run of atonet, not of enet_paper; give a run of the same network'
    with pytest.raises(InputError, match=re.escape(refused)):
        started_from(finished, config, CITYSCAPES)


def test_the_exported_weights_of_a_run_are_a_start(finished, tiny_config, tmp_path):
    config = load_config(finished)
    config.export.output = str(tmp_path / 'weights')
    export(config, finished, force=False)
    expected = learned(finished)
    started = started_from(str(tmp_path / 'weights'), tiny_config, CITYSCAPES)
    for path in expected.keys() & started.keys():
        if not path.split('/')[1].startswith('aux'):  # of training alone, and so in no export
            np.testing.assert_array_equal(started[path], expected[path], err_msg=path)


def test_averages_of_a_run_without_any_are_refused(finished, tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.optimizer.ema_decay = 0.9
    with pytest.raises(InputError, match='config.optimizer.ema_decay=0.9: .* trained without averaged parameters;'):
        trained_network(config, finished, create_mesh())
