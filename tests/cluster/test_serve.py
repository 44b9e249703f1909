"""`raybust serve`: a real server in a process of its own, asked over HTTP."""

import concurrent.futures
import copy
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
from browser import CHROMIUM, open_tab, wait_for
from PIL import Image
from small_run import small_run

import raybust
from raybust import RequestError, data
from raybust.config import compose
from raybust.methods import get
from raybust.reporting import read_log
from raybust.serve.openapi import ANSWER, RESPONSE
from raybust.serve.requests import FIELDS
from raybust.stages import serving

TOKEN = "a-token-of-the-tests"
RAYBUST = [sys.executable, "-m", "raybust"]
pytest.importorskip("grpc_reflection", reason="needs raybust[serve]")
pytestmark = pytest.mark.cluster


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server's process and address."""

    def __init__(self, out, *options):
        self.out, self.port = out, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (out / "token").write_text(TOKEN)
        words = ["serve", "mine", "--out", out, "--port", self.port, "--token-file", out / "token",
                 "certify.n=1000", "certify.sigma=0.25", *options]  # fmt: skip
        self.process = subprocess.Popen(
            [*RAYBUST, *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=out
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if line.startswith("look at"):
                break
        assert self.process.poll() is None, self.said
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, path="/predict", body=None, kind=None, token=TOKEN, **headers):
        """Returns status, JSON or text, and headers."""
        request = urllib.request.Request(self.url + path, data=body)
        if kind:
            request.add_header("Content-Type", kind)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        for key, value in headers.items():
            request.add_header(key, value)
        try:
            with urllib.request.urlopen(request, timeout=120) as found:
                status, text, head = found.status, found.read().decode(), found.headers
        except urllib.error.HTTPError as error:
            status, text, head = error.code, error.read().decode(), error.headers
        return status, json.loads(text) if text.startswith(("{", "[")) else text, head

    def array(self, images, **fields):
        """Asks about an array; returns the answers."""
        query = "&".join(f"{key}={value}" for key, value in fields.items())
        status, found, _ = self.ask(f"/predict?{query}", npy(images), "application/x-npy")
        assert status == 200, found
        return found["predictions"]

    def stop(self, how):
        self.process.send_signal(how)
        return self.process.wait(120)


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def png(image):
    content = io.BytesIO()
    Image.fromarray((np.asarray(image)[0] * 255).round().astype(np.uint8)).save(content, "png")
    return content.getvalue()


def multipart(files, **fields):
    parts = []
    for key, value in fields.items():
        parts.append(f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode())
    for name, content in files:
        head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
        parts.append(f"{head}Content-Type: image/png\r\n\r\n".encode() + content)
    body = b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    return body, "multipart/form-data; boundary=edge"


@pytest.fixture(scope="module")
def images():
    return data.load(compose([], get).data).test.fetch(range(12))[0].numpy()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    out = tmp_path_factory.mktemp("served")
    small_run(out / "mine")
    certify = ["certify", "mine", "--out", out, "certify.n=1000", "certify.sigma=0.25",
               "certify.examples=60"]  # fmt: skip
    subprocess.run([*RAYBUST, *map(str, certify)], check=True, capture_output=True, cwd=out)
    opened = Server(out, "--queue", "40")
    yield opened
    assert opened.stop(signal.SIGTERM) == 0
    running = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    left = [words for words in running if str(out) in " ".join(words)]
    assert not left, "nothing is left of a server that was ended"


def test_every_form_of_images_gets_the_same_class(server, images):
    certain = np.argsort([-one["bound"] for one in server.array(images)])
    images = images[certain]
    answers = server.array(images[:4])
    assert [one["image"] for one in answers] == ["0", "1", "2", "3"]
    body = json.dumps({"images": images[:4].tolist(), "n": 1000}).encode()
    status, found, _ = server.ask(body=body, kind="application/json")
    assert status == 200
    assert (found["norm"], found["sigma"]) == ("l2", 0.25)
    content, kind = multipart([(f"{at}.png", png(images[at])) for at in range(4)], n=1000)
    files = server.ask(body=content, kind=kind)[1]["predictions"]
    assert [one["image"] for one in files] == ["0.png", "1.png", "2.png", "3.png"]
    single = server.ask(body=png(images[0]), kind="image/png")[1]["predictions"][0]
    firsts = {one["number"] for one in (answers[0], found["predictions"][0], files[0], single)}
    assert len(firsts - {-1}) == 1
    for one in (*answers, *files):
        assert one["draws"] == 1000
        assert (one["radius"] > 0) == (not one["abstain"])
    plain = server.array(images[:4], plain="true")
    assert {(one["draws"], one["radius"]) for one in plain} == {(0, 0.0)}


def test_radius_and_deadline(server, images):
    for one in server.array(images, radius=0.05):
        assert one["safe"] == (not one["abstain"] and one["radius"] >= 0.05)
    assert {one["draws"] for one in server.array(images[:3], deadline_ms=0)} == {0}
    (late,) = server.array(images[:1], deadline_ms=60000)
    assert late["draws"] == 1000


def test_an_answer_with_audit_is_recomputed_and_a_forged_one_is_not(server, images, tmp_path):
    _, found, _ = server.ask("/predict?audit=true", npy(images[:3]), "application/x-npy")
    np.savez(tmp_path / "asked.npz", images=images[:3])
    answer = tmp_path / "answer.json"

    def replay(found):
        answer.write_text(json.dumps(found))
        words = ["predict", "mine", tmp_path / "asked.npz", "--out", server.out, "--replay", answer,
                 "certify.sigma=0.25"]  # fmt: skip
        return subprocess.run([*RAYBUST, *map(str, words)], capture_output=True, text=True)

    done = replay(found)
    assert (done.returncode, done.stdout.count("reproduced")) == (0, 3), done.stderr
    assert sum(found["predictions"][0]["audit"]["votes"].values()) == 1000
    for where, key, value in (
        ("answer", "label", "another"), ("answer", "bound", 0.99), ("answer", "norm", "linf"),
        ("audit", "count", 1), ("response", "alpha", 0.3),
    ):  # fmt: skip
        forged = copy.deepcopy(found)
        changed = forged["predictions"][1]
        {"response": forged, "answer": changed, "audit": changed["audit"]}[where][key] = value
        done = replay(forged)
        assert (done.returncode, "was not reproduced" in done.stderr) == (1, True), key


def test_the_token_guards_everything_but_health_and_the_page(server, images):
    for path in ("/model", "/metrics", "/predict"):
        for token in (None, "another"):
            body = npy(images[:1]) if path == "/predict" else None
            status, found, head = server.ask(path, body, "application/x-npy", token=token)
            assert (status, head["WWW-Authenticate"]) == (401, "Bearer")
            assert "Bearer" in found["error"]
    assert server.ask("/health", token=None)[0] == server.ask("/ready", token=None)[0] == 200
    assert TOKEN not in " ".join(server.said[:1])
    listening = [
        one.laddr.ip for one in psutil.net_connections("tcp")
        if one.status == "LISTEN" and one.laddr.port == server.port
    ]  # fmt: skip
    assert set(listening) == {"127.0.0.1"}


def bad(images):
    """Yields (body, content type, query, status, words of the error)."""
    one = npy(images[:1])
    form = "application/x-npy"
    yield b"{", "application/json", "", 400, "not JSON"
    yield b"[]", "application/json", "", 422, '"images"'
    yield b'{"images": [[1, 2], [3]]}', "application/json", "", 422, "nested lists"
    yield b'{"images": [1, 2]}', "application/json", "", 422, "got shape (2,)"
    yield b'{"images": [], "n": 5}', "application/json", "", 422, "shape"
    yield b"no array", form, "", 400, "not an array"
    yield npy(np.array([object()])), form, "", 400, "not an array"
    yield npy(images[:1] + 1), form, "", 422, "expected [0, 1]"
    yield npy(np.full_like(images[:1], np.nan)), form, "", 422, "expected [0, 1]"
    yield npy(np.zeros((1, 3, 8, 8), np.float32)), form, "", 422, "expected (N, 1, 8, 8)"
    yield npy(np.zeros((1, 1, 8, 8), np.int64)), form, "", 422, "int64"
    yield npy(np.zeros((41, 1, 8, 8), np.uint8)), form, "", 413, "at most 40"
    listed = json.dumps({"images": images[:1].tolist()}).encode()
    yield listed, "application/json", "n=5", 422, "certifies nothing"
    yield one, form, "n=0", 422, "n: got '0'"
    yield one, form, "n=1001", 422, "1 to 1000"
    yield one, form, "n=5", 422, "certifies nothing"
    yield one, form, "alpha=2", 422, "alpha"
    yield one, form, "radius=-1", 422, "radius"
    yield one, form, "radius=nan", 422, "radius"
    yield one, form, "deadline_ms=soon", 422, "deadline_ms"
    yield one, form, "plain=perhaps", 422, "true or false"
    yield one, form, "sigma=1", 422, "unknown field 'sigma'"
    yield b"no image", "image/png", "", 415, "no image"
    yield b"x", "text/plain", "", 415, "content type"
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "png")
    yield bomb.getvalue(), "image/png", "", 413, "10000 x 10000 pixels"


