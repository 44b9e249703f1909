"""Conformance tests for methods, networks and data sets, both raybust's own and those of plug-ins.

A plug-in's test module subclasses `MethodConformance`, `NetworkConformance` or
`DatasetConformance`, names the object under test, and is run by pytest. The checks are also
available as plain functions, `check_*`. See docs/plugins.md. This is the only package of raybust
that imports pytest, which has to be installed separately.
"""

import pytest

_ASSERTING = ("step", "method_checks", "class_checks", "distributed", "network", "dataset")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _ASSERTING))

from raybust.testing.class_checks import (  # noqa: E402
    BASES,
    Variant,
    check_class,
    check_delegation,
    check_space,
    variants,
    wraps,
)
from raybust.testing.dataset import (  # noqa: E402
    DATASET_CHECKS,
    DatasetConformance,
    check_digests,
    check_images,
    check_indices,
    check_labels,
    check_parts,
    loaded,
)
from raybust.testing.distributed import (  # noqa: E402
    OnRanks,
    check_gradients_on_ranks,
    check_metrics_on_ranks,
    on_two_ranks,
)
from raybust.testing.method import MethodConformance  # noqa: E402
from raybust.testing.method_checks import (  # noqa: E402
    STEP_CHECKS,
    check_inputs_untouched,
    check_loss_and_gradient,
    check_metrics,
    check_network_untouched,
    check_noise,
    check_passes,
    check_precisions_agree,
    check_randomness,
    check_round,
    check_round_trip,
    check_setup,
    check_step,
    check_targets,
    lookup,
)
from raybust.testing.network import (  # noqa: E402
    CLASSES,
    NETWORK_CHECKS,
    NetworkConformance,
    built,
    check_gradients,
    check_independence,
    check_logits,
    check_modes,
    check_seed,
    check_state_dict,
)
from raybust.testing.ranks import run_ranks  # noqa: E402
from raybust.testing.step import BATCH, Probe, Step, batch, network_for  # noqa: E402

__all__ = [
    "BASES",
    "BATCH",
    "CLASSES",
    "DATASET_CHECKS",
    "NETWORK_CHECKS",
    "STEP_CHECKS",
    "DatasetConformance",
    "MethodConformance",
    "NetworkConformance",
    "OnRanks",
    "Probe",
    "Step",
    "Variant",
    "batch",
    "built",
    "check_class",
    "check_delegation",
    "check_digests",
    "check_gradients",
    "check_gradients_on_ranks",
    "check_images",
    "check_independence",
    "check_indices",
    "check_inputs_untouched",
    "check_labels",
    "check_logits",
    "check_loss_and_gradient",
    "check_metrics",
    "check_metrics_on_ranks",
    "check_modes",
    "check_network_untouched",
    "check_noise",
    "check_parts",
    "check_passes",
    "check_precisions_agree",
    "check_randomness",
    "check_round",
    "check_round_trip",
    "check_seed",
    "check_setup",
    "check_space",
    "check_state_dict",
    "check_step",
    "check_targets",
    "loaded",
    "lookup",
    "network_for",
    "on_two_ranks",
    "run_ranks",
    "variants",
    "wraps",
]
