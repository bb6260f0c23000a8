"""Tuning inside a training: what changes while the weights do. It needs torch."""
