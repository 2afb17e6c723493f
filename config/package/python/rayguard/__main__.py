"""`python -m rayguard`: runs the binary that was installed with this package, in place of this process."""

import os
import sys
import sysconfig


def find():
    """The binary of this installation: of this environment, of the user, or beside a `pip install --target`."""
    schemes = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))]
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin")
    for directory in (*schemes, beside):
        path = os.path.join(directory, "rayguard")
        if os.path.isfile(path):
            return path
    sys.exit("rayguard: the binary is not where pip puts programs; reinstall with: pip install --force-reinstall rayguard")


if __name__ == "__main__":
    binary = find()
    os.execv(binary, [binary, *sys.argv[1:]])
