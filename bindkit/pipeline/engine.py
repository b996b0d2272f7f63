"""papermill's engine of bindkit: executed notebooks are small, quiet, and run by the Python that papermill runs in.

::

    papermill --engine bindkit notebooks/05_explore_affinity.ipynb out/05.ipynb -p workspace "$PWD/runs/mine"

Without it papermill keeps the state of all widgets in the notebook, among it Plotly's whole program.
"""

from __future__ import annotations

import os
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode

ENGINE = "bindkit"
"""Its name for papermill."""

WIDGET = "application/vnd.jupyter.widget-view+json"
"""What a notebook holds where a widget was shown."""


class ThisPythonKernel(AsyncKernelManager):
    """Starts kernels of the running Python, whatever kernel a user has registered under the name ``python3``.

    Bars are drawn as text, so that no widget state lands in executed notebooks. OpenMP's threads sleep while they wait:
    where they spin, one other busy process on the machine makes training probes ten times slower.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        """The running Python's own kernel."""
        style = "off" if os.environ.get("BINDKIT_PROGRESS") == "off" else "text"
        quiet = get_kernel_dict(extra_arguments=["--log-level=ERROR"])
        waiting = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        return KernelSpec(**quiet, env={"BINDKIT_PROGRESS": style, "OMP_WAIT_POLICY": waiting})


class NotebookEngine:
    """Executes with `ThisPythonKernel`, without widget state; text is left as a terminal shows it at the end.

    papermill imports this module while it is imported itself, so that its own engine is met only when one is asked.
    """

    @staticmethod
    def execute_notebook(nb: NotebookNode, kernel_name: str, **options: Any) -> NotebookNode:
        """Execute a notebook; called by papermill, as are the others."""
        chosen = {"kernel_manager_class": ThisPythonKernel, "store_widget_state": False}
        try:
            executed: NotebookNode = _own().execute_notebook(nb, kernel_name, **{**chosen, **options})
        finally:
            _settle(nb)
        return _settle(executed)

    @staticmethod
    def nb_kernel_name(nb: NotebookNode, name: str | None = None) -> str:
        """Name of the kernel that a notebook asks for."""
        found: str = _own().nb_kernel_name(nb, name)
        return found

    @staticmethod
    def nb_language(nb: NotebookNode, language: str | None = None) -> str:
        """Language of a notebook."""
        found: str = _own().nb_language(nb, language)
        return found


def _own() -> Any:
    from papermill.engines import NBClientEngine

    return NBClientEngine


def _settle(notebook: NotebookNode) -> NotebookNode:
    """Settled progress bars, no widget state."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_settled, _joined(cell.outputs)) if output is not None]
    notebook.metadata.pop("widgets", None)
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with consecutive pieces of one stream put together: a kernel sends text as it comes."""
    joined: list[NotebookNode] = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before is not None and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def _settled(output: NotebookNode) -> NotebookNode | None:
    """A text output as a terminal would leave it: of a bar that redrew its line only the last state, if any.

    A widget whose kernel is gone is an error message in JupyterLab; where a picture of it was given, that stays alone.
    """
    if output.output_type != "stream":
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            data.pop(WIDGET, None)
        return output
    lines = [_last_drawn(line) for line in output.text.split("\n")]
    output.text = "\n".join(lines)
    return output if output.text.strip() else None


def _last_drawn(line: str) -> str:
    """What a line shows after its carriage returns: a later drawing overwrites an earlier one."""
    shown = ""
    for drawing in line.split("\r"):
        shown = drawing + shown[len(drawing) :]
    return shown.rstrip() if "\r" in line else shown
