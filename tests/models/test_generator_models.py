"""Models with a generator: one generator step for all of them."""

import pytest
import torch
from torch import Tensor, nn

from gpm_tune.models import GANConfig, GeneratorModel, KernelFlowConfig, SamplingOptions
from gpm_tune.models.flow import FlowInputs
from gpm_tune.models.flows.adversarial import LOSSES, LossName
from gpm_tune.models.flows.score import Denoiser, ScoreDifference
from gpm_tune.sampling.grids import NoiseRange

MLP = {"name": "mlp", "width": 32, "depth": 2, "init": {"name": "default"}}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gan(**changes: object) -> GeneratorModel:
    torch.manual_seed(0)
    keys = {"name": "gan", "discriminator": MLP, "generator": MLP, "latent": 4, **changes}
    return GANConfig.model_validate(keys).build((2,)).double()


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("name", LOSSES)
def test_the_generic_step_has_the_gradient_of_the_usual_gan_loss(name: LossName) -> None:
    """E c(f(g(z))) (16) against -⟨g, ∇h.detach()⟩ (25), to float64's precision."""
    model = gan(loss=name)
    generic = gradients(model.generator_loss(16, rng())["generator"], model.generator)
    fake = model.generator(model.noise(16, rng()))
    usual = gradients(LOSSES[name].particle(model.flow.network(fake, None)).sum() / 16, model.generator)
    for one, other in zip(generic, usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_the_same_holds_for_images_with_batch_statistics() -> None:
    torch.manual_seed(0)
    dcgan = {"name": "dcgan", "width": 4, "norm": "batch"}
    keys = {"name": "gan", "latent": 4, "discriminator": dcgan, "generator": dcgan}
    model = GANConfig.model_validate(keys).build((1, 16, 16)).double()
    generic = gradients(model.generator_loss(6, rng())["generator"], model.generator)
    fake = model.generator(model.noise(6, rng()))
    usual = gradients(LOSSES["vanilla"].particle(model.flow.network(fake, None)).mean(), model.generator)
    for one, other in zip(generic, usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_a_step_leaves_the_flows_network_without_gradients() -> None:
    model = gan()
    model.generator_loss(8, rng())["generator"].backward()
    assert all(p.grad is None and p.requires_grad for p in model.flow.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())


def test_a_fit_leaves_the_generator_without_gradients() -> None:
    model = gan(gradient_penalty={"weight": 1.0})
    terms = model.fit(torch.randn(8, 2).double(), rng())
    assert set(terms) == {"fake", "real", "penalty"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.flow.parameters())


def test_the_nfe_of_a_generator_is_one() -> None:
    (samples,) = gan().sample(30, rng(), SamplingOptions(steps=3, nfe=(4, 8)))
    assert samples.nfe == 1
    assert samples.x.shape == (30, 2)


class Affine(nn.Module):
    """g(z) = A z + b."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.4, 0.1], [0.0, 0.5]]))
            self.layer.bias.copy_(torch.tensor([-1.0, 1.0]))

    def forward(self, z: Tensor) -> Tensor:
        output: Tensor = self.layer(z)
        return output

    @property
    def covariance(self) -> Tensor:
        return self.layer.weight @ self.layer.weight.T


def optimal_denoiser(mean: Tensor, covariance: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """E[data | data + σn = x] for data ~ N(mean, covariance)."""
    noise = sigma.square()[:, None, None] * torch.eye(2)
    gain = covariance @ torch.linalg.inv(covariance + noise)
    return mean + torch.einsum("bij,bj->bi", gain, x - mean)


class OfGenerator(nn.Module):
    """The denoiser that a perfectly fitted D_gen would be."""

    def __init__(self, generator: Affine) -> None:
        super().__init__()
        self.generator = (generator,)  # not a sub-module

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        (generator,) = self.generator
        return optimal_denoiser(generator.layer.bias, generator.covariance, x, sigma)


def test_with_exact_scores_a_generator_reaches_mean_and_covariance_of_the_data() -> None:
    """Algorithm 1 with analytic denoisers in place of D_data and D_gen."""
    mean, covariance = torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.5], [0.5, 0.8]])
    generator = Affine()
    flow = ScoreDifference(
        OfGenerator(generator),  # type: ignore[arg-type]
        lambda x, sigma: optimal_denoiser(mean, covariance, x, sigma),
        NoiseRange(sigma_min=0.1, sigma_max=5.0, rho=3.0),
        alpha=1.0,
        beta=1.0,
        stochastic=0.0,
    )
    model = GeneratorModel(flow, generator, 2, 1, (2,))
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.02)
    stream = rng()
    for step in range(800):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 800)
        optimizer.zero_grad()
        model.generator_loss(256, stream)["generator"].backward()
        optimizer.step()
    torch.testing.assert_close(generator.layer.bias.detach(), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(generator.covariance.detach(), covariance, atol=0.06, rtol=0)


def test_a_combination_that_the_paper_does_not_train_needs_no_code_of_its_own() -> None:
    """A generator that follows the MMD's flow finds the data."""
    torch.manual_seed(0)
    data = torch.tensor([2.0, -1.0]) + 0.4 * torch.randn(500, 2, generator=rng())
    keys = {"name": "kernel_flow", "data_samples": 500, "latent": 4, "generator": MLP}
    model = KernelFlowConfig.model_validate(keys).build((2,), FlowInputs(samples=data))
    assert isinstance(model, GeneratorModel)
    assert model.fit(data[:8], rng()) == {}
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=3e-3)
    stream = rng()
    for _ in range(200):
        optimizer.zero_grad()
        model.generator_loss(64, stream)["generator"].backward()
        optimizer.step()
    samples = model.sample(500, stream)[0].x
    torch.testing.assert_close(samples.mean(0), data.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(samples.std(0), data.std(0), atol=0.15, rtol=0)


def test_a_score_gan_without_its_teacher_still_generates() -> None:
    flow = ScoreDifference(
        Denoiser(nn.Identity(), nn.Identity()), None, NoiseRange(), alpha=1.0, beta=1.0, stochastic=0.0
    )
    model = GeneratorModel(flow, Affine(), 2, 1, (2,))
    assert model.sample(5, rng())[0].x.shape == (5, 2)
    with pytest.raises(AssertionError, match="without its teacher"):
        model.generator_loss(5, rng())
