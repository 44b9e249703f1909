"""A served network: draws a second beside the certifier's own, latency, start, and false radii.

The network of the quickstart, trained for one epoch. Prints one JSON line a figure.

    python benchmarks/serve.py [REQUESTS]

REQUESTS is the number of answers whose radii are compared with the truth (default 100,000).
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import quantiles

import numpy as np
import torch
from _figures import figure
from scipy.stats import binomtest
from torch import nn

import raybust
from raybust.certification import Protocol
from raybust.certification.live import Ask, Live, OverloadedError

PORT, CLIENTS, SECONDS, RATE = 8799, 32, 20.0, 20
ALPHA, DISTANCE = 0.01, 0.1
REQUESTS = int(sys.argv[1]) if sys.argv[1:] else 100_000


def ask(body: bytes, query: str) -> dict[str, list[dict[str, float]]]:
    """Returns the answer to a request, asked again while the queue is full."""
    url = f"http://127.0.0.1:{PORT}/predict?{query}"
    while True:
        request = urllib.request.Request(url, body, {"Content-Type": "application/x-npy"})
        try:
            with urllib.request.urlopen(request, timeout=120) as found:
                answer: dict[str, list[dict[str, float]]] = json.loads(found.read())
                return answer
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(0.05)


def npy(images: np.ndarray) -> bytes:
    """Returns an array in numpy's format."""
    content = io.BytesIO()
    np.save(content, images)
    return content.getvalue()


def own_rate(trained: raybust.Trained, images: np.ndarray) -> float:
    """Returns draws a second of the certifier in this process."""
    found = raybust.certify(
        trained, (images, np.zeros(len(images))), "certify.n=10000", workers=1, quiet=True
    )
    seconds = sum(row.time for row in found.rows)
    return sum(row.draws + 100 for row in found.rows) / seconds


def served_rate(images: np.ndarray) -> float:
    """Returns draws a second of the server with `CLIENTS` requests in flight."""
    until = time.perf_counter() + SECONDS

    def client(number: int) -> int:
        draws, body = 0, npy(images[number % len(images)][None])
        while time.perf_counter() < until:
            draws += int(ask(body, "n=10000")["predictions"][0]["draws"]) + 100
        return draws

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        total = sum(pool.map(client, range(CLIENTS)))
    return total / (time.perf_counter() - began)


def latencies(images: np.ndarray) -> list[float]:
    """Returns the seconds of requests about one radius, `RATE` a second."""
    count = int(RATE * SECONDS)

    def one(number: int) -> float:
        began = time.perf_counter()
        ask(npy(images[number % len(images)][None]), "radius=0.1")
        return time.perf_counter() - began

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        asked = []
        for number in range(count):
            asked.append(pool.submit(one, number))
            time.sleep(1 / RATE)
        return [each.result() for each in asked]


class Halves(nn.Module):
    """The sign of the first pixel minus 1/2: the true radius is the distance to the plane."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, 2)."""
        value = images[:, 0, 0, 0] - 0.5
        return torch.stack([-value, value], 1)


def false_radii() -> tuple[int, int]:
    """Returns how many of `REQUESTS` answers claim more than the truth, and how many have a radius.
    The clients ask just beyond it, with deadlines at random."""
    protocol = Protocol(sigma=0.5, shape=(1, 2, 2), n=1000, schedule="sequence", batch=1000)
    live, draw = Live(Halves().eval(), protocol, 2000), random.Random(0)
    image, futures = torch.full((1, 1, 2, 2), 0.5 + DISTANCE), []
    while len(futures) < REQUESTS:
        due = time.monotonic() + draw.expovariate(1.0) if draw.random() < 0.5 else None
        radius = draw.choice([None, DISTANCE * 1.001, DISTANCE * 1.2])
        try:
            asked = Ask(radius=radius, n=draw.choice([300, 1000]), alpha=ALPHA, deadline=due)
            futures += live.submit(image, asked)
        except OverloadedError:
            time.sleep(0.01)
    rows = [future.result().row for future in futures]
    live.close()
    false = sum(row is not None and (row.radius > DISTANCE or row.predict == 0) for row in rows)
    return false, sum(row is not None and row.radius > 0 for row in rows)


def main() -> None:
    """Prints all figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        trained = raybust.train(
            "method.name=gaussian", "train.epochs=1", "model.width=16", name="served", out=root,
            quiet=True,
        )  # fmt: skip
        images = trained.dataset.test.fetch(range(32))[0].numpy()
        own = own_rate(trained, images)
        began = time.perf_counter()
        command = [sys.executable, "-m", "raybust", "serve", "served", "--out", folder,
                   "--no-token", "--port", str(PORT), "certify.n=10000"]  # fmt: skip
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    ask(npy(images[:1]), "radius=0.1")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            figure(
                "serve: seconds to the first answer", [time.perf_counter() - began], "s", "<= 12"
            )
            served = served_rate(images)
            figure(f"serve: draws over the certifier's, {CLIENTS} clients", [served / own], "ratio",
                   ">= 0.85")  # fmt: skip
            figure("serve: draws", [served], "1/s")
            found = quantiles(latencies(images), n=100)
            figure(
                f"serve: p50 at {RATE} requests/s, one radius", [1000 * found[49]], "ms", "<= 100"
            )
            figure(
                f"serve: p99 at {RATE} requests/s, one radius", [1000 * found[98]], "ms", "<= 500"
            )
        finally:
            server.send_signal(2)
            server.wait(60)
    false, certified = false_radii()
    figure(f"serve: false radii of {REQUESTS} at alpha {ALPHA}", [false], "answers")
    figure("serve: answers with a radius", [certified], "answers")
    p = binomtest(false, REQUESTS, ALPHA, alternative="greater").pvalue
    figure("serve: p that more than alpha are false", [p], "")


if __name__ == "__main__":
    main()
