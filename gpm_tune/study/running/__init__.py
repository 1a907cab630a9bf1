"""Running studies and experiments: trials under Ray Tune, their processes, what a person sees."""
