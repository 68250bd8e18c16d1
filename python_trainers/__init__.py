"""Trainers for knowledge distillation, one file per published method: ``python -m python_trainers.METHOD``."""
