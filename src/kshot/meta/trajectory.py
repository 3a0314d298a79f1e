"""Where an inner loop came by, kept out of the way until it is walked backwards."""

from __future__ import annotations

import tempfile
from typing import IO

import torch
from torch import Tensor

from kshot.models.learner import Params

_SMALL = 1 << 22  # bytes of a step that are not worth a file


class Trajectory:
    """A stack of parameters by name.

    What is large goes to a temporary file on the disk (from a GPU: to the host's memory), so that the memory of a backward
    pass does not grow with the number of steps. Where the disk is full it stays in memory.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor | tuple[torch.Size, torch.dtype]]] = []
        self._homes: list[torch.device] = []
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def push(self, params: Params) -> None:
        """Put the parameters of a step on the stack."""
        home = next(iter(params.values())).device if params else torch.device("cpu")
        size = sum(value.numel() * value.element_size() for value in params.values())
        self._homes.append(home)
        if size < _SMALL:
            self._steps.append(dict(params))
        elif home.type != "cpu":
            self._steps.append({name: value.to("cpu") for name, value in params.items()})
        else:
            self._steps.append({name: self._written(value) for name, value in params.items()})

    def pop(self) -> Params:
        """Take the newest step from the stack."""
        home, step = self._homes.pop(), self._steps.pop()
        return {name: self._restored(step[name]).to(home) for name in reversed(step)}

    def _written(self, value: Tensor) -> Tensor | tuple[torch.Size, torch.dtype]:
        if self._file is None:
            self._file = tempfile.TemporaryFile()
        begin = self._file.tell()
        try:
            self._file.write(_as_bytes(value.contiguous()))
        except OSError:
            self._file.seek(begin)
            return value
        return value.shape, value.dtype

    def _restored(self, entry: Tensor | tuple[torch.Size, torch.dtype]) -> Tensor:
        if isinstance(entry, Tensor):
            return entry
        assert self._file is not None
        value = torch.empty(entry[0], dtype=entry[1])
        begin = self._file.seek(self._file.tell() - value.numel() * value.element_size())
        self._file.readinto(_as_bytes(value))  # type: ignore[attr-defined]
        self._file.seek(begin)
        return value


def _as_bytes(value: Tensor) -> memoryview:
    return value.detach().reshape(-1).view(torch.uint8).numpy().data
