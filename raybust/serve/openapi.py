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

from raybust.serve.requests import FIELDS

_STATIC = "/docs-files"

ANSWER: dict[str, dict[str, Any]] = {
    "image": {"type": "string", "description": "name or number of the image"},
    "label": {"type": "string", "description": "name of the class; empty on abstention"},
    "number": {"type": "integer", "description": "index of the class; -1 on abstention"},
    "abstain": {"type": "boolean"},
    "radius": {"type": "number", "description": "no change within it changes the class"},
    "norm": {"type": "string", "description": "of the radius; empty without noise"},
    "bound": {"type": "number", "description": "lower bound on the class's probability"},
    "draws": {"type": "integer", "description": "noisy copies that were classified"},
    "safe": {"type": "boolean", "description": "whether the radius asked about is certified"},
    "audit": {"type": "object", "description": "what recomputes the answer, if asked for"},
}
"""Fields of an answer."""
RESPONSE: dict[str, dict[str, Any]] = {
    "predictions": {"type": "array", "items": {"type": "object", "properties": ANSWER}},
    "alpha": {"type": "number", "description": "of each answer, unless it is plain"},
    "noise": {"type": "string"},
    "norm": {"type": "string", "description": "of the radii"},
    "sigma": {"type": "number", "description": "of the noise"},
    "keep": {"type": "integer", "description": "pixels that ablation noise keeps"},
    "weights": {"type": "string", "description": "digest of the network"},
}
"""Fields of a response."""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERROR = {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
_STATUSES = {
    "400": "not JSON, or not an array",
    "401": "the token is missing or wrong",
    "411": "a form without its length",
    "413": "too large",
    "415": "not an image, or an unknown content type",
    "422": "the images or a field do not fit",
    "429": "the queue is full; Retry-After says when to come again",
    "500": "the network failed",
    "503": "no replica answers",
}

SECURED: dict[str, Any] = {"security": [{"token": []}]}
PREDICT: dict[str, Any] = {
    **SECURED,
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
        for name, schema in FIELDS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        **FIELDS,
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
                        **FIELDS,
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
                        "properties": RESPONSE,
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


class Described(FastAPI):
    """An application with the token's scheme in its description, and the page at /docs.

    Args:
        arguments: of FastAPI.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, docs_url=None, redoc_url=None)
        self.openapi_version = "3.0.3"  # the newest that the page reads
        self.mount(_STATIC, StaticFiles(directory=str(swagger_ui_path)))
        self.add_api_route("/docs", self._page, include_in_schema=False)

    def openapi(self) -> dict[str, Any]:
        """Returns the description."""
        found = super().openapi()
        schemes = found.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        return found

    async def _page(self) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=self.title,
            swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{_STATIC}/favicon-32x32.png",
        )
