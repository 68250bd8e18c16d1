"""What twins, ops and functions have in common: arithmetic on tensors that is no loss by itself."""
