"""Weights of trials by their content: each file is called by a digest of what is in it, so that none is half of another's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from torch import Tensor, nn

from stillroom.engine.run.stage import digest
from stillroom.engine.weights import load_weights, save_weights


class WeightStore:
    """A folder of weights, of this run or shared by several machines.

    What somebody is about to use must be read inside `locked`, in which nothing is thrown away.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process throws weights away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    def path(self, name: str) -> Path:
        """The file of a digest, there or not."""
        return self.folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return self.path(name).is_file()

    def put(self, weights: Mapping[str, Tensor]) -> str:
        """Writes weights, buffers too, whole or not at all; answers with their digest."""
        name = digest(weights)
        if not self.has(name):
            save_weights(dict(weights), self.path(name))
        return name

    def load(self, name: str, network: nn.Module) -> None:
        """Reads them into a network of the same architecture.

        Raises:
            InputError: the file is missing, or is of another architecture.
        """
        load_weights(network, self.path(name), argument="weights")

    def throw_away(self, names: Collection[str]) -> None:
        """Removes these, inside `locked`."""
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Digests of what is there."""
        return {path.stem for path in self.folder.glob("*.safetensors")}
