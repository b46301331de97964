"""What a wheel installs: `python tests/installed.py dist/*.whl`. Not a test module: it needs a built wheel.

Nothing but `mixerzoo` at the top level, `py.typed` in every package, and all three packages import
from the installed files alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("kernels", "mixers", "equivalence")

# An editable install in this environment must not answer in the wheel's place.
IMPORT = """
import sys
sys.meta_path = [f for f in sys.meta_path if "ditable" not in repr(f)]
sys.path_hooks = [h for h in sys.path_hooks if "ditable" not in repr(h)]
sys.path = [sys.argv[1]] + [p for p in sys.path if p and "editable" not in p]
import mixerzoo.kernels, mixerzoo.mixers, mixerzoo.equivalence, mixerzoo.equivalence.cli
for package in (mixerzoo.kernels, mixerzoo.mixers, mixerzoo.equivalence):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
mixerzoo.equivalence.cli.main(["list", "--json"])
"""


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z, tempfile.TemporaryDirectory() as folder:
        names = z.namelist()
        top = {name.split("/")[0] for name in names}
        extra = {t for t in top if t != "mixerzoo" and not t.endswith(".dist-info")}
        assert not extra, f"{wheel.name} puts {sorted(extra)} at the top level; accepted: mixerzoo alone"
        for package in PACKAGES:
            assert f"mixerzoo/{package}/py.typed" in names, f"mixerzoo/{package}/py.typed is missing"
        kinds = ("*.py", "*.v", "_CoqProject", "*.cpp")
        sources = {p.as_posix() for package in PACKAGES for k in kinds for p in Path(package).rglob(k)}
        missing = {s for s in sources if f"mixerzoo/{s}" not in names}
        assert not missing, f"{wheel.name} lacks {sorted(missing)}"
        z.extractall(folder)
        command = [sys.executable, "-c", IMPORT, folder]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    print(f"{wheel.name}: {len(names)} files, all below mixerzoo; imports from there")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
