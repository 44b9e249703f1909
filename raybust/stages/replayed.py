"""Recomputes answers of a server: their votes, bounds and radii.

The key of an answer's noise was drawn for it alone, so nobody could know it beforehand, and
everybody can repeat it afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raybust import devices
from raybust.certification import Protocol
from raybust.certification.live import replay
from raybust.data import Part
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
    answers, alpha = _answers(file)
    if len(answers) != len(images):
        raise RequestError(f"{file}: has {len(answers)} answers for {len(images)} images")
    lines = []
    for position, answer in enumerate(answers):
        told = answer["audit"]["protocol"]["alpha"]
        if told != alpha:
            raise WorkError(
                f"{answer['image']}: was not reproduced: the response states alpha = {alpha}, its"
                f" protocol {told}"
            )
        lines.append(_check(trained, images.fetch([position])[0][0], answer, file))
    return "\n".join(lines)


def _answers(file: Path) -> tuple[list[dict[str, Any]], float]:
    """Returns the answers of a response, and the alpha that it states."""
    try:
        response = json.loads(file.read_text())
        found, alpha = response["predictions"], response["alpha"]
        for one in found:
            Protocol.from_json(json.dumps(one["audit"]["protocol"]))
    except FileNotFoundError:
        raise RequestError(f"{file}: there is no such file") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise RequestError(
            f"{file}: has no answer to replay: expected a response of `raybust serve` to a request"
            " with audit=true, whose deadline did not pass before the first look"
        ) from None
    answers: list[dict[str, Any]] = found
    return answers, float(alpha)


def _check(trained: Trained, image: Any, answer: dict[str, Any], file: Path) -> str:
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
    network, place = trained.network.to(device), image.to(device)
    top, pilot, count = replay(network, place, protocol, audit["key"], audit["n"])
    bound = protocol.rule.lower(count, audit["n"], protocol.rule.times.index(audit["n"]))
    radius = protocol.smoothing.radius(bound)
    found = (top, pilot, count, bound, radius)
    keys: Sequence[str] = ("top", "n0_count", "count", "p_lower", "radius")
    told = tuple(audit[key] for key in keys)
    number = top if bound > 0.5 else -1
    answered = {
        "number": number, "abstain": number < 0, "radius": radius, "bound": bound,
        "label": trained.classes[number] if number >= 0 else "", "norm": protocol.norm,
    }  # fmt: skip
    wrong = [f"{key} {answer.get(key)}, not {value}" for key, value in answered.items()
             if answer.get(key) != value]  # fmt: skip
    if found != told or wrong:
        differs = "; ".join(wrong) or f"{told}, not {found}"
        raise WorkError(f"{answer['image']}: was not reproduced: the answer has {differs}")
    return (
        f"{answer['image']}: reproduced: {answered['label'] or 'abstains'}, radius {radius:g} from"
        f" {count} of {audit['n']} draws, alpha = {protocol.alpha:g}"
    )
