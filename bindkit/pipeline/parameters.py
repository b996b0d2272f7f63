r"""Parameters of notebooks: plain literals in one tagged cell, set by papermill, checked by name and type.

papermill itself only warns of a parameter that a notebook does not have. Each notebook therefore calls
``bk.check_parameters(In)`` in its first code cell after the parameters:

>>> cells = ["", 'layers = "all"', '# Parameters\nlayer = "0,6"\n']
>>> check_parameters(cells)
Traceback (most recent call last):
    ...
bindkit.errors.UnknownParameterError: unknown parameter 'layer' (did you mean 'layers'?); this notebook has: layers
"""

from __future__ import annotations

import ast
import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bindkit.errors import InvalidParameterError, UnknownParameterError

INJECTED = "# Parameters"
"""The comment that papermill puts on top of the cell that it injects."""


def read_assignments(source: str) -> dict[str, Any]:
    r"""Names and values that a cell of plain literals assigns.

    >>> read_assignments('scenes = "synthetic:n=8,seed=0"  # URI\nseed: int = 0')
    {'scenes': 'synthetic:n=8,seed=0', 'seed': 0}

    Raises
    ------
    InvalidParameterError
        If the cell does anything else than assign literals to names: papermill could not set those.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InvalidParameterError(f"a parameter cell must be plain Python, got {error.text or source!r}") from error
    values: dict[str, Any] = {}
    for statement in statements:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target = statement.target
        if not isinstance(target, ast.Name):
            raise InvalidParameterError(
                f'a parameter cell holds only lines like `name = 3` or `name = "text"`, got `{ast.unparse(statement)}`'
            )
        try:
            values[target.id] = _literal(statement.value)  # type: ignore[attr-defined]
        except ValueError:
            raise InvalidParameterError(
                f"parameter {target.id!r} must be a plain literal, so that papermill can set it, got "
                f"`{ast.unparse(statement)}`"
            ) from None
    return values


def _literal(node: ast.expr) -> Any:
    """Value of a literal; papermill writes the infinite and undefined floats as ``float('nan')``."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "float"
        and len(node.args) == 1
    ):
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Parameters of a notebook with their defaults: what its ``parameters``-tagged cell assigns.

    Raises
    ------
    InvalidParameterError
        If the notebook cannot be read, has no such cell, or the cell is not plain literals.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries
        raise InvalidParameterError(f"{path} is not a notebook that can be read: {error}") from error
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            try:
                return read_assignments(cell.source)
            except InvalidParameterError as error:
                raise InvalidParameterError(f"{Path(path).name}: {error}") from None
    raise InvalidParameterError(f"{Path(path).name} has no cell tagged 'parameters'; tag the cell that assigns them")


def unknown_parameters(unknown: Iterable[str], known: Iterable[str], owner: str) -> UnknownParameterError:
    """Error that names parameters nobody has, what was likely meant, and what there is."""
    known = list(known)
    named = []
    for name in unknown:
        close = difflib.get_close_matches(name, [entry.split("=")[0] for entry in known], n=1, cutoff=0.6)
        named.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    plural = "s" if len(named) > 1 else ""
    return UnknownParameterError(f"unknown parameter{plural} {', '.join(named)}; {owner}: {', '.join(known)}")


def check_value(name: str, value: Any, default: Any) -> Any:
    """Return `value` if it is of the default's type (an int passes for a float; anything for None).

    A whole number passes for text, and a list of strings or numbers for a text parameter that holds several, as the
    notebooks write them: blanks between names, commas between numbers.

    >>> check_value("backbones", ["a/b", "my model"], "x"), check_value("layers", [0, 6], "all")
    ("a/b 'my model'", '0,6')
    >>> check_value("layers", 3, "all")
    '3'

    Raises
    ------
    InvalidParameterError
        If the type differs.
    """
    if isinstance(default, str) and isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(type(entry) is int for entry in value):
            return ",".join(map(str, value))
        if value and all(isinstance(entry, str) for entry in value):
            return shlex.join(value)
    if default is None:
        return value
    if isinstance(default, str) and type(value) is int:
        return str(value)  # papermill's command line turns `-p layers 3` into a number
    if isinstance(default, float) and type(value) is int:
        return float(value)
    wanted: type | tuple[type, ...] = (list, tuple) if isinstance(default, list | tuple) else type(default)
    same = isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
    if not same:
        raise InvalidParameterError(
            f"parameter {name!r} takes {_kind(default)} such as {default!r}, got {_kind(value)}: {value!r}"
        )
    return value


def parse_value(name: str, text: str, default: Any) -> Any:
    """Read a parameter that was typed in a terminal, by the type of its default.

    >>> parse_value("seed", "3", 0), parse_value("layers", "3", "all"), parse_value("shuffle", "true", False)
    (3, '3', True)

    Raises
    ------
    InvalidParameterError
        If the text is no value of that type.
    """
    if isinstance(default, str):
        return text
    if isinstance(default, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return check_value(name, value, default)


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse parameters that papermill set but the notebook does not have, or of another type.

    Parameters
    ----------
    cells : sequence of str
        IPython's ``In``: the source of every cell executed so far.

    Notes
    -----
    Without an injected cell (an interactive session, nbval) there is nothing to check.

    Raises
    ------
    UnknownParameterError
        For a name that the parameter cell does not assign; names the closest one and all there are.
    InvalidParameterError
        For a value of another type than its default.
    """
    injected = [position for position, source in enumerate(cells) if source.lstrip().startswith(INJECTED)]
    if not injected:
        return
    own = next((source for source in reversed(cells[: injected[-1]]) if _is_parameter_cell(source)), None)
    if own is None:
        return
    defaults, given = read_assignments(own), read_assignments(cells[injected[-1]])
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise unknown_parameters(unknown, defaults, "this notebook has")
    for name, value in given.items():
        check_value(name, value, defaults[name])


def check_known(given: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return `given` with every value checked against the `known` defaults; the error lists those with values.

    Raises
    ------
    UnknownParameterError, InvalidParameterError
        As `check_parameters`.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise unknown_parameters(unknown, [f"{name}={value!r}" for name, value in known.items()], owner)
    return {name: check_value(name, value, known[name]) for name, value in given.items()}


def _is_parameter_cell(source: str) -> bool:
    """Whether a cell assigns literals and nothing else, and was not itself injected."""
    if source.lstrip().startswith(INJECTED):
        return False
    try:
        return bool(read_assignments(source))
    except InvalidParameterError:
        return False


def _kind(value: Any) -> str:
    """Words for a value's type."""
    words: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
    return words.get(type(value), f"a {type(value).__name__}")
