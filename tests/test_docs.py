"""The documentation: every key, option, method, public name and failure test has its entry, every
link between pages leads somewhere, every command in it can be typed.
"""

import ast
import dataclasses
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from raybust import config, methods
from raybust.cli import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The staged pages, path below the folder to text."""
    folder = tmp_path_factory.mktemp("docs") / "staged"
    staged = loaded("generate").stage(folder)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in staged}


def anchors(text):
    """Returns the anchors of a page: headings, keys, API entries."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = {slug(title) for title in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}
    return found | set(re.findall(r"\{ #(\S+)", text)) | set(re.findall(r"^::: (\S+)", text, re.M))


def slug(title):
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"`", "", title)).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


def test_every_key_is_in_the_configuration_reference(pages):
    plain = config.to_dict(config.compose([], methods.get))
    keys = {leaf.key for leaf in config.leaves_of(plain, "")}
    missing = [
        key
        for key in keys
        if not key.startswith("method.") and f"{{ #{key} " not in pages["configuration.md"]
    ]
    assert not missing


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_formula_its_source_and_its_fields(pages, name):
    section = re.split(r"^## ", pages["methods.md"], flags=re.MULTILINE)
    (mine,) = (part for part in section if part.startswith(f"{name}\n"))
    assert "```math" in mine
    assert name == "standard" or "https://arxiv.org/abs/" in mine
    for field in dataclasses.fields(methods.get(name)):
        assert f"{{ #{name}.{field.name} " in mine


def test_every_option_is_in_the_command_reference(pages):
    sections = re.split(r"^## ", pages["commands.md"], flags=re.MULTILINE)
    for name, command in cli.commands.items():
        (mine,) = (part for part in sections if part.startswith(f"{name}\n"))
        for option in command.params:
            if option.param_type_name == "option":
                assert f"`{option.opts[0]}`" in mine


def test_links_between_pages(pages):
    sources = {f"docs/{name}": text for name, text in pages.items()}
    sources["README.md"] = SOURCES[0].read_text()
    broken = []
    for page, text in sources.items():
        for link in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
            if link.startswith(("https://", "http://")):
                continue
            file, _, anchor = link.partition("#")
            target = (Path(page).parent / file).as_posix() if file else page
            known = target in sources or (page == "README.md" and (ROOT / target).is_file())
            if not known or (anchor and anchor not in anchors(sources[target])):
                broken.append(f"{page}: {link}")
    assert not broken


def test_every_page_is_in_the_navigation(pages):
    def listed(entries):
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else listed(value)

    nav = list(listed(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert sorted(nav) == sorted(pages)


def commands(text):
    """Yields the words of every raybust command in the fenced blocks of a page."""
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("raybust "):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_commands_name_known_options_and_keys(source, pages):
    known = set(re.findall(r"\{ #(\S+)", pages["configuration.md"]))
    for words in commands(source.read_text()):
        command = cli.commands[words[0]]
        options = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        for word in words[1:]:
            key, equals, _ = word.partition("=")
            if word.startswith("--"):
                assert key in options | {"--help"}, words
            elif equals and "method." not in key and key != "train.epoch":
                assert key in known, words


def test_the_tests_that_the_failures_name_exist():
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    failures = (DOCS / "reliability.md").read_text()
    for file, _, name in re.findall(r"`(test_\w+\.py)(::(test_\w+))?`", failures):
        assert file in files
        assert not name or f"def {name}(" in files[file].read_text(), f"{file}::{name}"


def messages():
    """Returns every text in the source of raybust, with one character for each value in it."""
    texts = []
    for file in (ROOT / "raybust").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = node.values
                texts.append("".join(str(getattr(part, "value", "")) if isinstance(
                    part, ast.Constant) else "\0" for part in parts))  # fmt: skip
    return "\n".join(texts)


def test_the_messages_that_the_failures_quote_exist():
    rows = [line.split(" | ") for line in (DOCS / "reliability.md").read_text().splitlines()]
    said = messages()
    quoted = [text for row in rows if len(row) == 4 for text in re.findall(r"`([^`]+)`", row[1])]
    parts = [part.strip(" ;:()") for text in quoted for part in text.split("...")]
    assert len(parts) > 30
    missing = [part for part in parts if " " in part and part not in said]
    assert not missing


def test_a_marker_that_names_nothing_is_refused():
    generate = loaded("generate")
    for marker in ("section nowhere", "method nowhere", "nothing"):
        with pytest.raises(ValueError, match="names nothing"):
            generate.expand(f"<!-- generate: {marker} -->", "page.md")


def test_what_the_check_of_the_site_finds(tmp_path):
    check = loaded("check")
    (tmp_path / "other.html").write_text('<h1 id="here">x</h1>')
    page = tmp_path / "index.html"
    page.write_text('<a href="other.html#here">x</a><span id="raybust.name"></span>')
    assert check.problems(tmp_path, ["raybust.name"]) == []
    page.write_text(
        '<a href="no.html">x</a><a href="other.html#no">x</a><a href="#no">x</a>'
        '<script src="https://example.org/x.js"></script>'
        '<link rel="stylesheet" href="https://example.org/x.css">'
    )
    (tmp_path / "style.css").write_text("a { background: url(https://example.org/x.png) }")
    found = check.problems(tmp_path, ["raybust.name"])
    assert len(found) == 7, found
    assert sys.modules.get("zensical") is None


def test_users_do_not_install_the_tools_of_the_documentation():
    installed = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"^(zensical|mkdocs|mkdocstrings)", installed, re.MULTILINE)
