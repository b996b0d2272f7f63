"""Parameters of notebooks: plain literals in one tagged cell, set by papermill, checked by name, type and value.

What a value must be beyond its type, and whether it is a path, is one row of `RULES`. papermill itself only warns of a
parameter that a notebook does not have. Each notebook therefore calls ``bk.check_parameters(In)`` in its first code
cell after the parameters.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindkit.arguments import parse_control, read_layers, read_seed, resolve_layers, whole_number
from bindkit.errors import BackboneError, InvalidParameterError, UnknownParameterError

INJECTED = "# Parameters"
"""The comment that papermill puts on top of the cell that it injects."""


def read_assignments(source: str) -> dict[str, Any]:
    """Names and values that a cell of plain literals assigns. Raises InvalidParameterError for any other cell."""
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
        value: Any = statement.value  # type: ignore[attr-defined]
        try:
            match value:
                case ast.Call(func=ast.Name(id="float"), args=[written]):  # so papermill writes inf and nan
                    values[target.id] = float(ast.literal_eval(written))
                case _:
                    values[target.id] = ast.literal_eval(value)
        except ValueError:
            raise InvalidParameterError(
                f"parameter {target.id!r} must be a plain literal, so that papermill can set it, got "
                f"`{ast.unparse(statement)}`"
            ) from None
    return values


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Parameters of a notebook with their defaults: what its ``parameters``-tagged cell assigns.

    Raises InvalidParameterError if it cannot be read, has no such cell, or the cell is not plain literals.
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


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse parameters that papermill set but the notebook does not have, or of another type than its default.

    ::

        bk.check_parameters(In)

    Parameters
    ----------
    cells : sequence of str
        IPython's ``In``: the source of every cell executed so far. Without an injected cell (an interactive session,
        nbval) there is nothing to check.

    Raises
    ------
    UnknownParameterError
        For a name that the parameter cell does not assign; names the closest one and all there are.
    InvalidParameterError
        For a value of another type than its default.
    """
    injected = [position for position, source in enumerate(cells) if source.lstrip().startswith(INJECTED)]
    for source in reversed(cells[: injected[-1]] if injected else []):
        try:
            defaults = {} if source.lstrip().startswith(INJECTED) else read_assignments(source)
        except InvalidParameterError:
            continue
        if defaults:
            check_known(read_assignments(cells[injected[-1]]), defaults, "this notebook has")
            return


def check_known(
    given: Mapping[str, Any], known: Mapping[str, Any], owner: str, tell_values: bool = False
) -> dict[str, Any]:
    """Return `given` with every value checked against the `known` defaults, which the error lists.

    Raises UnknownParameterError, which says what was likely meant, and InvalidParameterError.
    """
    if unknown := [name for name in given if name not in known]:
        close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.6) for name in unknown}
        named = [f"{name!r}" + (f" (did you mean {close[name][0]!r}?)" if close[name] else "") for name in unknown]
        there = [f"{name}={value!r}" if tell_values else name for name, value in known.items()]
        plural = "s" if len(unknown) > 1 else ""
        raise UnknownParameterError(f"unknown parameter{plural} {', '.join(named)}; {owner}: {', '.join(there)}")
    return {name: check_value(name, value, known[name]) for name, value in given.items()}


