"""The studies that come with the program have the paper's hyperparameters, key by key (appendices A.3, D)."""

from __future__ import annotations

from typing import Any

import pytest
from examples import shipped_experiment

from gpm_tune.study.definition.specification import load_study, open_file, shipped_studies
from gpm_tune.training.description import build_empty, parameters

Values = dict[str, Any]

DEFAULT = {"name": "default"}


def normal(gain: float) -> Values:
    return {"name": "normal", "gain": gain}


def orthogonal(gain: float) -> Values:
    return {"name": "orthogonal", "gain": gain}


def adam(lr: float, beta1: float) -> Values:
    return {"lr": lr, "betas": [beta1, 0.999]}


def mlp(init: Values, activation: str = "leaky_relu") -> Values:
    """The network of all models of the Gaussians, "MLP 512×4"."""
    return {"name": "mlp", "width": 512, "depth": 4, "activation": activation, "init": init}


def convolutional(name: str, width: int, norm: str, init: Values, **more: Any) -> Values:
    return {"name": name, "width": width, "norm": norm, "init": init, **more}


def unet(channels: int, blocks: int, dropout: float) -> Values:
    return {
        "name": "unet",
        "channels": channels,
        "channel_mult": [1, 2, 2],
        "blocks": blocks,
        "dropout": dropout,
        "attention_resolutions": [16],
    }


FOURIER = {"name": "fourier", "size": 128, "scale": 16.0}
POSITIONAL = {"name": "positional", "size": 256}
GAUSSIANS = {"name": "gaussians", "modes": 5, "radius": 3.0, "std": 0.5, "samples": 500_000}
MNIST = {"name": "mnist"}
CELEBA = {"name": "celeba"}


def training(steps: int, batch_size: int, flow: Values, generator: Values | None = None) -> Values:
    return {
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": flow,
        "generator_optimizer": generator,
    }


def discr_flow(loss: str, steps: int, eta: float, penalty: Values | None, network: Values) -> Values:
    return {
        "name": "discr_flow",
        "loss": loss,
        "sampling_steps": steps,
        "solver": {"name": "euler"},
        "eta": eta,
        "gradient_penalty": penalty,
        "time_embedding": FOURIER,
        "discriminator": network,
    }


def gan(loss: str, discriminator: Values, generator: Values) -> Values:
    return {
        "name": "gan",
        "loss": loss,
        "discriminator_steps": 1,
        "gradient_penalty": None,
        "latent": 128,
        "discriminator": discriminator,
        "generator": generator,
    }


def denoiser(embedding: Values, network: Values) -> Values:
    return {"noise_embedding": embedding, "sigma_data": 0.5, "network": network}


def edm(part: Values, steps: int) -> Values:
    return {
        "name": "edm",
        "denoiser": part,
        "training_noise": {"mean": -1.2, "std": 1.2},
        "sampling_noise": {"sigma_min": 0.002, "sigma_max": 40.0, "rho": 7.0},
        "sampling_steps": steps,
        "solver": {"name": "heun"},
    }


def score_gan(k: int, alpha: float, noise: tuple[float, float], part: Values, generator: Values) -> Values:
    low, high = noise
    return {
        "name": "score_gan",
        "score_steps": k,
        "alpha": alpha,
        "beta": 1.0,
        "noise": {"sigma_min": low, "sigma_max": high, "rho": 3.0},
        "generated": part,
        "latent": 128,
        "generator": generator,
    }


def mnist_flow(steps: int, eta: float) -> Values:
    network = convolutional("dcgan", 64, "none", orthogonal(1.41), first_bias=True)
    return {
        "data": MNIST,
        "model": discr_flow("ipm", steps, eta, {"weight": 0.04, "center": 0.0}, network),
        "training": training(200_000, 128, adam(2e-4, 0.5)),
    }


