"""Execute the numbered notebooks with their defaults and keep the outputs that nbval compares.

    python tests/notebooks/refresh.py          # all of them
    python tests/notebooks/refresh.py 08 09    # those whose names begin so: labs, which need no other notebook

Run it after a change that alters what a notebook says, and read the difference before committing it. Messages on
standard error (sizes, paths, seconds) are dropped, since they are not the same on every machine.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from bindkit.pipeline.engine import WIDGET

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def main() -> None:
    os.environ["BINDKIT_PROGRESS"] = "off"
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root, "notebooks")  # the workspace lies beside it
        directory.mkdir()
        for source in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
            if not source.name.startswith(tuple(sys.argv[1:] or [""])):
                continue
            shutil.copy(source, directory)
            notebook = nbformat.read(source, as_version=4)
            # Nothing of the widgets' state is kept: one figure widget would add 5 MB.
            NotebookClient(
                notebook,
                store_widget_state=False,
                record_timing=False,
                resources={"metadata": {"path": str(directory)}},
            ).execute()
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
                    cell.metadata.pop("execution", None)
                    for output in cell.outputs:  # of a widget the picture of it stays
                        output.get("data", {}).pop(WIDGET, None)
            notebook.metadata["language_info"] = {"name": "python"}
            nbformat.write(notebook, source)
            print(f"{source.name}: {source.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
