"""The report of an experiment: results, wording, figures, page, files."""
