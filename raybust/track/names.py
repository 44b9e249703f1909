"""Deterministically converts any text or number to a key, value or number that MLflow accepts.

Limits are those of MLflow 3 (`mlflow.utils.validation`). A truncated text ends in an ellipsis, a
truncated key in a digest.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys

KEY_LIMIT = 250
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
DATASET_LIMIT = 500
DIGEST_LIMIT = 36


def safe_key(name: str) -> str:
    """Returns a key of a metric, param or tag that MLflow accepts.

    Characters other than letters, digits, "_", "-", ".", " ", ":" and "/" become "_"; empty, "."
    and ".." path components are dropped; beyond 250 characters a digest of the name replaces the
    end.
    """
    allowed = re.sub(r"[^\w.\-:/ ]", "_", name)
    key = "/".join(part for part in allowed.split("/") if part not in ("", ".", "..")) or "_"
    return key if len(key) <= KEY_LIMIT else f"{key[: KEY_LIMIT - 9]}_{_digest(name)}"


def safe_model(name: str) -> str:
    """Returns a model name that MLflow accepts: a safe key without "/" and ":"."""
    return re.sub(r"[/:]", "_", safe_key(name))


def safe_value(text: str, limit: int) -> str:
    """Returns a value of at most `limit` characters that any database can store: without NULs and
    lone surrogates."""
    clean = text.replace("\0", "").encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def safe_run_key(run_key: str) -> str:
    """Returns the run key as a tag value that needs no quoting in search filters."""
    clean = re.sub(r"[^\w.\-:/ ]", "_", run_key)
    if clean == run_key and len(clean) <= KEY_LIMIT:
        return clean
    return f"{clean[: KEY_LIMIT - 9]}_{_digest(run_key)}"


def safe_number(value: float | str) -> float:
    """Returns a journal's number; infinities become the largest floats, as in MLflow's stores."""
    number = float(value)
    return math.copysign(sys.float_info.max, number) if math.isinf(number) else number


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
