"""Trainers for knowledge distillation, one file per method: ``python -m python_trainers.METHOD``."""
