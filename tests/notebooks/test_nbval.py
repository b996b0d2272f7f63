"""nbval executes every notebook with its own defaults and compares the outputs that are kept."""

from __future__ import annotations

import shutil
import subprocess
import sys


def test_outputs_are_what_the_notebooks_show(notebook_paths, tmp_path):
    copies = tmp_path / "notebooks"
    copies.mkdir()
    for path in notebook_paths:
        shutil.copy(path, copies)
    names = [path.name for path in notebook_paths]  # in order: each reads what the one before it wrote
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=600"]
    command += ["-p", "no:cacheprovider", "-q", "--rootdir", str(copies), *names]
    done = subprocess.run(command, cwd=copies, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # What they leave lies beside them, so that git sees no change.
    assert sorted(path.name for path in copies.glob("*.*")) == names
    assert (tmp_path / "workspace" / "results.csv").exists()
