"""Leaderboards and the finalists' protocol with both kinds of proof, apart."""

from pathlib import Path

import pytest
from boards import board, entry

from raybust import methods
from raybust.certification import BoundLog, BoundProtocol
from raybust.config import compose, leaves_of_arguments
from raybust.reporting import leaderboard
from raybust.stages import finalists

BOTH = {
    "certified/acr": 0.0321, "certified/accuracy_at/0.1": 0.25, "certified_linf/acr": 0.0654,
    "certified_linf/accuracy_at/0.1": 0.75, "certified_linf/accuracy_at/0.0313725": 0.8,
    "certified_linf/passes": 13.0,
}  # fmt: skip


def test_each_kind_has_its_columns(tmp_path):
    table = leaderboard.markdown(board(tmp_path, [entry(0, final=True, certified=BOTH)]))
    head, _, row = (line.strip("| ").split("|") for line in table.splitlines()[:3])
    cells = {name.strip(): value.strip() for name, value in zip(head, row, strict=True)}
    assert (cells["ACR"], cells["cert. at 0.1"]) == ("0.0321", "0.2500")
    assert (cells["ACR by bounds"], cells["bounds at linf 0.1"]) == ("0.0654", "0.7500")
    assert cells["bounds at linf 8/255"] == "0.8000"
    names = list(cells)
    assert names.index("cert. at 0.1") < names.index("ACR by bounds")


@pytest.mark.parametrize(
    ("words", "told", "untold"),
    [
        (("certified_linf_fast.every=1", "certified_linf_fast.eps=[0.1]"),
         "by randomized smoothing with n0 = 100, n = 100000, alpha = 0.001; on the same examples"
         " ibp bounds of the network itself, linf, no alpha;", "by ibp bounds"),
        ((), "by randomized smoothing", "bounds"),
    ],
)  # fmt: skip
def test_the_protocol_names_both(tmp_path, words, told, untold):
    config = compose(leaves_of_arguments(["evaluate.attacks=[]", *words]), methods.get)
    text = finalists.protocol(config, [entry(0, final=True)])
    assert told in text
    assert untold not in text


def test_the_protocol_of_bounds_alone(tmp_path):
    made = BoundProtocol(bound="best", shape=(1, 8, 8), classes=10, targets=(0.1,), steps=0)
    log = BoundLog(tmp_path / "own.tsv", made).path
    words = ["certify.bound=best", "certify.radius=0.1", "certified_linf_fast.every=1"]
    config = compose(leaves_of_arguments(words), methods.get)
    text = finalists.protocol(config, [entry(0, final=True, log=Path(log))])
    assert "by best bounds, linf, only to decide 0.1, no alpha, 13 passes an image;" in text
    assert "smoothing" not in text
