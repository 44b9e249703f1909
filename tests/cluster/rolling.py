"""Serves one network, then another in its place, while clients ask; prints what they saw."""

import io
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from small_run import small_run

import raybust
from raybust.cluster.session import session
from raybust.identity import Sent
from raybust.serve import service
from raybust.stages.serving import protocol_of

PORT = 8765


def served(folder):
    trained = raybust.load(folder, "certify.n=500")
    sent = Sent.of(trained.network, trained.dataset.shape)
    return service.Served(
        trained.name, sent, trained.classes, protocol_of(trained, "cpu"), 1.0, 200
    )


def main(place):
    first, second = (
        served(small_run(place / name, seed=seed)) for seed, name in enumerate(("one", "two"))
    )
    content = io.BytesIO()
    np.save(content, np.zeros((1, 1, 8, 8), np.float32))
    lost, seen, over = [], set(), threading.Event()

    def client():
        while not over.is_set():
            request = urllib.request.Request(
                f"http://127.0.0.1:{PORT}/predict", data=content.getvalue(),
                headers={"Content-Type": "application/x-npy"},
            )  # fmt: skip
            try:
                with urllib.request.urlopen(request, timeout=60) as found:
                    seen.add(json.loads(found.read())["weights"])
            except Exception as error:
                lost.append(repr(error))

    with session(None, verbose=False):
        service.start("127.0.0.1", PORT, verbose=False)
        service.deploy(first, replicas=(1, 1), gpus=0, token=None)
        clients = [threading.Thread(target=client) for _ in range(4)]
        for one in clients:
            one.start()
        time.sleep(3)
        service.deploy(second, replicas=(1, 1), gpus=0, token=None)
        time.sleep(5)
        over.set()
        for one in clients:
            one.join()
        service.stop()
    print(lost[:3], file=sys.stderr)
    print(json.dumps({"lost": len(lost), "versions": len(seen)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
