"""Serves one network, then another in its place, while clients ask and replicas are killed; prints
what the clients saw."""

import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
from small_run import small_run

import raybust
from raybust.cluster.session import session
from raybust.serve import service
from raybust.stages.serving import served_of

PORT = 8765
CLIENTS, EACH = 8, 250
KILLED_AT, REPLACED_AT = (400, 800, 1200), 1000


def replicas():
    """Processes of replicas on this machine."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "ServeReplica:raybust:Replica" in " ".join(one.cmdline())]


class Clients:
    """Threads that ask about one image."""

    def __init__(self, image, truth):
        content = io.BytesIO()
        np.save(content, image)
        self.body, self.truth = content.getvalue(), truth
        self.done, self.lost, self.wrong, self.seen = 0, [], [], set()
        self.threads = [threading.Thread(target=self.work) for _ in range(CLIENTS)]
        self.lock = threading.Lock()

    def work(self):
        for _ in range(EACH):
            try:
                answer = self.ask()
            except Exception as error:
                self.lost.append(repr(error))
            else:
                number, weights = answer["predictions"][0]["number"], answer["weights"]
                self.seen.add(weights)
                if number not in (self.truth[weights], -1):
                    self.wrong.append(answer)
            with self.lock:
                self.done += 1

    def ask(self):
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/predict?n=300",
            self.body,
            {"Content-Type": "application/x-npy"},
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as found:
                    return json.loads(found.read())
            except urllib.error.HTTPError as error:
                if error.code != 429:
                    raise
                time.sleep(0.2)


def main(place):
    trained = [
        raybust.load(small_run(place / name, seed=seed), "certify.n=500")
        for seed, name in enumerate(("one", "two"))
    ]
    versions = [served_of(one, 200, 0.0) for one in trained]
    image = trained[0].dataset.test.fetch([0])[0]
    truth = {
        version.protocol.weights: int(one.network(image).argmax())
        for one, version in zip(trained, versions, strict=True)
    }
    with session(None, verbose=False):
        service.start("127.0.0.1", PORT, verbose=False)
        service.deploy(versions[0], replicas=(1, 1), gpus=0, token=None)
        clients = Clients(image.numpy(), truth)
        for one in clients.threads:
            one.start()
        killed, replaced = 0, threading.Thread(
            target=service.deploy, args=(versions[1],),
            kwargs={"replicas": (1, 1), "gpus": 0, "token": None},
        )  # fmt: skip
        while any(one.is_alive() for one in clients.threads):
            if killed < len(KILLED_AT) and clients.done > KILLED_AT[killed] and replicas():
                replicas()[0].kill()
                killed += 1
            if clients.done > REPLACED_AT and replaced.ident is None:
                replaced.start()
            time.sleep(0.05)
        replaced.join()
        service.stop()
    print(clients.lost[:3], clients.wrong[:3], file=sys.stderr)
    print(json.dumps({
        "asked": clients.done, "killed": killed, "versions": len(clients.seen),
        "lost": len(clients.lost), "wrong": len(clients.wrong),
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