def mnist_score_gan(alpha: float, lr: float = 1e-3) -> Values:
    generated = denoiser(POSITIONAL, unet(64, 2, 0.13))
    generator = convolutional("dcgan", 64, "batch", normal(0.02))
    return {
        "data": MNIST,
        "model": score_gan(1, alpha, (0.32, 40.0), generated, generator),
        "training": training(100_000, 256, adam(lr, 0.9), adam(2e-4, 0.9)),
        "teacher": PAPER["edm"],
    }


PAPER: dict[str, Values] = {
    "discr_flow": mnist_flow(64, 2.0),
    "discr_flow_128": mnist_flow(128, 1.0),
    "discr_flow_celeba": {
        "data": CELEBA,
        "model": discr_flow(
            "ipm",
            25,
            2.0,
            {"weight": 0.05, "center": 0.0},
            convolutional(
                "resnet",
                64,
                "none",
                normal(0.02),
                first_bias=True,
                activation="leaky_relu",
                activated_shortcut=True,
                attention_after=[],
            ),
        ),
        "training": training(200_000, 64, adam(2e-4, 0.5)),
    },
    "discr_flow_gaussians": {
        "data": GAUSSIANS,
        "model": discr_flow("vanilla", 56, 20.0, None, mlp(normal(0.02))),
        "training": training(4_000, 128, adam(2e-4, 0.5)),
    },
    "gan": {
        "data": MNIST,
        "model": gan(
            "vanilla",
            convolutional("dcgan", 64, "batch", normal(0.02), first_bias=False),
            convolutional("dcgan", 64, "batch", normal(0.02)),
        ),
        "training": training(10_000, 128, adam(2e-4, 0.5), adam(2e-4, 0.5)),
    },
    "gan_celeba": {
        "data": CELEBA,
        "model": gan(
            "hinge",
            convolutional("fastgan", 32, "batch", normal(0.02), first_bias=False),
            convolutional("fastgan", 32, "batch", normal(0.02)),
        ),
        "training": training(100_000, 64, adam(2e-4, 0.5), adam(2e-4, 0.5)),
    },
    "gan_gaussians": {
        "data": GAUSSIANS,
        "model": gan("vanilla", mlp(normal(0.02)), mlp(normal(0.02))),
        "training": training(1_900, 128, adam(2e-4, 0.5), adam(2e-4, 0.5)),
    },
    "edm": {
        "data": MNIST,
        "model": edm(denoiser(POSITIONAL, unet(16, 1, 0.13)), 32),
        "training": training(500_000, 128, adam(2e-4, 0.9)),
    },
    "edm_celeba": {
        "data": CELEBA,
        "model": edm(denoiser(POSITIONAL, unet(128, 2, 0.1)), 25),
        "training": training(100_000, 64, adam(2e-4, 0.9)),
    },
    "edm_gaussians": {
        "data": GAUSSIANS,
        "model": edm(denoiser(FOURIER, mlp(DEFAULT)), 28),
        "training": training(10_000, 128, adam(2e-4, 0.9)),
    },
}
PAPER |= {
    "score_gan": mnist_score_gan(alpha=1.0),
    "score_gan_alpha_2": mnist_score_gan(alpha=2.0),
    "score_gan_k": mnist_score_gan(alpha=1.0, lr=2e-4),  # equal learning rates (appendix C.4)
    "score_gan_celeba": {
        "data": CELEBA,
        "model": score_gan(
            4,
            1.0,
            (0.32, 40.0),
            denoiser(POSITIONAL, unet(128, 2, 0.0)),
            convolutional("fastgan", 32, "batch", orthogonal(1.41)),
        ),
        "training": training(600_000, 32, adam(4e-4, 0.9), adam(2e-4, 0.9)),
        "teacher": PAPER["edm_celeba"],
    },
    "score_gan_gaussians": {
        "data": GAUSSIANS,
        "model": score_gan(
            10, 1.0, (0.1, 10.0), denoiser(FOURIER, mlp(DEFAULT)), mlp(DEFAULT, activation="relu")
        ),
        "training": training(31_500, 128, adam(2e-4, 0.9), adam(2e-4, 0.9)),
        "teacher": PAPER["edm_gaussians"],
    },
}
NOT_OF_THE_PAPER = {"quickstart", "kernel_flow_gaussians", "mmd_generator_gaussians"}
# Keys that the paper has no number for, and the value under which they change nothing.
NEUTRAL: Values = {
    "analytic_first_step": False,
    "data.root": None,
    "dropout": 0.0,  # of MLPs
    "ema": None,
    "entropy": 0.0,
    "gradient_penalty.points": "interpolation",
    "grid": {"name": "rho", "end": "zero"},
    "ignore_time": False,
    "precision": "auto",
    "prior": {"mean": 0.0, "std": 1.0},
    "score_dropout": False,  # departs from the authors' code
    "solver.s_churn": 0.0,
    "solver.s_max": None,
    "solver.s_min": 0.0,
    "solver.s_noise": 1.0,
    "stochastic": 0.0,
}
PARAMETERS: dict[str, dict[str, int]] = {
    "discr_flow_gaussians": {"discriminator": 855_553},
    "discr_flow": {"discriminator": 3_355_010},
    "discr_flow_128": {"discriminator": 3_355_010},
    "discr_flow_celeba": {"discriminator": 22_700_865},
    "gan_gaussians": {"generator": 855_042, "discriminator": 790_017},
    "gan": {"generator": 3_803_584, "discriminator": 2_763_072},
    "edm_gaussians": {"denoiser": 856_066},
    "edm": {"denoiser": 332_481},
    "score_gan": {"generated_denoiser": 7_036_737, "teacher": 332_481},
}


