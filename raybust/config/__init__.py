"""Configuration: the typed schema, YAML and key=value merged into it, errors that name the key."""

from raybust.config.compose import (
    USUAL_METHOD,
    Leaf,
    MethodTypes,
    compose,
    difference,
    from_dict,
    leaves_of,
    leaves_of_arguments,
    read_yaml,
    to_dict,
)
from raybust.config.include import expand
from raybust.config.options import Section, default_of, domain, fraction, option
from raybust.config.schema import Config

__all__ = [
    "USUAL_METHOD",
    "Config",
    "Leaf",
    "MethodTypes",
    "Section",
    "compose",
    "default_of",
    "difference",
    "domain",
    "expand",
    "fraction",
    "from_dict",
    "leaves_of",
    "leaves_of_arguments",
    "option",
    "read_yaml",
    "to_dict",
]
