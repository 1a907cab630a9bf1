"""EDM as a particle model: its path, its NFE, and coarser grids."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from gpm_tune.models import EDMConfig, FreeParticleModel, ModelConfig, SamplingOptions
from gpm_tune.models.flows.score import DataScore, TrainingNoise
from gpm_tune.models.particle_model import NoiseLevels
from gpm_tune.sampling.grids import NoiseRange, RhoGrid
from gpm_tune.sampling.solvers.euler import EulerConfig
from gpm_tune.sampling.solvers.heun import HeunConfig
from gpm_tune.sampling.solvers.langevin import LangevinConfig


class PointMass(nn.Module):
    """The denoiser of data that are all at one point."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(x, 3.0) + 0 * sigma[:, None]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(steps: int = 8, **keys: object) -> FreeParticleModel:
    config = EDMConfig.model_validate({"name": "edm", "sampling_steps": steps, **keys})
    flow = DataScore(PointMass(), TrainingNoise())  # type: ignore[arg-type]
    schedule = NoiseLevels(config.sampling_noise, config.grid, config.analytic_first_step)
    return FreeParticleModel(flow, schedule, config.solver, steps, (2,))


def test_the_prior_has_the_width_of_the_highest_noise_level() -> None:
    edm = model(steps=1)
    x = edm._start(edm.noise(20_000, rng()))
    assert x.std().item() == pytest.approx(40.0, rel=0.02)


@pytest.mark.parametrize("solver", [EulerConfig(name="euler"), HeunConfig(name="heun")])
def test_paths_end_where_the_denoiser_points(solver: EulerConfig | HeunConfig) -> None:
    samples = model().sample(10, rng(), SamplingOptions(solver))[-1]
    torch.testing.assert_close(samples.x, torch.full((10, 2), 3.0))


def test_nfe_is_n_for_euler_and_2n_minus_1_for_heun() -> None:
    assert model(8).sample(10, rng())[-1].nfe == 15
    assert model(8, solver={"name": "euler"}).sample(10, rng())[-1].nfe == 8
    langevin = LangevinConfig(name="langevin", corrections=4)
    assert model(8).sample(10, rng(), SamplingOptions(langevin))[-1].nfe == 32


def test_a_lower_nfe_comes_from_a_coarser_grid_from_the_same_start() -> None:
    edm = model(16)
    found = edm.sample(20, rng(), SamplingOptions(nfe=(7, 12, 31, 99)))
    assert [s.nfe for s in found] == [7, 11, 31], "12 is met from below, 31 is the full cost, 99 beyond it"
    edm.steps = 4
    torch.testing.assert_close(found[0].x, edm.sample(20, rng())[-1].x)


def test_a_fixed_grid_is_stopped_early() -> None:
    """Figure 7a: the states after n of N steps, which still have the noise of their level."""
    edm = model(8, solver={"name": "euler"})
    found = edm.sample(4000, rng(), SamplingOptions(steps=8, nfe=(2, 5)))
    assert [s.nfe for s in found] == [2, 5, 8]
    grid = RhoGrid(name="rho").grid(8, NoiseRange()).points
    for nfe, x in found[:-1]:
        assert (x - 3.0).std().item() == pytest.approx(grid[nfe], rel=0.05)


def test_a_grid_that_ends_at_sigma_min_leaves_its_noise() -> None:
    keys = {"end": "sigma_min", "name": "rho"}
    edm = model(8, grid=keys, sampling_noise={"sigma_min": 0.5})
    (end,) = edm.sample(4000, rng())
    assert end.nfe == 16, "Heun's last step asks the field at sigma_min"
    assert (end.x - 3.0).std().item() == pytest.approx(0.5, rel=0.05)


