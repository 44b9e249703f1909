"""The diagnostics of covariance propagation as table and figure."""

import torch
from torch import nn

from raybust.numerics.moments import Rules
from raybust.studies.figures import plot_variances, variance_table
from raybust.studies.moments import LayerVariance, layer_variances


def test_table():
    layers = [LayerVariance("conv", "Conv2d", 0.5, 0.25), LayerVariance("dead", "ReLU", 0.0, 0.0)]
    lines = variance_table(layers).splitlines()
    assert lines[2] == "| conv | Conv2d | 0.5 | 0.25 | 2 |"
    assert lines[3] == "| dead | ReLU | 0 | 0 | - |"


def test_picture_of_a_network(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    images = torch.rand(2, 1, 8, 8)
    runs = {
        mode: layer_variances(network, images, 0.25, Rules(mode=mode), draws=20)
        for mode in ("channel", "channel_exact")
    }
    path = plot_variances(runs, tmp_path / "ratios.png", "a small network")
    assert path.stat().st_size > 1000
