"""The HTTP side of a served network: reads requests, asks the replicas, answers.

If a replica dies, its requests are retried on another. When the queue is full, a request is told
when to come again.
"""

import asyncio
import hmac
import math
import time
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.formparsers import MultiPartException

from raybust.serve.openapi import PREDICT, SECURED, Described
from raybust.serve.requests import (
    BadRequestError,
    Limits,
    Question,
    from_files,
    from_json,
    from_npy,
)
from raybust.serve.watch import Watch

_PAGE = Path(__file__).with_name("page.html")
_RETRY_S = 30.0
"""Time for which a request is asked again when replicas die."""
_PAUSE_S = 0.1
_LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ABOUT = "Classes with certified radii: no change of an image within its radius changes the class."

app = Described(title="raybust", description=_ABOUT)


@serve.ingress(app)
class Gate:
    """Answers HTTP.

    Args:
        replicas: handle of the replicas.
        about: what `GET /model` says.
        limits: of a request.
        token: that a request must carry, or None.
    """

    def __init__(
        self, replicas: Any, about: dict[str, Any], limits: Limits, token: str | None
    ) -> None:
        self.replicas, self.about, self.limits, self.token = replicas, about, limits, token
        self.watch = Watch(about["radii"])
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "raybust_requests", "Requests by status.", ["status"], registry=self.registry
        )
        self.images = Counter(
            "raybust_images", "Images by outcome.", ["outcome"], registry=self.registry
        )
        self.draws = Counter("raybust_draws", "Noisy copies.", registry=self.registry)
        self.radii = Counter("raybust_radius_sum", "Sum of radii.", registry=self.registry)
        self.window = Gauge(
            "raybust_window", "Of the latest answers.", ["what"], registry=self.registry
        )
        self.latency = Histogram(
            "raybust_seconds", "Seconds of a request.", buckets=_LATENCIES, registry=self.registry
        )

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """Returns 200 while the server runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(self) -> JSONResponse:
        """Returns 200 once a replica answers, 503 before."""
        try:
            await asyncio.wait_for(self.replicas.ping.remote(), timeout=5)
        except (RayError, RayServeException, TimeoutError):
            return JSONResponse({"status": "starting"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/model", openapi_extra=SECURED)
    async def model(self, request: Request) -> JSONResponse:
        """Returns what is served, and how its answers compare with the test set's."""
        refused = self._refusal(request)
        return refused or JSONResponse({**self.about, "watch": self.watch.plain()})

    @app.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        """Returns a page that asks about an image."""
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    @app.get("/metrics", openapi_extra=SECURED)
    async def metrics(self, request: Request) -> Response:
        """Returns counters in the format of Prometheus."""
        refused = self._refusal(request)
        if refused is not None:
            return refused
        watched = self.watch.plain()
        for name in ("abstention", "mean_radius", "drift"):
            value = watched[name]
            self.window.labels(name).set(math.nan if value is None else value)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict", openapi_extra=PREDICT)
    async def predict(self, request: Request) -> JSONResponse:
        """Returns class, radius and bound of each image."""
        began = time.perf_counter()
        response = self._refusal(request)
        if response is None:
            try:
                response = await self._answer(await self._question(request))
            except BadRequestError as error:
                response = JSONResponse({"error": error.text}, error.code)
        self.requests.labels(str(response.status_code)).inc()
        self.latency.observe(time.perf_counter() - began)
        return response

    def _refusal(self, request: Request) -> JSONResponse | None:
        """Returns the answer to a request without the token, else None."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.token is None or hmac.compare_digest(given.encode(), self.token.encode()):
            return None
        return JSONResponse(
            {"error": "send the header `Authorization: Bearer TOKEN`"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )

    async def _question(self, request: Request) -> Question:
        size = int(request.headers.get("content-length") or 0)
        if size > self.limits.size:
            raise BadRequestError(413, f"got {size:,} bytes, expected at most {self.limits.size:,}")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        query = dict(request.query_params)
        if kind == "multipart/form-data":
            if not size:
                raise BadRequestError(411, "send the header Content-Length")
            try:
                form = await request.form(max_files=self.limits.images + 1)
            except MultiPartException as error:
                raise BadRequestError(400, f"not multipart: {error.message}") from None
            parts = form.multi_items()
            texts = {key: value for key, value in parts if isinstance(value, str)}
            files = [
                (part.filename or key, await part.read())
                for key, part in parts
                if not isinstance(part, str)
            ]
            return await asyncio.to_thread(from_files, files, {**query, **texts}, self.limits)
        body = await self._body(request)
        if kind == "application/json":
            return await asyncio.to_thread(from_json, body, query, self.limits)
        if kind in ("application/x-npy", "application/octet-stream"):
            return await asyncio.to_thread(from_npy, body, query, self.limits)
        if kind.startswith("image/"):
            return await asyncio.to_thread(from_files, [("image", body)], query, self.limits)
        raise BadRequestError(
            415,
            f"content type: got {kind or 'none'!r}, expected application/json, application/x-npy,"
            " multipart/form-data or image/*",
        )

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.size:
                raise BadRequestError(413, f"expected at most {self.limits.size:,} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _answer(self, question: Question) -> JSONResponse:
        """Asks a replica, and another one if it dies."""
        began, due = time.monotonic(), question.ask.get("seconds")
        until = began + max(_RETRY_S, due or 0.0)
        while True:
            if due is not None:
                question.ask["seconds"] = max(0.0, due - (time.monotonic() - began))
            try:
                found = await self._ask(question)
                break
            except BackPressureError:
                found = {"busy": 1.0}
                break
            except (RayActorError, RayServeException) as error:
                if time.monotonic() > until:
                    return JSONResponse({"error": f"no replica answers: {error}"}, 503)
                await asyncio.sleep(_PAUSE_S)
            except RayError as error:
                text = " ".join(str(error).split())[-200:]
                return JSONResponse({"error": f"the network failed: {text}"}, 500)
        if "busy" in found:
            seconds = max(1, round(found["busy"]))
            text = f"the queue is full; try again in {seconds} s"
            return JSONResponse({"error": text}, 429, {"Retry-After": str(seconds)})
        if "refused" in found:
            return JSONResponse({"error": found["refused"]}, 422)
        answers = [
            {**answer, "image": name}
            for name, answer in zip(question.names, found["answers"], strict=True)
        ]
        asked = question.ask
        usual = "radius" not in asked and asked["alpha"] == self.limits.alpha
        self._count(answers, full=usual and not question.plain)
        alpha = {} if question.plain else {"alpha": asked["alpha"]}
        return JSONResponse({"predictions": answers, **alpha, **self.about["protocol"]})

    async def _ask(self, question: Question) -> dict[str, Any]:
        if question.plain:
            found: dict[str, Any] = await self.replicas.plain.remote(question.images)
        else:
            found = await self.replicas.certify.remote(question.images, question.ask)
        return found

    def _count(self, answers: list[dict[str, Any]], *, full: bool) -> None:
        for answer in answers:
            if full and answer["draws"] == self.limits.n:
                self.watch.add(-1.0 if answer["abstain"] else answer["radius"])
            self.images.labels("abstained" if answer["abstain"] else "answered").inc()
            self.draws.inc(answer["draws"])
            self.radii.inc(answer["radius"])
