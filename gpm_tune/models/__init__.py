"""Particle models: a flow, with or without a generator."""

from gpm_tune.models.discr_flow import DiscrFlow, DiscrFlowConfig

ModelConfig = DiscrFlowConfig

__all__ = ["DiscrFlow", "DiscrFlowConfig", "ModelConfig"]
