"""Ensembles of trained networks, which `certify` and `evaluate` measure like one network."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence

from raybust import models
from raybust.disk.runs import out_folder
from raybust.errors import RequestError
from raybust.trained import FOREIGN, Trained


def ensemble_of(members: Sequence[Trained]) -> Trained:
    """Returns networks as one, the mean of their logits, with the data and the configuration of the
    first. It is no run: its results have a folder of their own.

    Args:
        members: two or more; the data of those but the first may be empty.

    Raises:
        RequestError: their images, classes or noises differ.
    """
    first = members[0]
    for other in members[1:]:
        for what, ours, theirs in (
            ("images of (C, H, W) =", first.dataset.shape, other.dataset.shape),
            ("classes", first.classes, other.classes),
            ("noise of sigma", first.sigma, other.sigma),
        ):
            if ours != theirs:
                hint = "; set certify.sigma" if what.startswith("noise") else ""
                raise RequestError(
                    f"{other.name}: has {what} {theirs}, but {first.name} has {ours}, so they form"
                    f" no ensemble{hint}"
                )
    places = "\n".join(os.path.abspath(member.folder) for member in members)
    digest = hashlib.sha256(places.encode()).hexdigest()[:8]
    names = ", ".join(member.name for member in members)
    same_noise = len({member.trained_sigma for member in members}) == 1
    notes = [note for member in members for note in member.notes]
    return dataclasses.replace(
        first,
        folder=out_folder(first.config) / FOREIGN / f"ensemble-{digest}",
        network=models.Ensemble([member.network for member in members]).eval(),
        trained_sigma=first.trained_sigma if same_noise else None,
        uid=None,
        notes=(
            *dict.fromkeys(notes),
            f"ensemble of {names}: the mean of their logits; every pass is {len(members)} passes",
        ),
        training_known=same_noise and all(member.training_known for member in members),
    )
