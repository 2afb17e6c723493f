"""Ray of other versions, each in an environment of its own under CI's cache: `python versions.py 2.44.1` makes one.

`versions.txt` says what is installed for each.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("versions.txt")
WANTED = {version: what.split() for version, what in (line.split(maxsplit=1) for line in LIST.read_text().splitlines())}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayguard-ci" / "rays"


def install(version):
    """The directory of this Ray's commands; installed if it is not there yet."""
    place = CACHE / version
    stamp, wanted = place / "installed", "\n".join(WANTED[version])
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *WANTED[version]], check=True)
        stamp.write_text(wanted)
    return place / "bin"


def newest():
    """The commands of the newest Ray there is, in an environment that is made anew for it."""
    place = CACHE / "newest"
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "ray[default,serve]"], check=True)
    return place / "bin"


def package(bin):
    """Where the `ray` package of these commands lies."""
    return next((bin.parent / "lib").glob("python3.*/site-packages/ray"))


if __name__ == "__main__":
    for version in sys.argv[1:] or WANTED:
        print(install(version))
