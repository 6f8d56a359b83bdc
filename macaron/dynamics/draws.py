"""Random numbers that are drawn once and used several times."""

from types import TracebackType

import torch


class SameDraws:
    """A context that may be entered several times: torch draws the same random numbers in it each time.

    For the stages of a solver and the passes of a batch under attack: with other dropout masks each would follow
    another equation. Afterwards the generators stand where they stood after the last time.

    Args:
        device: whose generator is meant, beside the CPU's.
        active: whether anything is drawn at all.
    """

    def __init__(self, device: torch.device, active: bool = True) -> None:
        self._active = active
        self._accelerator = device if device.type == "cuda" else None
        self._states: list[torch.Tensor] | None = None

    def __enter__(self) -> None:
        if not self._active:
            return
        if self._states is None:
            self._states = [torch.get_rng_state()]
            if self._accelerator is not None:
                self._states.append(torch.cuda.get_rng_state(self._accelerator))
            return
        torch.set_rng_state(self._states[0])
        if self._accelerator is not None:
            torch.cuda.set_rng_state(self._states[1], self._accelerator)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
