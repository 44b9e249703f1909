"""The frozen network whose features a method uses; the weights that it starts from are tested with
`beckman`."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.methods.beckman import Beckman
from raybust.methods.geodesic import Geodesic
from raybust.methods.lp_noise import LpNoise
from raybust.numerics.transport import penultimate
from raybust.training import initial
from raybust.training.fit import fit
from raybust.training.initial import embedding
from raybust.training.loop import Trainer

CPU = torch.device("cpu")
SMALL = ("model.width=4", "train.epochs=1", "certified_fast.every=0")


def make(*settings):
    leaves = configuration.leaves_of_arguments([*SMALL, *settings])
    return configuration.compose(leaves, methods.get)


@pytest.fixture(scope="module")
def digits():
    return data.load(make().data)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A run of another architecture than the default's."""
    home = tmp_path_factory.mktemp("runs") / "embedder"
    (end,) = fit(make("model.width=6"), digits, CPU)
    checkpoint.commit(home, checkpoint.folder_name(1), end.save, 1)
    return home, end.save.__self__.network.eval()


def geodesic(path, *more):
    return make("method.name=geodesic", "method.space=feature_cost", f"method.embedding={path}",
                *more)  # fmt: skip


def test_features_are_those_of_the_named_run(digits, run):
    home, network = run
    images, _ = digits.test.fetch(range(20))
    trial = home.parent / "sweep" / "trials" / "0007"
    shutil.copytree(home, trial)
    for path, more in (
        (home, ()),
        (checkpoint.newest(home), ()),
        (checkpoint.newest(home) / checkpoint.WEIGHTS, ("model.width=6",)),
        (home.name, (f"out={home.parent}",)),
        ("sweep/7", (f"out={home.parent}",)),
    ):
        found = embedding(geodesic(path, *more), digits, CPU)
        torch.testing.assert_close(found(images), penultimate(network, images))
    fewer = replace(digits, classes=digits.classes[:5])
    other = embedding(geodesic(home), fewer, CPU)
    torch.testing.assert_close(other(images), penultimate(network, images))


def test_it_draws_nothing_and_trains_nothing(digits, run):
    state = torch.get_rng_state()
    trainer = Trainer(geodesic(run[0], "method.warmup=0"), digits, CPU)
    before = {key: value.clone() for key, value in run[1].state_dict().items()}
    own = Trainer(make("method.name=geodesic", "method.warmup=0"), digits, CPU)
    for one, other in zip(trainer.network.parameters(), own.network.parameters(), strict=True):
        assert torch.equal(one, other), "the run's own weights do not depend on the embedding"
    keys = trainer.objective.state_dict().keys()
    assert keys == own.objective.state_dict().keys()
    assert trainer.train_epoch() is None
    images, _ = digits.test.fetch(range(20))
    torch.testing.assert_close(trainer.objective.embed(images), penultimate(run[1], images))
    assert all(torch.equal(value, before[key]) for key, value in run[1].state_dict().items())
    assert trainer.metrics["geodesic/other_passes"] == 128
    torch.set_rng_state(state)


def test_what_is_wrong_is_named(digits, run, tmp_path):
    with pytest.raises(RequestError, match=r"method.embedding: got 'nowhere', expected a run"):
        embedding(geodesic("nowhere"), digits, CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="has no checkpoint"):
        embedding(geodesic(tmp_path / "empty"), digits, CPU)
    other = replace(digits, shape=(1, 16, 16))
    with pytest.raises(RequestError, match="not the weights of this network"):
        embedding(geodesic(run[0]), other, CPU)
    with pytest.raises(RequestError, match="embedding: got a network, expected none"):
        make("method.name=geodesic", f"method.embedding={run[0]}")


def test_wrappers_pass_on_what_is_asked_for():
    inner = Geodesic(space="feature_cost", embedding="run")
    assert LpNoise(base=inner).embedded_by() == "run"
    assert Geodesic(base=inner).embedded_by() == "run"
    assert Geodesic().embedded_by() is None
    assert Beckman(base=Geodesic(space="latent", latent_images=700)).setup_images() == 700
    assert Geodesic(space="latent", latent_images=100).setup_images() == 512
    assert Geodesic(latent_images=9000).setup_images() == 512


def test_a_network_without_a_linear_layer_has_no_features():
    class Convolutional(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)).expand(-1, 3)

    method = Geodesic(space="feature_cost")
    with pytest.raises(RequestError, match=r"no nn\.Linear; set method\.embedding"):
        method.setup(Convolutional(), torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64))


def test_the_digest_of_inputs_follows_the_weights_that_a_run_starts_from(tmp_path):
    """A run that is resumed, or a worker that starts later, must start from the same weights."""
    assert initial.inputs_digest(make("method.name=standard"), "data") == "data"
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"first")
    config = make("method.name=beckman", f"train.init={file}")
    first = initial.inputs_digest(config, "data")
    assert first.startswith("data+")
    file.write_bytes(b"second")
    assert initial.inputs_digest(config, "data") != first
