"""Triton and Gluon kernels, one file per kernel family. Importing a module of this package needs Triton."""
