"""The build backend: setuptools, and in an editable install a folder where fairseq looks for `--user-dir macaron`.

fairseq searches beside its own folder, that is in site-packages, and not along Python's import path. A wheel lies
there; an editable install is a rule of the import system, in no folder. So it gets one with a single file, which loads
the package from the clone. pip knows the file, and takes it away again.
"""

import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the other hooks)
from wheel.wheelfile import WheelFile

PACKAGE = Path(__file__).resolve().parent / "macaron"

DOOR = '''"""The package lies in the clone that it was installed from; here fairseq finds `--user-dir macaron`."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location

_init = {init}
if not os.path.isfile(_init):
    raise ImportError(f"macaron was installed from {{_init}} (pip install -e), which is gone: install it again")
_spec = spec_from_file_location(__name__, _init)
sys.modules[__name__] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[__name__])
'''


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    path = Path(wheel_directory, name)
    with tempfile.TemporaryDirectory() as folder:
        with WheelFile(path) as wheel:
            wheel.extractall(folder)
        door = Path(folder, "macaron", "__init__.py")
        door.parent.mkdir()
        door.write_text(DOOR.format(init=ascii(str(PACKAGE / "__init__.py"))), encoding="utf-8")
        with WheelFile(path, "w") as wheel:  # with a new list of its files
            wheel.write_files(folder)
    return name