def differences(paper: Any, ours: Any, path: str = "") -> list[str]:
    """Paths at which a shipped tree differs from the paper's, neutral keys left out."""
    if any(path.endswith(f".{key}") and ours == value for key, value in NEUTRAL.items()):
        return []
    if not (isinstance(paper, dict) and isinstance(ours, dict)):
        return [] if paper == ours else [f"{path}: {ours}, not {paper}"]
    keys = sorted({*paper, *ours})
    return [line for k in keys for line in differences(paper.get(k, "nothing"), ours.get(k), f"{path}.{k}")]


def compared(experiment: Any) -> Values:
    tree: Values = experiment.model_dump(mode="json")
    model = {key: value for key, value in tree["model"].items() if key != "teacher"}
    found = {"data": tree["data"], "model": model, "training": tree["training"]}
    return found | ({"teacher": compared(experiment.teacher)} if experiment.teacher else {})


def test_every_shipped_study_is_of_the_paper_or_known_not_to_be() -> None:
    shipped = {file.stem for file in shipped_studies().glob("*.yaml")}
    assert shipped == PAPER.keys() | NOT_OF_THE_PAPER


@pytest.mark.parametrize("name", PAPER)
def test_the_base_experiment_has_the_papers_hyperparameters(name: str) -> None:
    assert differences(PAPER[name], compared(shipped_experiment(f"{name}.yaml"))) == []


@pytest.mark.parametrize("name", PAPER)
def test_the_first_trial_has_them_too(name: str) -> None:
    """Either it is the base, or a grid over what the paper varied besides."""
    study = load_study(open_file(shipped_studies() / f"{name}.yaml"))
    assert study.start_from == ["base"] or study.sampler.name == "grid"


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_papers_numbers_of_parameters(name: str) -> None:
    model, teacher = build_empty(shipped_experiment(f"{name}.yaml"))
    networks = {model.flow.role: model.flow.network, "teacher": teacher}
    networks["generator"] = getattr(model, "generator", None)
    assert {role: parameters(networks[role]) for role in PARAMETERS[name]} == PARAMETERS[name]
