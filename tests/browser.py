"""Chromium without a screen, driven by its own protocol."""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """A page in the browser."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0

    def send(self, method, **parameters):
        """Calls a method of the protocol; returns its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, code):
        """Returns the value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def choose(self, selector, path):
        """Chooses a file in an input, as a user would."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path):
        """Writes what is seen as a PNG."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def open_tab(url, width=1000, height=1100, dark=False):
    """Opens a page in a browser of its own."""
    from websockets.sync.client import connect

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
                "--remote-debugging-port=0", f"--user-data-dir={profile}",
                f"--window-size={width},{height}", "about:blank",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            line = next(line for line in process.stderr if "listening on" in line)
            port = line.split("127.0.0.1:")[1].split("/")[0]
            tabs = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json").read())
            place = next(one for one in tabs if one["type"] == "page")["webSocketDebuggerUrl"]
            with connect(place, max_size=None) as socket:
                tab = Tab(socket)
                if dark:
                    feature = {"name": "prefers-color-scheme", "value": "dark"}
                    tab.send("Emulation.setEmulatedMedia", features=[feature])
                tab.send("Page.navigate", url=url)
                while not tab.evaluate("location.href != 'about:blank' && document.body != null"):
                    time.sleep(0.05)
                yield tab
        finally:
            process.kill()
            process.wait()


def wait_for(tab, code, seconds=30):
    """Waits until an expression is true in the page."""
    until = time.monotonic() + seconds
    while not tab.evaluate(code):
        assert time.monotonic() < until, f"{code}: {tab.evaluate('document.body.innerText')}"
        time.sleep(0.1)