def test_bad_input_is_one_line_with_its_status(server, images):
    for body, kind, query, status, words in bad(images):
        found = server.ask(f"/predict?{query}", body, kind)
        assert (found[0], words in found[1]["error"]) == (status, True), (query, words, found)
        assert "\n" not in found[1]["error"]
    status, found, _ = server.ask(
        "/predict", npy(images[:1]), "application/x-npy", **{"Content-Length": str(10**9)}
    )
    assert status == 413
    assert server.array(images[:1])[0]["draws"] == 1000


def test_more_than_the_queue_is_told_when_to_come_again(server, images):
    """Nothing that was taken is lost."""
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        body = npy(images)
        asked = [pool.submit(server.ask, "/predict", body, "application/x-npy") for _ in range(12)]
        found = [one.result() for one in asked]
    statuses = sorted(status for status, _, _ in found)
    assert set(statuses) == {200, 429}
    for status, answer, head in found:
        if status == 429:
            assert int(head["Retry-After"]) >= 1
        else:
            assert [one["draws"] for one in answer["predictions"]] == [1000] * 12


def test_metrics_and_the_watch(server, images):
    whole = data.load(compose([], get).data).test.fetch(range(60))[0].numpy()
    before = server.ask("/model")[1]["watch"]["answers"]
    _, found, _ = server.ask("/predict?alpha=0.4", npy(whole[:5]), "application/x-npy")
    assert found["alpha"] == 0.4
    assert server.ask("/model")[1]["watch"]["answers"] == before, "of another alpha"
    for _ in range(9):  # the window then holds little else
        server.array(whole[:30])
        server.array(whole[30:])
    _, text, _ = server.ask("/metrics")
    value = dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))
    assert float(value['raybust_requests_total{status="200"}']) >= 5
    assert float(value["raybust_draws_total"]) >= 60_000
    _, model, _ = server.ask("/model")
    watch = model["watch"]
    assert watch["answers"] >= 60
    assert len(model["radii"]) == 60
    assert watch["drift"] is False, watch["text"]
    assert watch["test_mean_radius"] == pytest.approx(np.maximum(model["radii"], 0).mean())
    for _ in range(42):
        server.array(np.random.default_rng(0).random(images.shape, np.float32))
    watch = server.ask("/model")[1]["watch"]
    assert watch["drift"] is True, watch["text"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_shows_class_and_radius(server, images, tmp_path):
    path = tmp_path / "shown.png"
    answers = server.array(images)
    at = max(range(12), key=lambda at: answers[at]["radius"])
    path.write_bytes(png(images[at]))
    with open_tab(f"{server.url}/") as tab:
        wait_for(
            tab, "document.readyState == 'complete' && !document.getElementById('access').hidden"
        )
        assert tab.evaluate("document.getElementById('result').offsetHeight") == 0
        wait_for(tab, "document.getElementById('error').textContent.startsWith('Enter the token')")
        tab.evaluate(f"document.getElementById('token').value = '{TOKEN}'")
        tab.evaluate("document.getElementById('enter').click()")
        wait_for(tab, "document.getElementById('name').textContent == 'mine'")
        tab.choose("#file", path)
        wait_for(tab, "document.querySelectorAll('#copies canvas').length == 6")
        assert tab.evaluate("document.getElementById('result').offsetHeight") > 0
        assert tab.evaluate("document.getElementById('label').textContent") == answers[at]["label"]
        assert "No change within" in tab.evaluate("document.getElementById('meaning').textContent")
        assert tab.evaluate("document.querySelectorAll('#votes .bar').length") >= 1
        assert tab.evaluate("document.getElementById('error').textContent") == ""
        loaded = tab.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
        assert all(name.startswith((server.url, "data:", "blob:")) for name in loaded)
        (tmp_path / "broken.png").write_text("no image")
        tab.choose("#file", tmp_path / "broken.png")
        wait_for(tab, "document.getElementById('error').textContent.includes('no image')")
        assert tab.evaluate("document.getElementById('result').offsetHeight") == 0


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_description_is_complete_and_has_a_page(server):
    status, found, _ = server.ask("/openapi.json", token=None)
    assert status == 200
    assert set(found["paths"]) == {"/health", "/ready", "/model", "/metrics", "/predict"}
    asked = found["paths"]["/predict"]["post"]
    assert {one["name"] for one in asked["parameters"]} == set(FIELDS)
    assert len(asked["requestBody"]["content"]) == 4
    _, answered, _ = server.ask(
        "/predict?audit=true&radius=0.1", npy(np.zeros((1, 1, 8, 8), np.float32)),
        "application/x-npy",
    )  # fmt: skip
    assert set(answered) == set(RESPONSE) - {"keep"}
    assert set(answered["predictions"][0]) == set(ANSWER)
    assert {"200", "401", "413", "415", "422", "429"} <= set(asked["responses"])
    with open_tab(f"{server.url}/docs") as tab:
        wait_for(tab, "document.querySelectorAll('.opblock').length == 5")
        loaded = tab.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
        assert all(name.startswith((server.url, "data:", "blob:")) for name in loaded)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mien",), "Did you mean 'mine'"),
        (("mine", "--port", "PORT"), "choose another with --port"),
        (("mine", "--no-token", "--token-file", "token"), "contradicts"),
        (("mine", "--token-file", "empty"), "is empty"),
        (("mine", "--token-file", "absent"), "cannot be read"),
        (("mine", "--replicas", "4-1"), "a range such as 1-4"),
        (("mine", "--replicas", "none"), "a range such as 1-4"),
        (("mine", "certify.n=3"), "certifies nothing"),
        (("mine", "--address", "http://127.0.0.1:8265"), "got the jobs URL"),
        (("mine", "train.epochs=3"), "fixed by the training"),
    ],
)
def test_mistakes_are_one_line(server, cli, words, said, monkeypatch):
    monkeypatch.chdir(server.out)
    Path("empty").write_text("")
    given = [str(server.port) if word == "PORT" else word for word in words]
    done = cli("serve", *given, "--out", server.out)
    assert (done.code, done.out) == (2, "")
    assert said in done.err.splitlines()[-1]


