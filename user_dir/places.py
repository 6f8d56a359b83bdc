"""Where a model is asked for, and what is there instead: `from_pretrained` opens folders of this machine alone.

fairseq's own would fetch addresses, and unpack an archive wherever its members say, in place of the archive.
"""

import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip", ".7z")


def model_folder(place: Any) -> Path:
    """The folder that `place` names.

    Raises:
        ValueError: an address, an archive, a file, or nothing at all.
    """
    folder = _path(place, "model_name_or_path")
    if folder.is_dir():
        return folder
    if folder.is_file() and not is_archive(folder):
        raise ValueError(
            f"{place}: is a file, but from_pretrained takes a folder; for a checkpoint give its folder, its name and "
            f"the folder of its dictionaries: from_pretrained({str(folder.parent)!r}, {folder.name!r}, "
            f'data_name_or_path="…")'
        )
    _existing(folder, place)
    if folder.is_symlink():
        raise ValueError(f"{place}: is a link to {os.readlink(folder)}, which is not there; give a folder")
    raise ValueError(f"{place}: is neither a folder nor a file; give the folder of a released model, or of checkpoints")


def data_folder(place: Any, model: Path) -> Path:
    """The folder of the dictionaries: beside the model where `place` begins with a period, as fairseq has it.

    Raises:
        ValueError: as `model_folder`.
    """
    given = _path("." if place is None else place, "data_name_or_path")
    folder = Path(os.path.abspath(model / given)) if str(place or ".").startswith(".") else given
    if not folder.is_dir():
        if folder.is_file() and not is_archive(folder):
            raise ValueError(f"data_name_or_path={place}: {folder} is a file; give the folder with its dict.*.txt")
        _existing(folder, f"data_name_or_path={place}")
    check_one_path(folder)
    return folder


def check_one_path(folder: Path) -> None:
    """
    Raises:
        ValueError: a folder of dictionaries that fairseq would take for two.
    """
    if os.pathsep in str(folder.resolve()):
        raise ValueError(f"{folder}: fairseq takes {os.pathsep!r} for the end of a path; move it to one without")


def check_checkpoints(folder: Path, checkpoint_file: Any) -> None:
    """The checkpoints must be there.

    Raises:
        ValueError: one is not; says what the folder holds.
    """
    if not isinstance(checkpoint_file, (str, os.PathLike)):
        raise TypeError(f"checkpoint_file must be the name of a file, not {checkpoint_file!r}")
    for name in str(os.fspath(checkpoint_file)).split(os.pathsep):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: no checkpoint {name!r} there; {contents(folder)}. from_pretrained takes the folder of a "
                f"released model, or a folder of checkpoints with checkpoint_file= and data_name_or_path="
            )


def check_dictionaries(folder: Path, asked: str) -> None:
    """There must be some dictionary; which, the checkpoint will say.

    Raises:
        ValueError: no dict.*.txt.
    """
    if not any(folder.glob("dict*.txt")):
        raise ValueError(
            f"{folder}: no dictionary (dict.*.txt) there, without which a checkpoint cannot be used; "
            f"{contents(folder)}. Give the folder that it was trained on, or its dictionaries alone, as "
            f"data_name_or_path (now {asked!r})"
        )


def contents(folder: Path) -> str:
    """What kind of folder it is, in words."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return "the folder is empty"
    checkpoints = [name for name in names if name.endswith(".pt")]
    if "config.json" in names and (kind := _model_type(folder / "config.json")):
        opener = "macaron.bert and transformers' Auto classes" if kind.startswith("macaron") else "transformers"
        return f"it is a Hugging Face model (model_type {kind}), which {opener} can open"
    if any(name.endswith((".idx", ".bin")) for name in names) and any(name.startswith("dict.") for name in names):
        return "it holds binarised data, which is for data_name_or_path"
    if (folder / "release" / "text.json").is_file():
        return f"it is the folder of a run; its released model is {folder / 'release'}"
    if checkpoints:
        return f"its checkpoints are {_few(checkpoints)}"
    return f"it holds {_few(names)}"


def _path(place: Any, argument: str) -> Path:
    if not isinstance(place, (str, os.PathLike)) or isinstance(place, bytes):
        raise TypeError(f"{argument} must be the path of a folder, not {place!r}")
    text = str(os.fspath(place))
    if not text or "\0" in text:
        raise ValueError(f"{argument} {text!r} is no path; give a folder")
    if "://" in text:
        raise ValueError(
            f"{argument} {text}: is an address, and nothing is fetched here; download it, unpack it with a safe tool "
            f"(`tar -xf` into a new folder), and give that folder"
        )
    return Path(text)


def _existing(path: Path, asked: Any) -> None:
    if path.is_file():
        raise ValueError(
            f"{asked}: is an archive, which is not unpacked here; unpack it yourself with a safe tool (`tar -xf` or "
            f"`unzip`, into a new folder), and give that folder"
        )
    if not os.path.lexists(path):
        raise ValueError(
            f"{asked}: there is no such folder (looked for {os.path.abspath(path)}), and models are not downloaded by "
            f"name; give the folder of a released model, or of checkpoints"
        )


def is_archive(path: Path) -> bool:
    if path.suffix.lower() in _ARCHIVES:
        return True
    if path.suffix == ".pt":  # torch's own checkpoints are zip files
        return False
    try:
        return tarfile.is_tarfile(path) or zipfile.is_zipfile(path)
    except (OSError, EOFError):
        return False


def _model_type(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(found.get("model_type") or "unknown") if isinstance(found, dict) else ""


def _few(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
