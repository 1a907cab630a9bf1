"""Flows in closed form: gradient flows of functionals of the particles (Table 2), and Stein's (17)(18)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import MAX_MAGNITUDE, MIN_MAGNITUDE, Config
from gpm_tune.models.flow import Flow, FlowInputs
from gpm_tune.models.flows.adversarial import input_gradient
from gpm_tune.plugins import Extensible


class GaussianKernel(Config):
    """k(x, y) = exp(-‖x - y‖² / (2 bandwidth²))."""

    name: Literal["gaussian"]
    bandwidth: float = Field(
        1.0,
        ge=MIN_MAGNITUDE,
        le=MAX_MAGNITUDE,
        description="Standard deviation of the kernel, in data units.",
    )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix k(x, y). x: (B, D), y: (M, D) -> (B, M)."""
        return self.log(x, y).exp()

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Its logarithm."""
        return -_distances(x, y).square() / (2 * self.bandwidth**2)


class EnergyKernel(Config):
    """k(x, y) = -‖x - y‖, whose squared MMD is the energy distance."""

    name: Literal["energy"]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix k(x, y). x: (B, D), y: (M, D) -> (B, M)."""
        return -_distances(x, y)


Kernel = Annotated[GaussianKernel | EnergyKernel, Field(discriminator="name")]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The matrix-product form would lose the digits of points that are close.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def log_density(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Logarithm of the kernel density estimate of samples y (M, D) at x (B, D): (B,)."""
    dimensions = x.shape[1]
    constant = math.log(len(y)) + dimensions * math.log(bandwidth * math.sqrt(2 * math.pi))
    kernel = GaussianKernel(name="gaussian", bandwidth=bandwidth)
    return kernel.log(x, y).logsumexp(1) - constant


class Functional(Config):
    """A functional F of the particles' distribution ρ; its flow descends it (2)(3)."""

    weight: float = Field(
        1.0, ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, description="Factor of the functional in a sum of several."
    )

    @abstractmethod
    def first_variation(self, x: Tensor, rho: Tensor, data: Tensor) -> Tensor:
        """∂F(ρ)/∂ρ at x (B, D), given samples of ρ and of the data (M, D): (B,)."""

    def direction(self, x: Tensor, data: Tensor) -> Tensor:
        """-∇_W F(ρ) at particles x (B, D), which are themselves the samples of ρ (3)."""
        rho = x.detach()
        return -input_gradient(lambda y: self.first_variation(y, rho, data), x)


class MMD(Functional):
    """Half the squared maximum mean discrepancy: E_ρ k(x, ·) - E_data k(x, ·)."""

    paper: ClassVar[str] = "section 2.1, Table 2"

    name: Literal["mmd"]
    kernel: Kernel = Field(EnergyKernel(name="energy"), description="The kernel k(x, y).")

    def first_variation(self, x: Tensor, rho: Tensor, data: Tensor) -> Tensor:
        return self.kernel(x, rho).mean(1) - self.kernel(x, data).mean(1)


class Entropy(Functional):
    """∫ ρ log ρ (the negative entropy): log ρ, by a kernel density estimate."""

    paper: ClassVar[str] = "section 2.1, Table 2"

    name: Literal["entropy"]
    bandwidth: float = Field(
        0.3,
        ge=MIN_MAGNITUDE,
        le=MAX_MAGNITUDE,
        description="Bandwidth of the density estimate, in data units.",
    )

    def first_variation(self, x: Tensor, rho: Tensor, data: Tensor) -> Tensor:
        del data
        return log_density(x, rho, self.bandwidth)


class FDivergence(Functional):
    """∫ f(ρ/p) dp: f'(ρ/p), by kernel density estimates; `forward_kl` is KL(ρ‖p)."""

    paper: ClassVar[str] = "section 2.1, Table 2"

    name: Literal["f_divergence"]
    f: Literal["forward_kl", "reverse_kl", "chi2", "jensen_shannon", "hellinger"] = Field(
        "forward_kl", description="Which divergence; `forward_kl` is KL(ρ‖p)."
    )
    bandwidth: float = Field(
        0.3,
        ge=MIN_MAGNITUDE,
        le=MAX_MAGNITUDE,
        description="Bandwidth of the density estimates, in data units.",
    )

    def first_variation(self, x: Tensor, rho: Tensor, data: Tensor) -> Tensor:
        log_ratio = log_density(x, rho, self.bandwidth) - log_density(x, data, self.bandwidth)
        return F_PRIMES[self.f](log_ratio)


# f'(r) up to a constant, as a function of log r.
F_PRIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "forward_kl": lambda log_r: log_r,  # f(r) = r log r
    "reverse_kl": lambda log_r: -(-log_r).exp(),  # f(r) = -log r
    "chi2": lambda log_r: 2 * log_r.exp(),  # f(r) = (r - 1)²
    "jensen_shannon": torch.nn.functional.logsigmoid,  # f(r) = r log r - (r + 1) log((r + 1)/2)
    "hellinger": lambda log_r: -(-log_r / 2).exp(),  # f(r) = (√r - 1)²
}


