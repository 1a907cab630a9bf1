"""What a study's driver costs with up to 256 trials at a time: `python -m benchmarks.scaling`."""
