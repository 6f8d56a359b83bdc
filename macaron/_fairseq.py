"""Being found by fairseq: registration, in whatever order fairseq and this package are imported."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def register_fairseq() -> None:
    """Register models, criterions and optimisers with fairseq.

    For scripts that import `macaron` before fairseq: fairseq's own `--user-dir macaron` skips the
    registration of a package that is loaded already. Calling it again changes nothing.

    Raises:
        ImportError: if fairseq, or the part of this package that needs it, is not installed.
    """
    try:
        utils: Any = import_module("fairseq.utils")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"macaron.register_fairseq: no module named {error.name!r}; install fairseq with what its text "
            f"tasks need: pip install 'macaron-net[fairseq]', or see the README for a machine without a GPU"
        ) from error
    # What fairseq would take `--user-dir macaron` for is herewith imported: this package beside its own (looked for
    # with `..` in its path), or a clone called macaron in the working folder. It would say "not globally unique".
    beside_fairseq = os.path.join(os.path.dirname(utils.__file__), "..", "macaron")
    imported: set[str] = vars(utils.import_user_module).setdefault("memo", set())
    imported.add(beside_fairseq)
    here = os.path.abspath("macaron")
    if not os.path.exists(os.path.join(here, "__init__.py")):  # that would be a package of somebody else's
        imported.add(here)
    if not _opened_as_folder():
        try:
            import_module("macaron.user_dir")
        except ModuleNotFoundError as error:
            if error.name != "macaron.user_dir":
                raise
            raise ImportError(
                "macaron.register_fairseq: no module named 'macaron.user_dir'; it comes with an installation, "
                "so run `pip install -e .` in the clone instead of putting the clone on the path"
            ) from error


def _opened_as_folder() -> bool:
    """Whether fairseq has loaded, or is loading, the folder itself (`--user-dir user_dir`)."""
    opened = {os.path.realpath(folder) for folder in getattr(sys.modules.get("user_dir"), "__path__", ())}
    ours = find_spec("macaron.user_dir")
    return ours is not None and not opened.isdisjoint(map(os.path.realpath, ours.submodule_search_locations or ()))


def register_if_fairseq_is_loaded() -> None:
    """For when fairseq was imported before this package."""
    spec = getattr(sys.modules.get("fairseq"), "__spec__", None)
    if spec is None or getattr(spec, "_initializing", False):
        return
    # A clone that is not installed has no macaron.user_dir; `--user-dir user_dir` registers by itself.
    if find_spec("macaron.user_dir") is not None:
        register_fairseq()
