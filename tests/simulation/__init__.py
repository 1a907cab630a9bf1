"""Simulations of processes in simulated time, deterministic, by a seed."""
