"""Arithmetic on tensors that twins, ops and functions share."""
