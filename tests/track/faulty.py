"""A proxy for an MLflow server that forwards requests or fails them on demand."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUEUE_POOL = '{"error_code": "BAD_REQUEST", "message": "QueuePool limit of size 5 reached"}'
MODES = ("refused", "hung", "400", "500")
"""Ways to fail: nothing listens, no answer, a full connection pool, an internal error."""


class Faulty:
    """Listens on its own port.

    Attributes:
        mode: None forwards; else one of MODES.
        failed: number of failed requests by mode.
    """

    def __init__(self, port):
        self.target, self.mode, self.failed = port, None, dict.fromkeys(MODES, 0)
        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self):
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                mode = faulty.mode
                if mode is None:
                    return self.passed_on(body)
                faulty.failed[mode] += 1
                if mode == "hung":
                    faulty.released.wait(120)
                if mode in ("hung", "refused"):
                    self.close_connection = True
                    return None
                text = QUEUE_POOL if mode == "400" else '{"error_code": "INTERNAL_ERROR"}'
                return self.send(int(mode), [("Content-Type", "application/json")], text.encode())

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def passed_on(self, body):
                there = http.client.HTTPConnection("127.0.0.1", faulty.target, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                there.request(self.command, self.path, body, headers)
                got = there.getresponse()
                kept = [
                    (k, v)
                    for k, v in got.getheaders()
                    if k.lower() not in ("transfer-encoding", "connection", "content-length")
                ]
                self.send(got.status, kept, got.read())  # fmt: skip

            def send(self, code, headers, content):
                self.send_response(code)
                for key, value in headers:
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        return Handler
