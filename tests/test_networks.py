"""A network that is added as docs/networks.md says goes through every mode that takes any network."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import linen as nn

from atonet_jax import config as config_module
from atonet_jax import models
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models.blocks import Classifier, ConvNorm
from atonet_jax.predict import predict
from atonet_jax.training.train import train


class MyNet(nn.Module):
    """Two convolutions."""

    num_classes: int
    width: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict:
        x = ConvNorm(self.width, 3, stride=2, dtype=self.dtype)(images.astype(self.dtype), train)
        x = ConvNorm(self.width, 3, stride=2, dtype=self.dtype)(x, train)
        outputs = {'logits': Classifier(self.num_classes)(x, train)}
        return outputs | {'aux': {}} if train else outputs


@pytest.fixture
def config(tiny_config, monkeypatch):
    monkeypatch.setitem(models._MODELS, 'mynet', MyNet)
    monkeypatch.setattr(config_module, 'MODEL_NAMES', tuple(models._MODELS))
    config = tiny_config.copy_and_resolve_references()
    config.model.update(name='mynet', width=4, aux_levels=())
    config.loss.aux_weights = ()
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
