"""The server's OpenAPI description of `POST /predict`, and the page at /docs that shows it.

FastAPI cannot derive the description, because the server reads a request by its content type. The
page's script comes from an installed package, so it works without a network.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

_STATIC = "/docs-files"

_FIELDS: dict[str, dict[str, Any]] = {
    "radius": {"type": "number", "minimum": 0, "description": "the only radius of interest"},
    "n": {"type": "integer", "minimum": 1, "description": "draws at most"},
    "alpha": {"type": "number", "description": "probability that the answer is wrong, at most"},
    "deadline_ms": {"type": "number", "minimum": 0, "description": "answer by then"},
    "plain": {"type": "boolean", "description": "without noise: no radius"},
    "audit": {"type": "boolean", "description": "also return what recomputes the answer"},
}
_ANSWER: dict[str, dict[str, Any]] = {
    "image": {"type": "string", "description": "name or number of the image"},
    "label": {"type": "string", "description": "name of the class; empty on abstention"},
    "number": {"type": "integer", "description": "index of the class; -1 on abstention"},
    "abstain": {"type": "boolean"},
    "radius": {"type": "number", "description": "no change within it changes the class"},
    "bound": {"type": "number", "description": "lower bound on the class's probability"},
    "draws": {"type": "integer", "description": "noisy copies that were classified"},
    "safe": {"type": "boolean", "description": "whether the radius asked about is certified"},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERROR = {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
_STATUSES = {
    "400": "not JSON, or not an array",
    "401": "the token is missing or wrong",
    "413": "too large",
    "415": "not an image, or an unknown content type",
    "422": "the images or a field do not fit",
    "429": "the queue is full; Retry-After says when to come again",
}

SECURED: dict[str, Any] = {"security": [{"token": []}]}
PREDICT: dict[str, Any] = {
    **SECURED,
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
        for name, schema in _FIELDS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        **_FIELDS,
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {},
                            "description": "nested lists of numbers in [0, 1], (N, C, H, W)",
                        },
                        **_FIELDS,
                    },
                }
            },
            "application/x-npy": _BINARY,
            "image/*": _BINARY,
        },
    },
    "responses": {
        "200": {
            "description": "the answers, in the order of the images",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "predictions": {
                                "type": "array",
                                "items": {"type": "object", "properties": _ANSWER},
                            },
                            "noise": {"type": "string"},
                            "norm": {"type": "string", "description": "of the radii"},
                            "sigma": {"type": "number"},
                            "weights": {"type": "string", "description": "digest of the network"},
                        },
                    }
                }
            },
        },
        **{
            status: {"description": text, "content": {"application/json": _ERROR}}
            for status, text in _STATUSES.items()
        },
    },
}


def describe(app: FastAPI) -> None:
    """Adds the token's scheme to the description, and the page at /docs.

    Args:
        app: the server's.
    """
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        found = derive()
        schemes = found.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        return found

    app.openapi_version = "3.0.3"  # the newest that this page reads
    app.openapi = openapi  # type: ignore[method-assign]
    app.mount(_STATIC, StaticFiles(directory=str(swagger_ui_path)))

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{_STATIC}/favicon-32x32.png",
        )
