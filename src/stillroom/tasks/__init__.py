"""The kinds of task, one room each: data, models, metrics."""

import stillroom.engine  # noqa: F401 - before a room imports Lightning or torchmetrics: see `engine.light`
