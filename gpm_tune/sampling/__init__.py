"""Solvers: each takes a vector field, particles and a grid, and knows nothing of networks or models.

A field is dx/dτ along a grid of τ, which is the time of a flow or its noise level σ. A solver yields
the particles after each step of the grid.
"""
