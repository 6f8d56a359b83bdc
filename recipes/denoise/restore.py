"""python -m recipes.denoise restore: pictures of one's own, in tiles, so that their size is no limit."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from macaron.dynamics.horizon import GO_ON, STOP
from macaron.vision import DnCNN

from ..common.device import check_threads, device_of
from ..common.errors import RecipeError
from ..common.main import module
from . import images, models
from .images import Array

TILE = 512  # pixels a side that a tile adds to the result
SUFFIX = ".restored.png"
NAME = module("denoise")
Work = Callable[[int, int], None]  # is told tiles done, and of how many


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=f"python -m {module('denoise')} restore",
        description="Restores pictures by a model that recipes.denoise has trained, and says how many steps its "
        "policy took. PNG and JPEG of any mode and size; what is written is PNG, with the depth, transparency and "
        "colour profile of the input, turned upright. Nothing is overwritten. A picture that cannot be done is named, "
        "the rest is done, and the status is 1.",
    )
    p.add_argument("model", type=Path, metavar="MODEL", help="model.pt, or the folder of a run; a baseline, such as "
                   "dncnn.pt, too")  # fmt: skip
    p.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    p.add_argument("--out", type=Path, default=Path("restored"), metavar="DIR", help=f"gets NAME{SUFFIX} (default: "
                   "restored)")  # fmt: skip
    p.add_argument("--colour", choices=("luma", "channels"), default="luma", help="luma: brightness is restored and "
                   "colour left as it is; channels: red, green and blue, each by itself (default: luma)")  # fmt: skip
    p.add_argument("--steps", type=int, metavar="N", help="this number of steps, instead of the policy's")
    p.add_argument("--tile", type=int, default=TILE, metavar="N", help="pixels a side of what is computed at once; "
                   f"less takes less memory, the result is the same (default: {TILE})")  # fmt: skip
    p.add_argument("--skip", action="store_true", help="leave out those whose result is there already")
    p.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: as torch finds)")
    p.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default: cpu)")
    return p


def command(args: argparse.Namespace) -> int:
    if args.tile < 8 or args.tile % 8:
        raise RecipeError(f"--tile {args.tile}: must be a multiple of 8, and at least 8")
    check_threads(args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = device_of(args.device)
    model, kind = models.load(args.model)
    if args.steps is not None:
        most = model.most if isinstance(model, models.Durr) else 1
        if not 1 <= args.steps <= most:
            raise RecipeError(f"--steps {args.steps}: must lie between 1 and {most}, which the model was made for")
    if args.out.exists() and not args.out.is_dir():
        raise RecipeError(f"--out {args.out}: is a file; give a folder")
    args.out.mkdir(parents=True, exist_ok=True)
    models.prepared(model, device)
    levels = " ".join(f"{level:g}" for level in kind["levels"]) if isinstance(kind.get("levels"), list) else "?"
    print(f"model     {kind['kind']}, {kind.get('task', '?')}, trained at {levels}", flush=True)
    failed, written = 0, set[Path]()
    for path in args.images:
        target = args.out / (path.stem + SUFFIX)
        try:
            if target in written:
                raise RecipeError(f"{path}: {target} is the result of another picture of this call; give --out DIR "
                                  f"for the one and DIR2 for the other")  # fmt: skip
            if os.path.lexists(target):
                if args.skip:
                    print(f"{path}: {target} is there already, left out", flush=True)
                    continue
                raise RecipeError(f"{path}: {target} exists; give another --out, remove it, or --skip to leave out "
                                  f"what is done")  # fmt: skip
            print(one(model, path, target, args.colour, args.steps, args.tile, device), flush=True)
            written.add(target)
        except RecipeError as error:
            failed += 1
            print(f"{NAME}: {error}", file=sys.stderr)
        except (OSError, MemoryError) as error:
            failed += 1
            print(f"{NAME}: {path}: not restored ({error or 'no memory'})", file=sys.stderr)
    if failed:
        print(f"{NAME}: {failed} of {len(args.images)} pictures not restored", file=sys.stderr)
    return 1 if failed else 0


def one(
    model: models.Model, path: Path, target: Path, colour: str, steps: int | None, tile: int, device: torch.device
) -> str:
    """Restore a picture; what there is to say of it.

    Raises:
        RecipeError: it cannot be read, or its result exists by now.
    """
    started = time.time()
    picture = images.read(path)
    height, width = picture.planes.shape[1:]
    with tqdm(desc=path.name, unit="tile", leave=False, disable=not os.isatty(2)) as bar:

        def work(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def restored(plane: Array) -> tuple[Array, int]:
            bar.reset()
            return restore_plane(model, plane, steps, tile, device, work)

        if len(picture.planes) == 3 and colour == "luma":
            before = images.luma(picture.planes)
            after, taken = restored(before)
            picture.planes += after - before  # colour differences to the luma stay as they are
            took = [taken]
        else:
            results = [restored(plane) for plane in picture.planes]
            picture.planes, took = np.stack([plane for plane, _ in results]), [n for _, n in results]
    write_new(target, images.encoded(picture))
    words = ", ".join([f"{width} × {height}", f"{', '.join(map(str, took))} step{'s' * (took != [1])}", *picture.notes])
    return f"{path}: {words}, {time.time() - started:.1f} s → {target}"


def write_new(path: Path, content: bytes) -> None:
    """All or nothing, and nothing where a file is by now."""
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        try:
            os.link(partial, path)  # unlike a renaming, never replaces
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            write_without_links(path, content)
    except FileExistsError:
        raise RecipeError(f"{path}: was made by another in the meantime; nothing is overwritten") from None
    finally:
        partial.unlink(missing_ok=True)


def write_without_links(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:  # a full disk, say
            path.unlink()
            raise


# --- tiles -----------------------------------------------------------------------------------------------------


def tiles(height: int, width: int, tile: int, margin: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """(what is read, what of it is the tile's own) of tiles that begin at multiples of `tile`, with `margin` around."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            outer, inner = [], []
            for begin, side in ((top, height), (left, width)):
                first = max(0, begin - margin)
                outer.append(slice(first, min(side, begin + tile + margin)))
                inner.append(slice(begin - first, min(side, begin + tile) - first))
            yield (outer[0], outer[1]), (inner[0], inner[1])


def margin_of(radius: int) -> int:
    """The least multiple of 8 that is not below: at these the strides of unit and policy begin alike."""
    return -(-radius // 8) * 8


@torch.no_grad()
def restore_plane(
    model: models.Model,
    plane: Array,
    steps: int | None = None,
    tile: int = TILE,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    work: Work = lambda done, total: None,
) -> tuple[Array, int]:
    """The plane, (H, W) in 0 … 1, restored, and the number of steps that were taken.

    A step of the whole plane is computed tile by tile, with so much around each as it depends on, before the next
    step begins; the policy sees the mean of its features over all tiles. So the result is that of the whole but for
    rounding.

    Args:
        steps: instead of the policy's.
        tile: pixels a side, a multiple of 8.
    """
    height, width = plane.shape
    # A unit reflects at an odd side, which takes 2 pixels.
    y = np.pad(plane, ((0, max(0, 2 - height)), (0, max(0, 2 - width))), mode="edge")
    whole = Whole(y, tile, device)
    if isinstance(model, DnCNN):
        x = whole.mapped(model, len(model.layers), [y], work)
        return x[:height, :width], 1
    x, n = y, 0
    most = model.steps if model.policy is None else model.most
    memory = None
    while n < (steps or most):
        if steps is None and model.policy is not None:
            q, memory = model.policy.decide(whole.mean(model.policy, x), memory)
            if bool(q[0, STOP] >= q[0, GO_ON]):
                break
        x = x + whole.mapped(model.unit, model.unit.radius, [x, y], work)
        if not np.isfinite(x).all():
            raise RecipeError(f"step {n + 1} overflows; give fewer --steps, or another model")
        n += 1
    return x[:height, :width], n


class Whole:
    """A plane, worked on in tiles."""

    def __init__(self, plane: Array, tile: int, device: torch.device) -> None:
        self.shape, self.tile, self.device = plane.shape, tile, device

    def tensor(self, part: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(part))[None, None].to(self.device)

    def mapped(self, network: nn.Module, radius: int, planes: list[Array], work: Work) -> Array:
        """network(*planes)."""
        out = np.empty(self.shape, np.float32)
        parts = list(tiles(*self.shape, self.tile, margin_of(radius)))
        for done, (outer, inner) in enumerate(parts):
            result = network(*(self.tensor(plane[outer]) for plane in planes))[0, 0, inner[0], inner[1]]
            own = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))
            out[own] = result.cpu().numpy()
            work(done + 1, len(parts))
        return out

    def mean(self, policy: nn.Module, plane: Array) -> Tensor:
        """Of the policy's features, (1, features)."""
        total: Tensor | None = None
        count = 0
        stride, radius = policy.stride, policy.radius
        assert isinstance(stride, int) and isinstance(radius, int)
        for outer, inner in tiles(*self.shape, self.tile, margin_of(radius)):
            features = policy.features(self.tensor(plane[outer]))  # type: ignore[operator]
            rows, columns = (slice(side.start // stride, -(-side.stop // stride)) for side in inner)
            own = features[..., rows, columns].double()
            total = own.sum((2, 3)) if total is None else total + own.sum((2, 3))
            count += own.shape[2] * own.shape[3]
        assert total is not None
        return (total / count).float()
