"""gpm_tune: hyperparameter studies of generative particle models."""

__version__ = "0.1.0"
