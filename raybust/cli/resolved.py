"""The resolved configuration as `--dry-run` prints it: first what differs from the defaults, and
where each value came from, then the command's own sections as YAML.

The differences are comments, so the whole output is a configuration file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from raybust.disk.files import to_json

if TYPE_CHECKING:
    from raybust.config import Config, Leaf

_WIDTH = 100


def print_config(
    config: Config,
    leaves: Sequence[Leaf],
    sections: Sequence[str],
    *,
    whole: bool,
    as_json: bool,
    base: str = "",
) -> None:
    """Prints a configuration.

    Args:
        config: the configuration.
        leaves: what the user gave.
        sections: the command's own; another one is printed if the user set something in it.
        whole: print every section.
        as_json: print all of it as JSON instead.
        base: names the run that has the values which the user did not give.
    """
    import yaml

    from raybust import config as configuration

    plain = configuration.to_dict(config)
    if as_json:
        click.echo(to_json(plain))
        return
    differing = list(_differing(config, plain))
    sources = {leaf.key: leaf.source for leaf in leaves}
    told = [(f"{key}: {_flow(value)}", sources.get(key, base)) for key, value in differing]
    wide = min(max((len(text) for text, _ in told), default=0), _WIDTH)
    click.echo("# Differs from the defaults:" if told else "# Everything is the default.")
    for text, source in told:
        click.echo(f"#   {text:<{wide}}   ({source})")
    shown = {*sections, *(key.partition(".")[0] for key in sources)}
    if not whole:
        plain = {key: value for key, value in plain.items()
                 if key in shown or not isinstance(value, dict)}  # fmt: skip
    click.echo(yaml.safe_dump(plain, sort_keys=False).rstrip())


def _differing(config: Config, plain: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields key and value of each setting that is not the default."""
    from raybust import config as configuration

    usual = configuration.to_dict(type(config)(method=type(config.method)()))
    usual["method"]["name"] = configuration.USUAL_METHOD
    before = {leaf.key: leaf.value for leaf in configuration.leaves_of(usual, "")}
    for leaf in configuration.leaves_of(plain, ""):
        if leaf.key not in before or before[leaf.key] != leaf.value:
            yield leaf.key, leaf.value


def _flow(value: Any) -> str:
    """Returns a value as YAML in one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