class Stein(Config):
    """Stein variational gradient descent, with the score of the data's density estimate."""

    paper: ClassVar[str] = "section 3.3, (17)"

    name: Literal["stein"]
    weight: float = Field(
        1.0, ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, description="Factor of the direction in a sum of several."
    )
    kernel: GaussianKernel = Field(GaussianKernel(name="gaussian"), description="The kernel k(x, y).")
    bandwidth: float = Field(
        0.3,
        ge=MIN_MAGNITUDE,
        le=MAX_MAGNITUDE,
        description="Bandwidth of the data's density estimate, in data units.",
    )

    def direction(self, x: Tensor, data: Tensor) -> Tensor:
        """φ(x) = E_{y~ρ}[k(x, y) ∇log p(y) + ∇_y k(x, y)] at particles x (B, D) of ρ."""
        score = input_gradient(lambda y: log_density(y, data, self.bandwidth), x)
        return stein_direction(x, score, self.kernel)


def stein_direction(x: Tensor, score: Tensor, kernel: GaussianKernel) -> Tensor:
    """φ at particles x (B, D), given ∇log p at each of them (B, D) (18)."""
    # ∇_y k(x, y) = -∇_x k(x, y): by differences, so that equal particles do not repel each other.
    repulsion = -input_gradient(lambda particles: kernel(particles, x).sum(1), x)
    return (kernel(x, x) @ score + repulsion) / len(x)


AnyFunctional = Annotated[MMD | Entropy | FDivergence | Stein, Extensible("gpm_tune.flows")]


class KernelDirection(nn.Module):
    """The weighted sum of the functionals' directions: what a flow without network evaluates."""

    data: Tensor

    def __init__(self, functionals: tuple[AnyFunctional, ...], data: Tensor) -> None:
        super().__init__()
        self.functionals = functionals
        self.register_buffer("data", data)

    def forward(self, x: Tensor) -> Tensor:  # (B, *shape) -> (B, *shape)
        flat, data = x.flatten(1), self.data.flatten(1)
        total = torch.zeros_like(flat)
        # Nearly equal numbers are subtracted here: 8 bits would not do.
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            for functional in self.functionals:
                total = total + functional.weight * functional.direction(flat, data)
        return total.view_as(x)


class KernelFlow(Flow):
    """The particles' distribution descends functionals, by samples of the data and of itself alone."""

    role = "kernel"
    interacts = True

    def __init__(
        self, functionals: tuple[AnyFunctional, ...], shape: tuple[int, ...], samples: int, inputs: FlowInputs
    ) -> None:
        """samples: of the data, kept with the flow; zeros without any, to be loaded later."""
        super().__init__()
        data = torch.zeros(samples, *shape) if inputs.samples is None else inputs.samples[:samples]
        self.network = KernelDirection(functionals, data.clone())

    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """-∇_W F(ρ)(x), where the particles x are the samples of ρ."""
        del t, rng
        direction: Tensor = self.network(x.detach())
        return direction
