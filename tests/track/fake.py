"""A stand-in for an MLflow server: the calls that a delivery makes, with faults on demand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Fake:
    """Serves one experiment in memory.

    Attributes:
        faults: of the next log-batch requests, in order: (status, body) or seconds to hang.
        points: metric points received, including duplicates, as (key, step, value).
        status: the run's status.
    """

    def __init__(self, port=0):
        self.faults, self.points, self.status = [], [], "RUNNING"
        self.requests = []
        self.run = None
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path, body):
        if path == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "1", "name": "e", "lifecycle_stage": "active"}}
        if path == "experiments/get":
            tags = [{"key": "raybust.store", "value": "fake"}]
            return {"experiment": {"experiment_id": "0", "name": "Default", "tags": tags}}
        if path == "runs/search":
            return {"runs": [self.run] if self.run else []}
        if path == "runs/create":
            info = {"run_id": "r", "experiment_id": "1", "status": "RUNNING"}
            self.run = {"info": info, "data": {"tags": body["tags"]}}
            return {"run": self.run}
        if path == "runs/set-tag":
            self.run["data"]["tags"].append({"key": body["key"], "value": body["value"]})
        if path == "runs/update":
            self.status = body.get("status", self.status)
            return {"run_info": self.run["info"]}
        if path == "runs/log-batch":
            self.points += [(m["key"], m["step"], m["value"]) for m in body.get("metrics", [])]
        return {}

    def _handler(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.respond({})

            def do_POST(self):
                self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def respond(self, body):
                path = self.path.partition("?")[0].partition("/mlflow/")[2]
                fake.requests.append(path)
                code, text = 200, None
                if path == "runs/log-batch" and fake.faults:
                    fault = fake.faults.pop(0)
                    if isinstance(fault, tuple):
                        code, text = fault
                    else:
                        time.sleep(fault)
                        return
                text = json.dumps(fake.answer(path, body)) if text is None else text
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        return Handler
