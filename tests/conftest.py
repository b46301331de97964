"""Keeps this folder's parent off the import path.

`python -m pytest` puts the current folder there, where `kernels/` would pass for the distribution of
that name, which transformers looks for. The tests import `mixerzoo.kernels`, as installed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
