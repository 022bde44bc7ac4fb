"""Neighborhood attention on tiles that read overlapping strips: plain PyTorch operations, memory linear in
tokens."""
