"""Notebooks executed by papermill: small, quiet, run by the Python that papermill runs in, and so that they resume.

::

    papermill --engine bindkit notebooks/05_explore_affinity.ipynb out/05.ipynb -p workspace "$PWD/runs/mine"

Without this engine papermill keeps the state of all widgets in the notebook, among it Plotly's whole program. papermill
imports this module while it is imported itself, so that it is met here only inside functions.

What `execute_notebook` leaves carries a record of what it was made from, written last: without it nothing is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeVar
from weakref import WeakSet

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode

from bindkit import __version__
from bindkit.errors import NotebookFailedError
from bindkit.pipeline.workspace import differing_names

logger = logging.getLogger(__name__)

ENGINE = "bindkit"
"""Its name for papermill, and the key of the record in an executed notebook's metadata."""

WIDGET = "application/vnd.jupyter.widget-view+json"
"""What a notebook holds where a widget was shown."""


_STARTS = 3


class ThisPythonKernel(AsyncKernelManager):
    """Starts kernels of the running Python, whatever kernel a user has registered under the name ``python3``.

    Bars are drawn as text, so that no widget state lands in executed notebooks. OpenMP's threads sleep while they wait:
    where they spin, one other busy process on the machine makes training probes ten times slower.
    """

    started: ClassVar[WeakSet[ThisPythonKernel]] = WeakSet()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.started.add(self)

    @classmethod
    def kill_all(cls) -> None:
        """End every kernel at once; for threads, in which nbclient hears of no signal."""
        for kernel in list(cls.started):
            if process := getattr(kernel.provisioner, "process", None):
                process.kill()

    @property
    def kernel_spec(self) -> KernelSpec:
        """The running Python's own kernel."""
        style = "off" if os.environ.get("BINDKIT_PROGRESS") == "off" else "text"
        quiet = get_kernel_dict(extra_arguments=["--log-level=ERROR"])
        waiting = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        return KernelSpec(**quiet, env={"BINDKIT_PROGRESS": style, "OMP_WAIT_POLICY": waiting})


class NotebookEngine:
    """Executes with `ThisPythonKernel`, without widget state; text is left as a terminal shows it at the end."""

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
        return str(_own().nb_kernel_name(nb, name))

    @staticmethod
    def nb_language(nb: NotebookNode, language: str | None = None) -> str:
        """Language of a notebook."""
        return str(_own().nb_language(nb, language))


def _own() -> Any:
    from papermill.engines import NBClientEngine

    return NBClientEngine


def _settle(notebook: NotebookNode) -> NotebookNode:
    """Outputs as a terminal would leave them, no widget state.

    Consecutive pieces of one stream are put together, since a kernel sends text as it comes; of a bar that redrew its
    line the last state stays, if any. A widget whose kernel is gone is an error message in JupyterLab; where a picture
    of it was given, that stays alone.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            before = outputs[-1] if outputs else None
            if output.output_type != "stream":
                data = output.get("data", {})
                if any(kind.startswith("image/") for kind in data):
                    data.pop(WIDGET, None)
                outputs.append(output)
            elif before is not None and before.output_type == "stream" and before.name == output.name:
                before.text += output.text
            else:
                outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = "\n".join(map(_last_drawn, output.text.split("\n")))
        cell.outputs = [output for output in outputs if output.output_type != "stream" or output.text.strip()]
    notebook.metadata.pop("widgets", None)
    return notebook


def _last_drawn(line: str) -> str:
    """What a line shows after its carriage returns: a later drawing overwrites an earlier one."""
    shown = ""
    for drawing in line.split("\r"):
        shown = drawing + shown[len(drawing) :]
    return shown.rstrip() if "\r" in line else shown


@dataclass(frozen=True)
class ExecutionRecord:
    """What an executed notebook was made from."""

    source: str
    """SHA-256 of the source notebook's cells."""
    parameters: dict[str, Any]
    version: str
    """Of bindkit."""
    inputs: dict[str, str]
    """Digests of the scenes and backbones that it reads, as far as they are known."""

    @classmethod
    def of(cls, path: Path, parameters: dict[str, Any], inputs: dict[str, str]) -> ExecutionRecord:
        """Record of executing the notebook at `path` now; its outputs do not count, only its cells."""
        cells = [[cell.cell_type, cell.source] for cell in nbformat.read(path, as_version=4).cells]
        digest = hashlib.sha256(json.dumps(cells).encode()).hexdigest()
        return cls(digest, json.loads(json.dumps(parameters)), __version__, inputs)

    def describes(self, path: Path, workspace: Path) -> bool:
        """Whether `path` is a complete execution of exactly this: no error, every code cell executed.

        The files that it left at the top of the workspace (its tables) must still be there; directories need not, so
        that a cache may be removed to free the disk.
        """
        try:
            notebook = nbformat.read(path, as_version=4)
        except Exception:  # missing, cut short by a kill, or no notebook at all
            return False
        recorded = dict(notebook.metadata.get(ENGINE, {}))
        left, inputs = recorded.pop("left", []), recorded.pop("inputs", None)
        if (
            inputs is None
            or differing_names(inputs, self.inputs)
            or {**recorded, "inputs": self.inputs} != asdict(self)
            or not all((workspace / name).exists() for name in left)
        ):
            return False
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        executed = all(cell.execution_count is not None for cell in cells)
        return executed and all(output.output_type != "error" for cell in cells for output in cell.outputs)


