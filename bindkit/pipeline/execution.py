"""Execute one notebook with papermill's engine of bindkit (`bindkit.pipeline.engine`), so that it can be resumed.

An executed notebook carries a record of what it was made from; it is complete only with that record, which is
written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillExecutionError

from bindkit.errors import NotebookFailedError
from bindkit.pipeline.engine import ENGINE, NotebookEngine

papermill_engines.register(ENGINE, NotebookEngine)  # also without the entry point of an installed bindkit

KERNEL_NAME = "python3"
RECORD = "bindkit"
"""Key of the record in an executed notebook's metadata."""


@dataclass(frozen=True)
class ExecutionRecord:
    """What an executed notebook was made from.

    Parameters
    ----------
    source : str
        SHA-256 of the source notebook's cells.
    parameters : dict
        Parameters that were set, plain values.
    version : str
        Version of bindkit.
    inputs : dict
        Digests of what it reads from outside: scenes and backbones, as far as they are known.
    """

    source: str
    parameters: dict[str, Any]
    version: str
    inputs: dict[str, str]

    @classmethod
    def of(cls, path: Path, parameters: dict[str, Any], version: str, inputs: dict[str, str]) -> ExecutionRecord:
        """Record of executing the notebook at `path` now; its outputs do not count, only its cells."""
        cells = [[cell.cell_type, cell.source] for cell in nbformat.read(path, as_version=4).cells]
        digest = hashlib.sha256(json.dumps(cells).encode()).hexdigest()
        return cls(digest, json.loads(json.dumps(parameters)), version, inputs)

    def describes(self, path: Path, workspace: Path) -> bool:
        """Whether `path` is a complete execution of exactly this: no error, every code cell executed.

        The files that it left at the top of the workspace (its tables) must still be there; directories need not, so
        that a cache may be removed to free the disk.
        """
        try:
            notebook = nbformat.read(path, as_version=4)
        except Exception:  # missing, cut short by a kill, or no notebook at all
            return False
        recorded = dict(notebook.metadata.get(RECORD, {}))
        left, inputs = recorded.pop("left", []), recorded.pop("inputs", None)
        # What nobody knew then, such as a hub model before its download, is no difference.
        same = inputs is not None and all(inputs.get(name, known) == known for name, known in self.inputs.items())
        if (
            not same
            or {**recorded, "inputs": self.inputs} != asdict(self)
            or not all((workspace / name).exists() for name in left)
        ):
            return False
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        outputs = [output for cell in cells for output in cell.outputs]
        executed = all(cell.execution_count is not None for cell in cells)
        return executed and all(output.output_type != "error" for output in outputs)


def execute_notebook(
    source: Path, target: Path, record: ExecutionRecord, workspace: Path, also: Mapping[str, Any]
) -> None:
    """Execute `source` into `target` in the directory of `target`; what its kernel says goes to standard error.

    `workspace` is the directory whose files are noted as what the notebook left; `also` are parameters by which
    nobody tells one execution from another, so that the record lacks them.

    Raises
    ------
    NotebookFailedError
        Naming the notebook, the cell, the error and the partially executed notebook.
    """
    target.unlink(missing_ok=True)
    files_before = _files(workspace)
    try:
        with _quiet_papermill():
            executed = papermill.execute_notebook(
                _literally(source),
                _literally(target),
                parameters={**record.parameters, **also},
                engine_name=ENGINE,
                kernel_name=KERNEL_NAME,
                language="python",
                progress_bar=False,
                stderr_file=sys.stderr,
                resources={"metadata": {"path": str(target.parent)}},
            )
    except PapermillExecutionError as error:
        cause = f"{error.ename}: {_without_colours(error.evalue)}".rstrip(": ")
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
    left = sorted(name for name, state in _files(workspace).items() if files_before.get(name) != state)
    _complete(executed, target, {**asdict(record), "left": left})


def _files(directory: Path) -> dict[str, tuple[int, int]]:
    """Files of a directory by name, with what changes when one is written: its time (ns) and size (bytes)."""
    files = [entry for entry in directory.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


@contextmanager
def _quiet_papermill() -> Iterator[None]:
    """Keep papermill from warning of parameters that it fails to read (any line with a second ``=``)."""
    papermill_logger = logging.getLogger("papermill")
    level = papermill_logger.level
    papermill_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        papermill_logger.setLevel(level)


def _complete(notebook: NotebookNode, target: Path, record: dict[str, Any]) -> None:
    """Write the executed notebook for good, with its record."""
    notebook.metadata[RECORD] = record
    temporary = target.with_name(f".{target.name}")
    nbformat.write(notebook, temporary)
    temporary.replace(target)


def _literally(path: Path) -> str:
    """A path that papermill, which fills in ``{names}``, leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


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


def _without_colours(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
