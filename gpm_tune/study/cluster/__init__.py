"""The machines that a study runs on: this one, Ray's nodes, and clusters reached through SSH."""
