"""Lists methods, datasets and networks, or the facts about one of them, as rows.

`raybust methods | datasets | models [NAME]` prints them. A plug-in that cannot be imported becomes
a row with its error and hides none of the others.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, get_args, get_type_hints

from raybust import data as datasets_
from raybust import methods as methods_
from raybust import models as models_
from raybust.config import domain
from raybust.errors import RequestError, unknown

Rows = list[dict[str, Any]]


def methods(name: str | None) -> Rows:
    """Returns a row for each method, or for each field of one.

    Raises:
        RequestError: there is no such method.
    """
    if name is None:
        return [{"method": key, "what": _title(key)} for key in methods_.names()]
    cls = methods_.get(name)
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    if not fields:
        return [{"method": name, "what": f"{_paragraph(cls)} It has no fields."}]
    return [
        {
            "key": f"method.{field.name}",
            "type": _type_name(hints[field.name]),
            "default": _default(field),
            "domain": domain(field.metadata),
            "unit": field.metadata.get("unit", ""),
            "what": field.metadata.get("doc", ""),
        }
        for field in fields
    ]


def about(name: str) -> str:
    """Returns a method's description and source: the start of its module's and its class's
    docstrings.

    Raises:
        RequestError: there is no such method.
    """
    cls = methods_.get(name)
    return f"{_paragraph(sys.modules[cls.__module__])}\n\n{_paragraph(cls)}"


def datasets(name: str | None) -> Rows:
    """Returns a row for each dataset, or the facts about one."""
    if name is not None and name not in datasets_.names():
        raise unknown("dataset", name, datasets_.names())
    rows = _facts("dataset", name, datasets_.names(), datasets_.describe, text="about")
    if name is not None:
        rows += [{"fact": key, "value": text} for key, text in datasets_.explain(name).items()]
    return rows


def models(name: str | None) -> Rows:
    """Returns a row for each built-in network and each form of external names, the facts about one
    network, or the names of a form."""
    if name in models_.FORMS:
        library = name.partition(":")[0]
        if library in models_.LIBRARIES:
            return [{"network": f"{library}:{one}"} for one in models_.names_of(library)]
        return [{"fact": "source", "value": models_.FORMS[name]}]
    rows = _facts("network", name, models_.names(), models_.describe, text="source")
    if name is None:
        nothing = dict.fromkeys(rows[0])
        rows += [{**nothing, "network": k, "source": text} for k, text in models_.FORMS.items()]
    return rows


def _facts(kind: str, name: str | None, names: list[str], describe: Any, *, text: str) -> Rows:
    """Returns a row for each name, or the facts about one.

    Args:
        kind: what the names refer to.
        name: one name, or None for all.
        names: all names.
        describe: maps a name to its facts.
        text: the fact replaced by the error if a name cannot be described.
    """
    if name is not None:
        return [{"fact": key, "value": fact} for key, fact in _without_name(describe(name)).items()]
    found: dict[str, dict[str, Any]] = {}
    for key in names:
        try:
            found[key] = _without_name(describe(key))
        except RequestError as error:
            found[key] = {text: str(error)}
    columns = max(found.values(), key=len)
    return [{kind: key, **dict.fromkeys(columns), **facts} for key, facts in found.items()]


def _without_name(facts: dict[str, Any]) -> dict[str, Any]:
    readable = dict(facts)
    if facts.get("shape"):
        readable["shape"] = " x ".join(map(str, facts["shape"]))
    if facts.get("examples"):
        readable["examples"] = "{} train, {} test".format(*facts["examples"])
    return {key: value for key, value in readable.items() if key != "name"}


def _title(key: str) -> str:
    try:
        cls = methods_.get(key)
    except RequestError as error:
        return str(error)
    title, colon, _ = _paragraph(sys.modules[cls.__module__]).partition(":")
    return title if colon else _paragraph(cls)


def _paragraph(documented: Any) -> str:
    return " ".join((documented.__doc__ or "").split("\n\n")[0].split())


def _type_name(hint: Any) -> str:
    arguments = get_args(hint)
    if arguments and isinstance(arguments[0], str):
        return " | ".join(map(str, arguments))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _default(field: dataclasses.Field[Any]) -> Any:
    if callable(field.default_factory):
        return field.default_factory().key
    return field.default
