"""The kinds of task, one room each: data, models, metrics."""
