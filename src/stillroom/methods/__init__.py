"""The methods, one room per paper."""

import stillroom.engine  # noqa: F401 - before a room imports Lightning or torchmetrics: see `engine.light`
