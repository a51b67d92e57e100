"""Run the notebooks of `examples`; `python -m tests.docs.notebooks` saves their outputs."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 300  # for one cell


def execute(path: Path, folder: str) -> nbformat.NotebookNode:
    """Run a notebook in a folder, and return it with its outputs.

    Raises:
        CellExecutionError: a cell raises an exception.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": folder}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, folder), path)


if __name__ == "__main__":
    main()
