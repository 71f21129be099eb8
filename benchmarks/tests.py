"""`python -m benchmarks.tests`: how many minutes the tests take, written to benchmarks/tests.json for the README."""

import subprocess
import time
from pathlib import Path

from enigma.record.files import atomic_write_json
from enigma.record.provenance import made_now


def main() -> None:
    started = time.perf_counter()
    subprocess.run(["make", "test"], cwd=Path(__file__).resolve().parents[1], check=True)
    minutes = round((time.perf_counter() - started) / 60, 1)
    atomic_write_json(
        Path(__file__).with_suffix(".json"), {"minutes": minutes, "machine": made_now()["machine"]}
    )


if __name__ == "__main__":
    main()
