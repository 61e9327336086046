"""Plain data in files that anybody may have written: JSON and YAML that make values and nothing else, within bounds.

A few lines of YAML can stand for billions of values (an alias of a list of aliases), and brackets can lie in brackets deeper than Python
goes. Both are a ValueError here, before anything has grown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

LARGEST = 2**20  # bytes of a configuration
MOST = 100_000  # values of one, each alias counted as what it stands for


def plain_yaml(text: str, loader: Any = yaml.SafeLoader) -> Any:
    """What YAML says.

    Args:
        text: of a configuration.
        loader: a loader of PyYAML's that makes plain values.

    Raises:
        ValueError: it is no YAML, more than a configuration, or has a key twice.
    """
    if len(text) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MB, which is no configuration")
    try:
        values = _count(yaml.compose(text, Loader=loader), {}, ())
        if values > MOST:
            raise ValueError(f"aliases that stand for more than {MOST:,} values, which is no configuration")
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_yaml(path: Path) -> Any:
    """What a file of YAML says.

    Raises:
        OSError: it cannot be read.
        ValueError: as `plain_yaml`, or it is no text.
    """
    with path.open("rb") as file:
        return plain_yaml(file.read(LARGEST + 1).decode())


def plain_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _count(node: yaml.Node | None, counted: dict[int, int], above: tuple[int, ...]) -> int:
    """The values that a node stands for; of one that lies in itself, more than there may be."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        return MOST + 1
    if id(node) not in counted:
        keys = [pair[0].value for pair in node.value if isinstance(pair[0], yaml.ScalarNode)] if isinstance(node, yaml.MappingNode) else []
        if len(set(keys)) < len(keys):
            twice = next(key for place, key in enumerate(keys) if key in keys[:place])
            raise ValueError(f"{twice} twice in one mapping, of which YAML would forget the first")
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count(part, counted, (*above, id(node))) for part in inner)
    return counted[id(node)]
