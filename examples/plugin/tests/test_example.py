"""The example passes raybust's conformance tests."""

from raybust_example.conv_mixer import conv_mixer
from raybust_example.logit_squeezing import LogitSqueezing
from raybust_example.shapes import SHAPES

from raybust.testing import DatasetConformance, MethodConformance, NetworkConformance


class TestLogitSqueezing(MethodConformance):
    """Class, steps, choices, and two ranks."""

    method = LogitSqueezing


class TestConvMixer(NetworkConformance):
    """Gray images of 8 x 8 and color images of 32 x 32 pixels."""

    network = conv_mixer


class TestShapes(DatasetConformance):
    """Parts, labels, images, indices, and digests."""

    dataset = SHAPES
