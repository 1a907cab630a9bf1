"""The training steps as one would first write them from the paper: the baseline of `train_step`.

The networks are the same. Particles of a Discriminator Flow are simulated to the last step before their
times are drawn (Algorithm 2), batches come from a DataLoader, optimisers are PyTorch's defaults, and
nothing is switched off, fused or tuned. What no reader of the paper would compute is not computed: scores
that a generator follows have no graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpm_tune.models import DiscrFlowConfig, EDMConfig, GANConfig, ScoreGANConfig
from gpm_tune.models.flows.adversarial import LOSSES, GradientPenalty
from gpm_tune.networks.layers import Dropout
from gpm_tune.networks.unet import Norm
from gpm_tune.training import Experiment
from gpm_tune.training.experiment import OptimizerConfig

SAMPLES = 10_000  # of noise, in place of the data


def straightforward(experiment: Experiment, device: str) -> Callable[[], None]:
    """A function that makes the next step of the experiment's model, a generator's included."""
    torch.manual_seed(experiment.seed)
    makers: dict[str, Callable[..., Callable[[], None]]] = {
        "gan": _gan,
        "edm": _edm,
        "score_gan": _score_gan,
        "discr_flow": _discr_flow,
    }
    batches = _batches(experiment, device)
    return makers[experiment.model.name](experiment, batches, torch.device(device))


def _batches(experiment: Experiment, device: str) -> Iterator[Tensor]:
    """Noise in the shape of the data, batch by batch, for ever."""
    samples = TensorDataset(torch.randn(SAMPLES, *experiment.data.shape))
    loader = DataLoader(samples, experiment.training.batch_size, shuffle=True, drop_last=True)
    for _ in itertools.count():
        for (batch,) in loader:
            yield batch.to(device)


def _plain(network: nn.Module, device: torch.device) -> Any:
    """A network on its device, with PyTorch's own dropout and group norm."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Dropout):
                setattr(parent, name, nn.Dropout(layer.p))
            if isinstance(layer, Norm):
                plain = nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps)
                plain.load_state_dict(layer.state_dict())
                setattr(parent, name, plain)
    return network.to(device)


def _adam(network: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=config.lr, betas=config.betas)


def _descend(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _gan(experiment: Experiment, batches: Iterator[Tensor], device: torch.device) -> Callable[[], None]:
    config, training = cast("GANConfig", experiment.model), experiment.training
    shape = experiment.data.shape
    f = _plain(config.discriminator.build_discriminator(shape, 0), device)
    g = _plain(config.generator.build_generator(config.latent, shape), device)
    of_f = _adam(f, training.optimizer)
    of_g = _adam(g, training.generator_optimizer or training.optimizer)
    steps = itertools.count(1)

    def step() -> None:
        x = next(batches)
        with torch.no_grad():
            fake = g(torch.randn(len(x), config.latent, device=device))
        _descend(of_f, LOSSES[config.loss].fake(f(fake)).mean() + LOSSES[config.loss].real(f(x)).mean())
        if next(steps) % config.discriminator_steps == 0:
            z = torch.randn(len(x), config.latent, device=device)
            _descend(of_g, LOSSES[config.loss].particle(f(g(z))).mean())

    return step


def _denoising(denoiser: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """Squared errors (B,)."""
    noised = x + sigma.view(-1, *[1] * (x.dim() - 1)) * torch.randn_like(x)
    errors: Tensor = (denoiser(noised, sigma) - x).square().flatten(1).sum(1)
    return errors


def _edm(experiment: Experiment, batches: Iterator[Tensor], device: torch.device) -> Callable[[], None]:
    config = cast("EDMConfig", experiment.model)
    denoiser = _plain(config.denoiser.build(experiment.data.shape), device)
    optimizer = _adam(denoiser, experiment.training.optimizer)
    noise = config.training_noise

    def step() -> None:
        x = next(batches)
        sigma = (noise.mean + noise.std * torch.randn(len(x), device=device)).exp()
        _descend(optimizer, (denoiser.weight(sigma) * _denoising(denoiser, x, sigma)).mean())

    return step


def _score_gan(experiment: Experiment, batches: Iterator[Tensor], device: torch.device) -> Callable[[], None]:
    config, training = cast("ScoreGANConfig", experiment.model), experiment.training
    shape = experiment.data.shape
    assert experiment.teacher is not None
    teacher = _plain(cast("EDMConfig", experiment.teacher.model).denoiser.build(shape), device).eval()
    generated = _plain(config.generated.build(shape), device)
    g = _plain(config.generator.build_generator(config.latent, shape), device)
    of_score = _adam(generated, training.optimizer)
    of_g = _adam(g, training.generator_optimizer or training.optimizer)
    steps = itertools.count(1)

    def step() -> None:
        n = len(next(batches))
        with torch.no_grad():
            x = g(torch.randn(n, config.latent, device=device))
        sigma = config.noise.at(torch.rand(n, device=device))
        _descend(of_score, _denoising(generated, x, sigma).mean())
        if next(steps) % config.score_steps == 0:
            x = g(torch.randn(n, config.latent, device=device))
            sigma = config.noise.at(torch.rand(n, device=device))
            s = sigma.view(-1, *[1] * (x.dim() - 1))
            with torch.no_grad():
                noised = x + s * torch.randn_like(x)
                generated.eval()
                data, own = ((d(noised, sigma) - noised) / s for d in (teacher, generated))
                generated.train()
            _descend(of_g, -(x * (config.alpha * data - config.beta * own)).flatten(1).sum(1).mean())

    return step


def _discr_flow(
    experiment: Experiment, batches: Iterator[Tensor], device: torch.device
) -> Callable[[], None]:
    config = cast("DiscrFlowConfig", experiment.model)
    shape, n = experiment.data.shape, config.sampling_steps
    assert config.gradient_penalty is None or config.gradient_penalty.points == "interpolation"
    f = _plain(config.discriminator.build_discriminator(shape, config.time_embedding.size), device)
    embedding = config.time_embedding.build().to(device)
    optimizer = _adam(f, experiment.training.optimizer)

    def simulate(x: Tensor) -> list[Tensor]:
        states = [x]
        for i in range(n):
            x = x.detach().requires_grad_()
            t = torch.full((len(x),), i / n, device=device)
            loss = LOSSES[config.loss].particle(f(x, embedding(t))).sum()
            x = (x - config.eta / n * torch.autograd.grad(loss, x)[0]).detach()
            states.append(x)
        return states

    def penalty(real: Tensor, fake: Tensor, t: Tensor, given: GradientPenalty) -> Any:
        alpha = torch.rand(len(real), device=device).view(-1, *[1] * len(shape))
        at = (alpha * real + (1 - alpha) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(f(at, embedding(t)).sum(), at, create_graph=True)
        return given.weight * (gradient.flatten(1).norm(dim=1) - given.center).square().mean()

    def step() -> None:
        real = next(batches)
        states = torch.stack(simulate(torch.randn(len(real), *shape, device=device)))
        k = torch.randint(n, (len(real),), device=device)
        fake, t = states[k, torch.arange(len(real), device=device)], k / n
        loss = (
            LOSSES[config.loss].fake(f(fake, embedding(t))).mean()
            + LOSSES[config.loss].real(f(real, embedding(t))).mean()
        )
        if config.gradient_penalty is not None:
            loss = loss + penalty(real, fake, t, config.gradient_penalty)
        _descend(optimizer, loss)

    return step
