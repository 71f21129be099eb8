"""`python -m enigma.stages.beside PROFILE STAGE RESULTS`: make pieces of a stage beside the run that started this process."""

import importlib
import sys

from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import jobs


def main(profile: str, stage: str, root: str) -> None:
    found = load_profile(profile)
    with jobs.ends_with_starter():
        importlib.import_module(f"enigma.stages.{stage}").measure(found, Results(found, root).store)


if __name__ == "__main__":
    main(*sys.argv[1:])
