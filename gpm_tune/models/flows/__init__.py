"""Flows: one file per row of the taxonomy (Table 1)."""
