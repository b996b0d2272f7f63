"""The golden gate: what a small seeded run, the console and the public names give, before and after code has moved.

    python tests/golden/gate.py record gate.json     # before
    python tests/golden/gate.py compare gate.json    # after: lists what is no longer the same, exit status 1

Both run on one machine: the last bits of a fit depend on its processor. Seconds are left out, nothing else.
"""

import argparse
import contextlib
import hashlib
import inspect
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file

import bindkit as bk
from bindkit.cli import main as console

RUN = [
    *("run", "--scenes", "synthetic:n=24,seed=3,size=80x80", "--layers", "1,3"),
    *("--backbone", "bindkit/scenes-motion", "random-init:bindkit/scenes-mae,seed=0"),
    *("--probes", "dot_product", "linear", "quadratic", "--tasks", "pairwise", "pointwise_class"),
]  # fmt: skip
COMMANDS = ("run", "cache", "verify", "compare", "export", "pretrain", "check")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(one) for key, one in value.items() if "second" not in key}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def of_file(path: Path) -> str:
    """Digest of what a file says, seconds left out."""
    if path.suffix == ".json":
        return digest(json.dumps(without_seconds(json.loads(path.read_text())), sort_keys=True).encode())
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return digest(table[[name for name in table if "second" not in name]].to_csv().encode())
    if path.suffix == ".safetensors" and "probes" in path.parts:
        with safe_open(path, "numpy") as file:
            said = {key: without_seconds(json.loads(text)) for key, text in (file.metadata() or {}).items()}
        tensors = {name: digest(tensor.tobytes()) for name, tensor in sorted(load_file(path).items())}
        return digest(json.dumps([said, tensors], sort_keys=True).encode())
    return digest(path.read_bytes())


def said_by(arguments: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        console(arguments)
    return out.getvalue()


def of_name(public: object) -> dict[str, str]:
    """What a public name takes, and so its methods."""
    if inspect.isclass(public) and not issubclass(public, Exception):
        methods = {name: one for name, one in inspect.getmembers(public, callable) if not name.startswith("_")}
        return {"": signature(public)} | {f".{name}": signature(one) for name, one in methods.items()}
    return {"": signature(public) if inspect.isfunction(public) else type(public).__name__}


def signature(public: object) -> str:
    try:
        return str(inspect.signature(public))
    except ValueError:
        return "none"


def taken() -> dict[str, str]:
    workspace = Path(tempfile.gettempdir()) / "bindkit-golden-gate"
    shutil.rmtree(workspace, ignore_errors=True)
    if console([*RUN, "--workspace", str(workspace)]) != 0:
        raise SystemExit("the run failed")
    kept = ("cache/**/*", "probes/**/*", "*.csv", "viewer.html", "figures/*.csv", "figures/*.html", "index/*")
    files = sorted({file for pattern in kept for file in workspace.glob(pattern) if file.is_file()})
    found = {f"file {file.relative_to(workspace).as_posix()}": of_file(file) for file in files}
    found |= {f"help {name}": digest(said_by([*name.split(), "--help"]).encode()) for name in ("", *COMMANDS)}
    for name in sorted(bk.__all__):
        found |= {f"name bk.{name}{part}": taken for part, taken in of_name(getattr(bk, name)).items()}
    shutil.rmtree(workspace)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    found = taken()
    if options.what == "record":
        options.file.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} things are recorded")
        return 0
    before = json.loads(options.file.read_text())
    changed = [name for name in sorted(before | found) if before.get(name) != found.get(name)]
    print("\n".join(changed) or f"all {len(found)} are the same")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
