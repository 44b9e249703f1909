"""Recomputes answers of a server: their votes, bounds and radii.

The key of an answer's noise was drawn for it alone, so nobody could know it beforehand, and
everybody can repeat it afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from raybust import devices
from raybust.certification import Protocol, Row
from raybust.certification.live import replay
from raybust.certification.log import ABSTAIN
from raybust.certification.prediction import Prediction, audit_of
from raybust.data import Part
from raybust.data.given import UNLABELED
from raybust.errors import RequestError, WorkError
from raybust.identity import weights_digest
from raybust.stages.serving import protocol_of
from raybust.trained import Trained


def check_answers(trained: Trained, images: Part, file: Path) -> str:
    """Recomputes the answers in a server's response; returns a report.

    Args:
        trained: the network that was served.
        images: of the request, in order.
        file: the response, as JSON; it was asked for with `audit`.

    Raises:
        RequestError: the file is no such response, or of another network, device type or number
            of images.
        WorkError: an answer is not reproduced.
    """
    response = _response(file)
    answers = response["predictions"]
    if len(answers) != len(images):
        raise RequestError(f"{file}: has {len(answers)} answers for {len(images)} images")
    lines = []
    for position, answer in enumerate(answers):
        told = answer["audit"]["protocol"]
        for key in told:
            if key in response and response[key] != told[key]:
                raise WorkError(
                    f"{answer['image']}: was not reproduced: the response states {key} ="
                    f" {response[key]}, its protocol {told[key]}"
                )
        lines.append(_check(trained, images.fetch([position])[0][0], answer, file))
    return "\n".join(lines)


def _response(file: Path) -> dict[str, Any]:
    """Returns a response all of whose answers can be recomputed."""
    try:
        response: dict[str, Any] = json.loads(file.read_text())
        float(response["alpha"])
        for one in response["predictions"]:
            Protocol.from_json(json.dumps(one["audit"]["protocol"]))
            _ = one["image"], one["audit"]["key"], int(one["audit"]["n"])
    except FileNotFoundError:
        raise RequestError(f"{file}: there is no such file") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise RequestError(
            f"{file}: has no answer to replay: expected a response of `raybust serve` to a request"
            " with audit=true, whose deadline did not pass before the first look"
        ) from None
    return response


def _check(trained: Trained, image: Tensor, answer: dict[str, Any], file: Path) -> str:
    audit = answer["audit"]
    protocol = Protocol.from_json(json.dumps(audit["protocol"]))
    device = devices.local().type
    if protocol.device != device:
        raise RequestError(
            f"{file}: was answered on {protocol.device}, whose noise and arithmetic this machine's"
            f" {device} does not repeat"
        )
    if protocol.weights != weights_digest(trained.network):
        raise RequestError(f"{file}: is of other weights than {trained.name} has")
    ours = protocol_of(trained, device)
    if ours.sigma != protocol.sigma or ours.noise != protocol.noise:
        raise RequestError(f"{file}: used {protocol.noise} noise with sigma {protocol.sigma:g}")
    times = protocol.rule.times
    if not (answer.get("draws") in times and audit["n"] in times and audit["n"] <= answer["draws"]):
        raise WorkError(
            f"{answer['image']}: was not reproduced: its protocol has no look at {audit['n']} of"
            f" {answer.get('draws')} draws"
        )
    row = _recomputed(trained, image.to(device), protocol, audit, answer["draws"])
    target = protocol.targets[0] if protocol.targets else None
    expected = Prediction.certified(answer["image"], row, trained.classes, protocol.norm)
    wrong = _differences(answer, {**expected.fields(target), "audit": audit})
    wrong += _differences(audit, audit_of(row, protocol, trained.classes))
    if wrong:
        raise WorkError(f"{answer['image']}: was not reproduced: the answer has {'; '.join(wrong)}")
    return (
        f"{answer['image']}: reproduced: {expected.label or 'abstains'}, radius {row.radius:g}"
        f" from {row.count} of {row.n} draws, alpha = {protocol.alpha:g}"
    )


def _recomputed(
    trained: Trained, image: Tensor, protocol: Protocol, audit: Mapping[str, Any], draws: int
) -> Row:
    """Returns the certificate of an answer, from draws made again."""
    network, n = trained.network.to(protocol.device), int(audit["n"])
    top, pilot, counts = replay(network, image, protocol, audit["key"], draws)
    at_look = counts if n == draws else replay(network, image, protocol, audit["key"], n)[2]
    bound = protocol.rule.lower(at_look[top], n, protocol.rule.times.index(n))
    return Row(
        idx=audit["key"], label=UNLABELED, predict=top if bound > 0.5 else ABSTAIN, time=0.0,
        radius=protocol.smoothing.radius(bound), top=top, n0_count=pilot, count=at_look[top], n=n,
        p_lower=bound, draws=draws,
        counts=tuple((number, votes) for number, votes in enumerate(counts) if votes),
    )  # fmt: skip


def _differences(told: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Returns how what was told differs from what is expected, one phrase a key."""
    expected = json.loads(json.dumps(expected))  # tuples are lists in a response
    keys = dict.fromkeys([*told, *expected])
    return [
        f"{key} {told.get(key)}, not {expected.get(key)}"
        for key in keys
        if key not in told or key not in expected or told[key] != expected[key]
    ]
