"""The notebooks of `examples` run, and the executed copies beside them are of these sources.

`QCOWKIT_KEEP_NOTEBOOKS=1` writes the executed copies anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.py"))
#: Executed copies are for reading, not for storage.
LARGEST_BYTES = 400_000


def sources(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_five() -> None:
    assert len(NOTEBOOKS) == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel listens on local sockets alone, and tells nobody.
    monkeypatch.setenv("DASK_DISTRIBUTED__ADMIN__LARGE_GRAPH_WARNING_THRESHOLD", "1GB")
    notebook = jupytext.read(path)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert any("text/html" in output.get("data", {}) for output in outputs)
    kept = path.with_suffix(".ipynb")
    if os.environ.get("QCOWKIT_KEEP_NOTEBOOKS"):
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, kept)
    executed = nbformat.read(kept, as_version=4)
    assert sources(executed) == sources(notebook), f"{kept.name} is of another source: see the top of this file"
    assert kept.stat().st_size < LARGEST_BYTES