def test_an_analytic_first_step_costs_nothing_and_is_nearly_exact() -> None:
    spared = model(8, solver={"name": "ipndm"}, analytic_first_step=True)
    plain = model(8, solver={"name": "ipndm"})
    assert [s.nfe for s in spared.sample(10, rng(), SamplingOptions(nfe=(4,)))] == [4, 7]
    assert (spared.longest_grid(4), plain.longest_grid(4)) == (5, 4)
    noise = plain.noise(10, rng())
    first, second = (list(edm.process(noise, rng()))[1].x for edm in (spared, plain))
    # From σ = 40 to 15, the mean of 3 moves particles by 3 (1 - 15/40), which a normal law does not know.
    torch.testing.assert_close(first + 3 * (1 - plain.grid().points[1] / 40), second, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("solver", ["euler", "heun", "ipndm", "unipc"])
def test_learned_grids_belong_to_solver_steps_and_weights(solver: str) -> None:
    edm = model(8, solver={"name": solver}, grid={"name": "learned"})
    grid = edm.grid()
    assert (grid.steps, grid.points[0], grid.points[-1]) == (8, 40, 0)
    assert edm.grid() is grid
    assert edm.grid(SamplingOptions(steps=4)).steps == 4
    before = edm.sample(10, rng())[-1]
    edm.weights_changed()
    assert edm.grid() is not grid
    assert torch.equal(edm.sample(10, rng())[-1].x, before.x), "found again from the same noise"
    assert before.nfe == edm.full_nfe(), "what is learned on costs no sample anything"


def test_the_dtype_and_device_of_samples_are_the_models() -> None:
    assert model().double().sample(3, rng())[-1].x.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_noise": {"sigma_min": 50.0}}, "sigma_min .50. must be below sigma_max .40."),
        ({"solver": {"name": "rk4"}}, "'euler', 'heun', 'ipndm'"),
        ({"solver": {"name": "heun", "stochastic": 1.0}}, "unknown key 'stochastic'"),
        ({"sampling_steps": 0}, "greater than or equal to 1"),
        (
            {"grid": {"name": "listed", "levels": [1.0, 0.999999]}},
            "levels too close to each other, 1 and 0.99",
        ),
        ({"grid": {"name": "learned"}, "solver": {"name": "langevin"}}, "'langevin' does"),
        (
            {"grid": {"name": "learned"}, "solver": {"name": "euler", "stochastic": 0.5}},
            "solvers that draw no noise",
        ),
        ({"denoiser": {"network": {"name": "dcgan"}}}, "'dcgan'"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EDMConfig.model_validate({"name": "edm", **changes})


def test_unknown_kernels_are_refused() -> None:
    from gpm_tune.models import KernelFlowConfig

    functional = {"name": "mmd", "kernel": {"name": "laplace"}}
    with pytest.raises(ValidationError, match="'gaussian', 'energy'"):
        KernelFlowConfig.model_validate({"name": "kernel_flow", "functionals": [functional]})


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("discr_flow", {"eta": 1e300}),
        ("discr_flow", {"entropy": 1e300}),
        ("discr_flow", {"prior": {"std": 1e300}}),
        ("discr_flow", {"prior": {"std": 1e-300}}),
        ("discr_flow", {"prior": {"mean": -1e300}}),
        ("discr_flow", {"gradient_penalty": {"weight": 1e300}}),
        ("edm", {"denoiser": {"sigma_data": 1e-300}}),
        ("edm", {"solver": {"name": "heun", "s_noise": 1e300}}),
        ("kernel_flow", {"functionals": [{"name": "entropy", "bandwidth": 1e-300}]}),
        ("kernel_flow", {"functionals": [{"name": "mmd", "weight": 1e300}]}),
        ("score_gan", {"teacher": {"run": "x"}, "beta": 1e300}),
    ],
)
def test_values_that_single_precision_cannot_compute_with_are_refused(
    model: str, changes: dict[str, object]
) -> None:
    with pytest.raises(ValidationError, match=r"(less|greater) than or equal to (-?1000000|0.000001)"):
        TypeAdapter(ModelConfig).validate_python({"name": model, **changes})