def check_value(name: str, value: Any, default: Any) -> Any:
    """Return `value` if it is of the default's type (an int passes for a float; anything for None).

    A whole number passes for text, and a list of strings or numbers for a text parameter that holds several, as the
    notebooks write them: blanks between names, commas between numbers. Raises InvalidParameterError for another type.
    """
    if default is None:
        return value
    if isinstance(default, str):
        if type(value) is int:
            return str(value)  # papermill's command line turns `-p layers 3` into a number
        if isinstance(value, Sequence) and value and not isinstance(value, str):
            if all(type(entry) is int for entry in value):
                return ",".join(map(str, value))
            if all(isinstance(entry, str) for entry in value):
                return shlex.join(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    wanted: type | tuple[type, ...] = (list, tuple) if isinstance(default, list | tuple) else type(default)
    if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
        raise InvalidParameterError(
            f"parameter {name!r} takes {_kind(default)} such as {default!r}, got {_kind(value)}: {value!r}"
        )
    return value


def _kind(value: Any) -> str:
    words: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
    return words.get(type(value), f"a {type(value).__name__}")


def typed_parameters(
    typed: Iterable[Sequence[str]], known: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """`given` with what was typed in a terminal besides, (name, text) each, read by the type of its `known` default.

    Raises as `check_known`, and InvalidParameterError where a parameter is given twice.
    """
    values = dict(given)
    for name, text in typed:
        if name in known and name in values:
            raise InvalidParameterError(f"parameter {name!r} is given twice")
        value: Any = text
        if isinstance(known.get(name), bool) and text.lower() in ("true", "false"):
            value = text.lower() == "true"
        elif not isinstance(known.get(name), str):
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(text)
        values |= check_known({name: value}, known, "the notebooks have", tell_values=True)
    return values


def check_choices(values: Mapping[str, Any]) -> None:
    """Refuse what no notebook of a run would take, as far as that shows without loading a model.

    `values` are as notebooks write them: names with blanks between, layers with commas; what is not among them is not
    checked. Scenes are opened, ADE20K's directory is only looked for; depth and patch of a backbone are known where its
    config lies on this machine. Raises the error that a notebook would raise after minutes of caching.
    """
    # Somebody's own notebooks may mean something else by a name of ours that is no text there.
    other = {name for name, rule in RULES.items() if rule.is_text and not isinstance(values.get(name), str)}
    known = {name: value for name, value in values.items() if name not in other}
    for name, rule in RULES.items():
        if name in known and rule.check is not None:
            rule.check(name, known)


def absolute_paths(values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The same with paths that do not depend on where a notebook runs: relative ones are meant from `base`."""
    moving = {name: rule.absolute for name, rule in RULES.items() if isinstance(values.get(name), str)}
    return {**values, **{name: absolute(values[name], base) for name, absolute in moving.items() if absolute}}


def absolute_scenes(uri: str, base: Path) -> str:
    """Make the paths of a scene URI absolute: its directory, or every part that is no option."""
    scheme, colon, rest = uri.partition(":")
    if not colon or not rest or scheme == "synthetic":
        return uri
    from bindkit.scenes.reading import split_directory  # not at the top: it needs NumPy

    directory, options = split_directory(rest, base)
    if (base / Path(directory).expanduser()).exists():
        return f"{scheme}:{','.join([_absolute(directory, base), *options])}"
    if scheme == "hf":
        return uri  # a hub's name
    parts = [part if "=" in part else _absolute(part, base) for part in rest.split(",")]
    return f"{scheme}:{','.join(parts)}"


def absolute_backbones(names: str, base: Path) -> str:
    """Make those backbones absolute that are local directories; hub ids and built-in names stay as they are."""

    def absolute(word: str) -> str:
        prefix = "timm:" if word.startswith("timm:") else ""
        place = word.removeprefix(prefix)
        local = place.startswith((".", "/", "~")) or (base / place).is_dir()
        return prefix + _absolute(place, base) if local else word

    return shlex.join(absolute(word) for word in shlex.split(names))


def _absolute(path: str, base: Path) -> str:
    return str((base / Path(path).expanduser()).resolve()) if path else path


# --- checks: of the parameter of this name among all values -----------------------------------------------------------


def _at_least(least: int) -> Check:
    return lambda name, values: whole_number(values[name], name, least)


def _one_of(module: str, names: str) -> Check:
    """One of the names that a module lists, which is imported only now."""

    def check(name: str, values: Mapping[str, Any]) -> None:
        known = tuple(getattr(importlib.import_module(module), names))
        if values[name] not in known:
            raise InvalidParameterError(f"unknown {name} {values[name]!r}; choose one of {', '.join(known)}")

    return check


def _check_protocol(name: str, values: Mapping[str, Any]) -> None:
    from bindkit.probes.protocols import protocol

    protocol(values[name])


def _check_folds(name: str, values: Mapping[str, Any]) -> None:
    from bindkit.probes.batches import LEAST_FOLDS

    if 0 < whole_number(values[name], name, 0) < LEAST_FOLDS:
        raise InvalidParameterError(f"folds is 0 for none, or at least {LEAST_FOLDS}; got {values[name]}")


def _check_controls(name: str, values: Mapping[str, Any]) -> None:
    for control in values[name].split():
        parse_control(control)


def _check_probes(name: str, values: Mapping[str, Any]) -> None:
    """With the tasks that they are to be fitted for."""
    from bindkit.probes.judging import require_pairwise
    from bindkit.results.sweeping import fitting_pairs

    probes, tasks = values[name].split(), values.get("tasks", "pairwise").split()
    if not probes or not tasks:
        raise InvalidParameterError("a run needs at least one probe and one task, such as linear and pairwise")
    fitting_pairs(probes, tasks)
    require_pairwise(tasks)


def _check_backbones(name: str, values: Mapping[str, Any]) -> None:
    """With the layers and the window that are asked of them."""
    from bindkit.backbones.names import depth_and_patch, parse_random_init
    from bindkit.scenes.geometry import PatchGrid

    backbones = shlex.split(values[name])
    if not backbones or not all(backbone.strip() for backbone in backbones):
        raise BackboneError(f"backbones are names with blanks between, at least one; got {shlex.join(backbones)!r}")
    for backbone in backbones:
        untrained = parse_random_init(backbone)
        depth, patch = depth_and_patch(untrained.source if untrained else backbone)
        if depth is not None:
            resolve_layers(values.get("layers", "all"), depth, backbone)
        if patch is not None and values.get("window"):
            PatchGrid.of_window(int(values["window"]), patch)


def _check_scenes(name: str, values: Mapping[str, Any]) -> None:
    """With the groups that they are split by."""
    from bindkit.scenes import open_scenes
    from bindkit.scenes.formats.ade20k import find_root
    from bindkit.scenes.reading import FIXED_MASKS, ReadingOptions, split_directory
    from bindkit.scenes.splits import named_groups
    from bindkit.scenes.synthetic import require_unseen

    scheme, _, rest = values[name].partition(":")
    if scheme == "ade20k" and rest.strip():
        # Opening it reads a large index, which notebook 01 does once and keeps.
        directory, options = split_directory(rest)
        ReadingOptions.parse(options, FIXED_MASKS)
        find_root(Path(directory).expanduser())
    else:
        scenes = open_scenes(values[name])
        require_unseen(scenes)
        named_groups(scenes, values.get("groups", ""))


Check = Callable[[str, Mapping[str, Any]], Any]
"""Takes a parameter's name and all values; raises the error that a notebook would raise."""


@dataclass(frozen=True)
class Rule:
    """What a parameter's value must be, and how a path in it is made absolute."""

    check: Check | None = None
    absolute: Callable[[str, Path], str] | None = None
    is_text: bool = False


RULES: Mapping[str, Rule] = {
    **{name: Rule(_at_least(1)) for name in ("patches_per_scene", "seeds", "page_scenes", "page_layers")},
    **{name: Rule(_at_least(1)) for name in ("rank", "n_scenes")},
    "backbone": Rule(absolute=absolute_backbones, is_text=True),
    "window": Rule(_at_least(0)),
    "seed": Rule(lambda name, values: read_seed(values[name])),
    "folds": Rule(_check_folds),
    "protocol": Rule(_check_protocol),
    "precision": Rule(_one_of("bindkit.backbones.loading", "PRECISIONS")),
    "cache": Rule(_one_of("bindkit.cache.extraction", "WHERE")),
    "dtype": Rule(_one_of("bindkit.cache.encoding", "ENCODINGS")),
    "changed": Rule(_one_of("bindkit.cache.extraction", "CHANGED")),
    "controls": Rule(_check_controls, is_text=True),
    "tasks": Rule(is_text=True),
    "probes": Rule(_check_probes, is_text=True),
    "layers": Rule(lambda name, values: read_layers(values[name]), is_text=True),
    "backbones": Rule(_check_backbones, absolute_backbones, is_text=True),
    "groups": Rule(is_text=True),
    "scenes": Rule(_check_scenes, absolute_scenes, is_text=True),
    "also": Rule(absolute=lambda names, base: shlex.join(_absolute(word, base) for word in shlex.split(names))),
}
"""Parameters that have a rule, the checks that take longest last."""
