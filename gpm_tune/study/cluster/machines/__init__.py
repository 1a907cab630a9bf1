"""Machines of a cloud: the next type where one is refused, and none that outlives its cluster."""