def runs_beside(path: Path) -> bool:
    """Whether a notebook says, in its metadata, that it needs none of its neighbours that say so too."""
    return bool(nbformat.read(path, as_version=4).metadata.get("bindkit_beside", False))


@contextmanager
def quiet_papermill() -> Iterator[None]:
    """Of parameters that it fails to read (any line with a second ``=``) papermill would warn."""
    papermill_logger = logging.getLogger("papermill")
    level = papermill_logger.level
    papermill_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        papermill_logger.setLevel(level)


class WholeLines:
    """What several notebooks say at once, a line at a time and each without what it drew before."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun = stream, ""

    def write(self, text: str) -> None:
        """Show the lines that end in `text`."""
        *lines, self.begun = (self.begun + text).split("\n")
        self.stream.write("".join(f"{_last_drawn(line)}\n" for line in lines))

    def flush(self) -> None:
        """As files do."""
        self.stream.flush()


Run = TypeVar("Run")


def at_once(run: Callable[[Path, WholeLines], Run], sources: Sequence[Path]) -> list[Run]:
    """Run notebooks two at a time where there are two cores; what has begun ends before an error is raised."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(run, source, WholeLines(sys.stderr)) for source in sources]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            for future in futures:
                future.cancel()
            if not isinstance(error, Exception):  # Ctrl-C, of which kernels hear nothing by themselves
                while wait(futures, timeout=0.2).not_done:
                    ThisPythonKernel.kill_all()
            raise


def execute_notebook(
    source: Path,
    target: Path,
    record: ExecutionRecord,
    workspace: Path,
    also: Mapping[str, Any],
    shown: WholeLines | None = None,
) -> None:
    """Execute `source` into `target` in its directory; what the kernel says goes to `shown` (standard error).

    `workspace` is the directory whose files are noted as what the notebook left; `also` are parameters by which
    nobody tells one execution from another, so that the record lacks them. Raises NotebookFailedError, naming the
    notebook, the cell, the error and the partially executed notebook.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    papermill_engines.register(ENGINE, NotebookEngine)  # also without the entry point of an installed bindkit
    target.unlink(missing_ok=True)
    files_before = _files(workspace)
    for more in reversed(range(_STARTS)):
        try:
            executed = papermill.execute_notebook(
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, target)),  # it fills in {names}
                parameters={**record.parameters, **also},
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                stderr_file=shown or sys.stderr,
                resources={"metadata": {"path": str(target.parent)}},
            )
            break
        except PapermillExecutionError as error:
            without_colours = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue)
            cause = f"{error.ename}: {without_colours}".rstrip(": ")
            where = f"cell [{error.exec_count}] ({_first_line(error.source)})"
            raise NotebookFailedError(
                f"{source.stem} stopped in {where}; the notebook as far as it came: {target}\n{cause}"
            ) from None
        except DeadKernelError:
            raise NotebookFailedError(
                f"{source.stem} stopped in {_running_cell(target)}; the notebook as far as it came: {target}\n"
                "its Python process died, most often because the memory was full (try fewer layers, scenes or "
                "patches_per_scene)"
            ) from None
        except RuntimeError as error:
            # A kernel takes ports that were free a moment ago, and any other process may have taken one since.
            if more and "before replying to kernel_info" in str(error):
                logger.info("a kernel did not start and is started again (%s)", error)
                continue
            raise NotebookFailedError(f"{source.stem} could not be started: {error}") from error
    left = sorted(name for name, state in _files(workspace).items() if files_before.get(name) != state)
    executed.metadata[ENGINE] = {**asdict(record), "left": left}
    temporary = target.with_name(f".{target.name}")
    nbformat.write(executed, temporary)
    temporary.replace(target)


def _files(directory: Path) -> dict[str, tuple[int, int]]:
    """Files of a directory by name, with what changes when one is written: its time (ns) and size (bytes)."""
    files = [entry for entry in directory.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def _running_cell(target: Path) -> str:
    """Words for the cell that ran when a kernel died."""
    try:
        cells = nbformat.read(target, as_version=4).cells
    except Exception:  # the kernel may have died before anything was written
        return "its first cell"
    code = [cell for cell in cells if cell.cell_type == "code"]
    started = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    return f"cell [{len(started)}] ({_first_line(started[-1].source)})" if started else "its first cell"


def _first_line(source: str) -> str:
    """First line of a cell that is not blank, shortened."""
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return line if len(line) <= 72 else line[:69] + "..."
