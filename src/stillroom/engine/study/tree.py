"""Monte Carlo tree search over a tree of choices, level by level; tensors, trainings and Optuna have no part in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Leaf = tuple[int, ...]  # a complete choice: the option's place at every level

EXPLORE = 0.3  # of rewards in (0, 1)


@dataclass
class Node:
    """A place in the tree that was reached.

    Attributes:
        children: by the option's place in the next level.
        visits: how often a path went through it, those included that are on their way.
        value: the sum of the rewards of those that came back.
    """

    children: dict[int, Node] = field(default_factory=dict)
    visits: int = 0
    value: float = 0.0


class Tree:
    """Upper confidence bounds applied to trees (UCT), over levels of options.

    A path is dispatched (`dispatch`, `follow`), which counts as a visit without reward at once, so that others keep away from it meanwhile
    (virtual loss); its reward comes later (`reward`). One after the other that is plain UCT.

    Args:
        levels: the number of options at each level.
        explore: the constant c of the bound q/n + c sqrt(ln n_parent / n).
        allowed: whether a beginning of a path may be gone on with; one that may has at least one leaf below it.
    """

    def __init__(self, levels: Sequence[int], explore: float = EXPLORE, allowed: Callable[[Leaf], bool] = lambda path: True) -> None:
        self.levels, self.explore, self.allowed = tuple(levels), explore, allowed
        self.root = Node()

    def dispatch(self, drawn: Callable[[int, int], int]) -> tuple[Leaf, int]:
        """Selects a path, makes the first node that is missing (lowest option first), and completes it at random.

        Args:
            drawn: ``drawn(level, options)``: a number from 0 and below `options` for a level below the new node.

        Returns:
            The leaf, and how many of its levels are nodes of the tree now.
        """
        path: Leaf = ()
        node = self.root
        while len(path) < len(self.levels):
            options = self.options(path)
            missing = next((option for option in options if option not in node.children), None)
            if missing is not None:
                path = (*path, missing)
                break
            option = max(options, key=lambda option: self._bound(node, node.children[option]))  # the first of equal ones
            node, path = node.children[option], (*path, option)
        depth = len(path)
        while len(path) < len(self.levels):
            options = self.options(path)
            path = (*path, options[drawn(len(path), len(options))])
        self.follow(path, depth)
        return path, depth

    def follow(self, leaf: Leaf, depth: int | None = None, times: int = 1, reward: float = 0.0) -> int:
        """Counts a visit of a path that was chosen: by `dispatch`, or by somebody else.

        Args:
            leaf: where it leads.
            depth: how many of its levels are nodes of the tree then; by default one more than are now.
            times: how often it was visited.
            reward: the sum of what came back already.

        Returns:
            The depth.
        """
        if depth is None:
            depth, node = 0, self.root
            while depth < len(leaf) and leaf[depth] in node.children:
                depth, node = depth + 1, node.children[leaf[depth]]
            depth = min(depth + 1, len(leaf))
        node = self.root
        node.visits += times
        node.value += reward
        for option in leaf[:depth]:
            below = node.children.get(option)
            if below is None:
                below = node.children[option] = Node()
            node = below
            node.visits += times
            node.value += reward
        return depth

    def reward(self, leaf: Leaf, depth: int, reward: float) -> None:
        """Adds the reward of a path that was dispatched."""
        node = self.root
        node.value += reward
        for option in leaf[:depth]:
            node = node.children[option]
            node.value += reward

    def options(self, path: Leaf) -> list[int]:
        """Which options of the next level go on from here."""
        return [option for option in range(self.levels[len(path)]) if self.allowed((*path, option))]

    def leaves(self, path: Leaf = ()) -> Iterator[Leaf]:
        """All leaves below a path, in the order of their options."""
        if len(path) == len(self.levels):
            yield path
            return
        for option in self.options(path):
            yield from self.leaves((*path, option))

    def _bound(self, parent: Node, child: Node) -> float:
        return child.value / child.visits + self.explore * math.sqrt(math.log(parent.visits) / child.visits)
