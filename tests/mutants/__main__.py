"""Run as `python tests/mutants`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a package, and without this folder or the root on the path (see tests/conftest.py).
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mutants.command import main

    sys.exit(main())
