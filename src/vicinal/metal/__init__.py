"""Metal kernels and the numbers they need, shared by PyTorch and MLX. Imports no framework."""
