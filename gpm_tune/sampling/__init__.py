"""Solvers: each takes a vector field and particles, and knows nothing of networks or models."""
