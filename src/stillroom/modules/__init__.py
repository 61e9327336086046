"""Modules with parameters or state that methods share: projectors, regressors, memories."""
