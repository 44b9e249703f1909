"""The notebooks in examples/, executed as Jupyter executes them."""

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat and nbclient")
nbclient = pytest.importorskip("nbclient", reason="needs nbformat and nbclient")

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
SHOWN = {
    "certify_your_network": ["ACR", "data:image/png", "class"],
    "which_method": ["certified", "image/png", "robust"],
    "serve_it": ["Ctrl-C ends it", "True"],
}
"""Notebook to what its outputs contain."""


def test_every_notebook_is_executed_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SHOWN)


@pytest.mark.cluster
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "kept without outputs"
    nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert not [one for one in outputs if one.output_type == "error"]
    text = "".join(map(str, outputs))
    assert [word for word in SHOWN[name] if word not in text] == []
    (tmp_path / "executed.ipynb").write_text(nbformat.writes(book))
