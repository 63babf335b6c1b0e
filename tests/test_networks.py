"""A network that is added as docs/adding_a_network.md says trains, is evaluated, predicts and is a `Segmenter`."""

import re
import types

import numpy as np
import PIL.Image
import pytest

from atonet_jax.config import default_config
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.inference import Segmenter
from atonet_jax.models import registry
from atonet_jax.predict import predict
from atonet_jax.training.train import train


@pytest.fixture
def config(repository, tiny_config, monkeypatch):
    """Of the page's own example, on tiny scenes."""
    page = (repository / 'docs' / 'adding_a_network.md').read_text()
    example = next(block for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if 'class MyNet' in block)
    module = types.ModuleType('mynet')
    exec(example, vars(module))
    monkeypatch.setattr(registry, 'FAMILIES', [*registry.FAMILIES, module.FAMILY])
    config = default_config('mynet')
    tiny = tiny_config.copy_and_resolve_references()
    for section in ('data', 'optimizer', 'schedule', 'train', 'eval'):
        config[section] = tiny[section]
    config.model.width = 4
    config.train.epochs = 1.0
    return config


def test_it_trains_is_evaluated_and_predicts(config, tmp_path):
    workdir = str(tmp_path / 'run')
    trained = train(config, workdir)
    assert evaluate(config, workdir).miou == pytest.approx(trained.miou, abs=1e-3)
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / 'a.png')
    config.predict.update(input=str(tmp_path / 'a.png'), pictures=('labels',))
    assert predict(config, workdir)
    segment = Segmenter.from_workdir(workdir)
    assert segment.model.width == 4
    expected = np.asarray(segment(image[None]))[0]
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(f'{workdir}/predictions/a_labels.png')), expected)