def test_answers_are_compared_with_the_test_set_alone(tmp_path, cli, images, monkeypatch):
    """Not with a log of other images, of a part of the examples, or of another noise."""
    monkeypatch.chdir(tmp_path)
    labels = np.arange(12) % 10
    noise = np.random.default_rng(0).random(images.shape, np.float32)
    for name, test in (("own", images), ("noise", noise)):
        np.savez(f"{name}.npz", x_train=np.repeat(images, 5, 0), y_train=np.tile(labels, 5),
                 x_test=test, y_test=labels)  # fmt: skip
    small_run(tmp_path / "runs" / "mine", data__name="npz", data__path="own.npz",
              data__validation=0.4, train__batch_size=4)  # fmt: skip
    for more in (
        ("data.path=noise.npz", "--name", "a-first"), ("certify.n=400",),
        ("certify.examples=5", "--name", "part"), (),
    ):  # fmt: skip
        done = cli("certify", "mine", "certify.n=500", *more)
        assert done.code == 0, done.err

    def radii():
        trained = raybust.load("mine", "certify.n=500")
        return serving.radii_of_test_set(trained, serving.protocol_of(trained, "cpu"))

    (log,) = tmp_path.glob("runs/mine/certified/test*n500.tsv")
    assert len(radii()) == len(read_log(log)) == 12
    log.unlink()
    assert len(radii()) == 5
    Path("own.npz").unlink()
    shutil.copy("noise.npz", "own.npz")
    assert len(radii()) == 12, "the test set of the run is now that of a-first"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"run": "mine", "no_token": True, "replica": 2}, "Did you mean 'replicas'"),
        ({"no_token": True}, "got no `run`"),
        ({"run": "mine"}, "got no `token_file`"),
        ({"run": "mine", "token_file": "token", "no_token": True}, "contradicts"),
        ({"run": "mien", "no_token": True}, "Did you mean 'mine'"),
        ({"run": "mine", "no_token": True, "settings": "certify.n=9"}, "expected a list"),
        ({"run": "mine", "no_token": True, "queue": "many"}, "expected a number of images"),
    ],
)
def test_mistakes_in_a_config_file_of_ray_serve(server, given, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        serving.build({"out": str(server.out), **given})


@pytest.mark.drills
def test_no_request_is_lost_while_replicas_die_and_a_new_version_is_rolled_out(tmp_path):
    """2,000 requests from 8 clients; a replica is killed three times, and `deploy` called again."""
    code = Path(__file__).with_name("rolling.py")
    done = subprocess.run(
        [sys.executable, str(code), str(tmp_path)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "asked": 2000, "killed": 3, "versions": 2, "lost": 0, "wrong": 0,
    }, done.stderr[-3000:]  # fmt: skip
