"""Study files: what is refused, where the message points, and the studies that come with the program."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import IMAGES, MODELS, POINTS, TEACHER, study_data, study_of

from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import (
    check_name,
    find_file,
    load_experiment,
    load_study,
    shipped_studies,
)

SHIPPED = sorted(shipped_studies().glob("*.yaml"))

ONLY_FRECHET = space.put(POINTS, {"evaluation.metrics": ["frechet"]})


def refusal(folder: Path, **changes: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study_data(**changes), sort_keys=False))
    with pytest.raises(UserError) as error:
        load_study(Document.load(path))
    message = str(error.value)
    assert message.startswith(f"{path}:"), "file and line come first"
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"search": {"model.etta": {"float": [1, 2]}}},
            "search.model.etta: the experiment has no 'model.etta'",
        ),
        ({"search": {"model.etta": {"float": [1, 2]}}}, "did you mean 'eta'?"),
        ({"search": {"modle.eta": {"float": [1, 2]}}}, "the experiment has no 'modle.eta'"),
        (
            {"search": {"model.eta": {"float": [-1, 9]}}},
            "the value -1.0 does not fit: input should be greater than 0",
        ),
        ({"search": {"model.loss": {"choice": ["vanilla", "wgan"]}}}, "the value wgan does not fit"),
        ({"search": {"model.eta": {"float": [1, 9], "when": {"model.los": "ipm"}}}}, "names 'model.los'"),
        (
            {"search": {"model.eta": {"float": [1, 9], "when": {"model.loss": []}}}},
            "neither a value nor a list",
        ),
        (
            {"search": {"model.eta": {"float": [1, 9], "when": {"model.loss": "wgan"}}}},
            "its condition model.loss: wgan does not fit: expected 'ipm', 'vanilla' or 'hinge', found 'wgan'",
        ),
        ({"search": {"model.loss": {"choice": ["ipm", "ipm"]}}}, "'ipm' stands here a second time"),
        ({"search": {"model.eta": {"float": [1, 9], "step": 1e-12}}}, "the step 1e-12 is too small"),
        ({"search": {"model.eta": {"float": [1, 2], "step": 3}}}, "the step 3.0 is greater than the range"),
        ({"search": {"model.sampling_steps": {"int": [1, 10**12]}}}, "the value 1000000000000 does not fit"),
        ({"start_from": [{"model.etta": 2.0}]}, "'model.etta' is not searched; did you mean 'model.eta'?"),
        ({"constraints": [{"metric": "nfe", "min": 2, "max": 1}]}, "the min 2 is above the max 1"),
        (
            {"experiment": space.put(POINTS, {"model": {}})},
            "experiment.model.name: the key is missing; valid:",
        ),
        ({"budget": {"trials": True}}, "budget.trials: expected a number, found true"),
        ({"budget": {"target": float("nan")}}, "budget.target: input should be a finite number, found nan"),
        (
            {"search": {"model.eta": {"float": [6, 9]}}},
            "the base experiment's model.eta 5.0 lies outside the search space",
        ),
        ({"search": {"model.eta": {"float": [9, 6]}}}, "the low end 9.0 is above the high end 6.0"),
        ({"search": {}}, "at least 1 item"),
        ({"objectives": [{"metric": "fid"}]}, "unknown metric 'fid'; valid: energy_distance, frechet"),
        (
            {"objectives": [{"metric": "frechet"}, {"metric": "fid"}]},
            "objectives.1.metric: unknown metric 'fid'",
        ),
        (
            {"objectives": [{"metric": "frechet"}, {"metric": "nfe"}], "scheduler": {"name": "asha"}},
            "scheduler 'asha' compares trials by one objective",
        ),
        (
            {"objectives": [{"metric": "frechet"}, {"metric": "nfe"}], "sampler": {"name": "cmaes"}},
            "sampler 'cmaes' has one objective",
        ),
        ({"objectives": [{"metric": "frechet", "mode": "max"}]}, "is the better the smaller: set mode: min"),
        ({"objectives": [{"metric": "frechet/nfe_3"}]}, "add 3 to evaluation.nfe [2]"),
        ({"objectives": [{"metric": "frechet/hypervolume", "mode": "max"}]}, "needs evaluation.reference"),
        ({"objectives": [{"metric": "fid/nfe_up_to_8"}]}, "unknown metric 'fid' in 'fid/nfe_up_to_8'"),
        (
            {"experiment": ONLY_FRECHET, "objectives": [{"metric": "energy_distance/nfe_2"}]},
            "objectives.0.metric: energy_distance is not measured\n"
            "help: set experiment.evaluation.metrics: [frechet, energy_distance]",
        ),
        (
            {"experiment": ONLY_FRECHET, "constraints": [{"metric": "modes_covered", "min": 1}]},
            "constraints.0.metric: modes_covered is not measured\nhelp: set experiment.evaluation.metrics: [",
        ),
        (
            {"experiment": space.put(POINTS, {"evaluation.metrics": ["frechet", "fid"]})},
            "evaluation.metrics: unknown metric 'fid'; valid: energy_distance, frechet",
        ),
        (
            {"experiment": {**POINTS, **IMAGES, "evaluation": {"samples": 9, "metrics": ["fid", "recall"]}}},
            "evaluation.samples is 9, but recall needs at least 10",
        ),
        ({"constraints": [{"metric": "nfe"}]}, "a constraint has a max, a min, or both"),
        ({"constraints": [{"metric": "weight", "max": 1}]}, "unknown metric 'weight'"),
        ({"constraints": [{"metric": "system/gpu_memory", "max": 1}]}, "trials have none (resources.gpu)"),
        (
            {"sampler": {"name": "brute_force"}},
            "model.eta: the range is continuous: add `step`",
        ),
        ({"sampler": {"name": "grid", "points": 400}}, "more than 100,000 combinations"),
        ({"start_from": ["paper"]}, "'paper': expected base, a .yaml file, or an MLflow run id"),
        ({"start_from": [{"model.eta": 99.0}]}, "the start point's model.eta 99.0 lies outside"),
        (
            {
                "scheduler": {"name": "pbt", "interval_steps": 4},
                "search": {"model.discriminator.width": {"int": [8, 16]}},
            },
            "it changes the networks' shapes",
        ),
        ({"resources": {"gpu": 1.5}}, "a trial trains on one GPU, or on a share of it\nhelp: set gpu to 1"),
        ({"resources": {"gpu": 2}}, "a trial trains on one GPU, or on a share of it\nhelp: set gpu to 1"),
        ({"resources": {"accelerator_type": "H100"}}, "for trials that ask for a GPU"),
        ({"name": "../x"}, "name: string should match pattern"),
        ({"name": "Default"}, "an experiment which MLflow makes itself"),
        ({"budget": {"trials": 0}}, "budget.trials: input should be greater than or equal to 1, found 0"),
        ({"scheduler": {"name": "ash"}}, "scheduler.name: unknown name 'ash'; did you mean 'asha'?"),
        ({"sampelr": {}}, "did you mean 'sampler'?"),
        (
            {"experiment": space.put(POINTS, {"model.discriminator": {"name": "dcgan"}})},
            "for points choose 'mlp'",
        ),
    ],
)
def test_what_makes_no_study_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, **changes)


def test_the_line_is_that_of_the_key(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, search={"model.loss": {"choice": ["ipm", "vanilla"]}, "model.eta": {"float": [9, 6]}}
    )
    lines = (tmp_path / "study.yaml").read_text().splitlines()
    line = int(message.split(":")[1])
    assert "model.eta" in lines[line - 1]


def test_without_start_points_the_base_may_lie_outside() -> None:
    assert study_of(search={"model.eta": {"float": [6, 9]}}, start_from=[]).search


def test_identity_is_what_makes_trials_comparable() -> None:
    base = study_of().identity
    assert study_of(budget={"trials": 99}, resources={"cpu": 2}, sampler={"name": "random"}).identity == base
    assert study_of(objectives=[{"metric": "sliced_wasserstein"}]).identity == base, "the default, in words"
    assert study_of(objectives=[{"metric": "frechet"}]).identity != base
    assert study_of(experiment=space.put(POINTS, {"seed": 1})).identity != base


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_studies_that_come_along_are_valid_and_found_by_name(path: Path) -> None:
    assert find_file(Path(path.name)).samefile(path)
    study = load_study(Document.load(path))
    assert study.name == path.stem
    listed = study.sampler.proposals(study.base, study.search)
    assert study.budget.trials >= 8 if listed is None else study.budget.trials == len(listed)


# Study -> steps, batch size, learning rates of flow and generator, first of betas (paper's runs).
RUNS = {
    "discr_flow": (200_000, 128, 2e-4, None, 0.5),
    "discr_flow_celeba": (200_000, 64, 2e-4, None, 0.5),
    "discr_flow_gaussians": (4_000, 128, 2e-4, None, 0.5),
    "gan": (10_000, 128, 2e-4, 2e-4, 0.5),
    "gan_celeba": (100_000, 64, 2e-4, 2e-4, 0.5),
    "gan_gaussians": (1_900, 128, 2e-4, 2e-4, 0.5),
    "edm": (500_000, 128, 2e-4, None, 0.9),
    "edm_celeba": (100_000, 64, 2e-4, None, 0.9),
    "edm_gaussians": (10_000, 128, 2e-4, None, 0.9),
    "score_gan": (100_000, 256, 1e-3, 2e-4, 0.9),
    "score_gan_celeba": (600_000, 32, 4e-4, 2e-4, 0.9),
    "score_gan_gaussians": (31_500, 128, 2e-4, 2e-4, 0.9),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_are_the_papers(name: str) -> None:
    experiment = load_study(Document.load(find_file(Path(f"{name}.yaml")))).experiment
    training, generator = experiment.training, experiment.training.generator_optimizer
    found = (
        training.steps,
        training.batch_size,
        training.optimizer.lr,
        generator and generator.lr,
        training.optimizer.betas[0],
    )
    assert found == RUNS[name]
    assert generator is None or generator.betas == training.optimizer.betas


def test_the_score_gans_follow_the_edms_of_their_data() -> None:
    for data in ("", "_celeba", "_gaussians"):
        score_gan, edm = (
            load_study(Document.load(find_file(Path(f"{model}{data}.yaml")))).experiment
            for model in ("score_gan", "edm")
        )
        assert score_gan.teacher == edm


def test_a_teachers_file_is_looked_up_and_its_errors_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "edm.yaml").write_text(yaml.safe_dump({**TEACHER, "seed": -1}))
    model = {**MODELS["score_gan"], "teacher": {"experiment": str(tmp_path / "edm.yaml")}}
    with pytest.raises(UserError, match=r"edm.yaml:\d+: seed: .*greater than or equal to 0"):
        load_experiment(Document("test", {**POINTS, "model": model}, {}))
    model["teacher"] = {"experiment": "no_such.yaml"}
    with pytest.raises(UserError, match=r"no_such.yaml: no such file"):
        load_experiment(Document("test", {**POINTS, "model": model}, {}))


def test_files_that_name_each_other_come_to_an_end(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    model = {**MODELS["score_gan"], "teacher": {"experiment": str(path)}}
    path.write_text(yaml.safe_dump(study_data(experiment={**POINTS, "model": model})))
    with pytest.raises(UserError, match=r"teacher.experiment: .*has a teacher itself: give an 'edm'"):
        load_study(Document.load(path))
    path.write_text(yaml.safe_dump(study_data(start_from=["base", str(path)])))
    study = load_study(Document.load(path))
    assert study.start_from[1] == space.found(study.base, study.search)


def test_a_range_ends_on_a_step() -> None:
    searched = study_of(search={"model.eta": {"float": [1.0, 9.3], "step": 0.5}}).search["model.eta"]
    assert searched.for_optuna.high == 9.0  # Optuna warns of ranges that do not


def test_a_teacher_is_not_searched_with_the_trials() -> None:
    search = {"model.teacher.experiment.training.steps": {"int": [5, 10]}}
    with pytest.raises(UserError, match="the teacher is shared by all trials"):
        study_of(experiment={**POINTS, "model": MODELS["score_gan"]}, search=search)


def test_an_experiment_is_taken_from_either_kind_of_file() -> None:
    study = load_experiment(Document("a", study_data(), {}))
    assert study == load_experiment(Document("b", dict(POINTS), {}))


@pytest.mark.parametrize(
    ("name", "help_line"),
    [
        ("../../x", "help: --name x"),
        ("/x", "help: --name x"),
        ("..", "help: --name mine"),
        ("", "help: --name mine"),
        ("Default", "help: --name default"),
        ("my study (1)", "help: --name my_study_1"),
        ("größe", "help: --name gr_e"),
        ("a\n", "help: --name a"),
        ("a" * 101, f"help: --name {'a' * 100}"),
    ],
)
def test_an_experiments_name_is_one_that_a_study_could_have(name: str, help_line: str) -> None:
    with pytest.raises(UserError) as refused:
        check_name(name)
    assert str(refused.value).endswith(help_line)
    assert check_name(help_line.removeprefix("help: --name ")), "what it proposes is taken"


def test_usual_names_are_taken() -> None:
    assert check_name("edm-cifar10_v1.2") == "edm-cifar10_v1.2"
