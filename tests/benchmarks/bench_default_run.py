"""How long `bindkit run` takes on the embedded default, and how much memory.

    python tests/benchmarks/bench_default_run.py

Prints wall seconds in all and of each notebook, and the peak resident memory of the largest process. Measured by hand,
never a gate: the promise is 5 minutes and 3 GB on two cores.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        command = [sys.executable, "-m", "bindkit.cli", "run", "--workspace", str(Path(directory) / "run")]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        for name, taken in re.findall(r"\] (\d\d_\w+): done in (\d+) s", run.stdout + run.stderr):
            print(f"{name:<24}{taken:>6} s")
        print(f"{'in all':<24}{seconds:>6.0f} s")
    # ru_maxrss counts kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{'largest process':<24}{peak / 2**30:>6.2f} GiB at its peak")


if __name__ == "__main__":
    main()
