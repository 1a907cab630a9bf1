"""Random studies, and the processes that run them in a simulated world: drivers, and their trials' processes.

What runs is the program's own: `run_study` with trial manager, controller, publisher and views, the adapters
to Ray, the trainable with its training, and leases. In place of Ray there is a loop that does what Tune does
with searcher, scheduler and trainable: a result that is the last one, or whose trial is to be stopped, goes
to the searcher; so does the end of a process, as an error. A process takes one trial after another.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import optuna._convert_positional_args as optuna_arguments
import optuna.storages._in_memory as optuna_memory
import optuna.study.study
import optuna.trial._trial
import pytest
from examples import MODELS, POINTS
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from gpm_tune import lease, locations, patience, processes
from gpm_tune.errors import UserError
from gpm_tune.study.accounts import budget_tracker, creation, records, trial_manager
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.running import ray_adapters, run, trainable
from gpm_tune.study.running.messages import Terms
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking import publisher, views
from gpm_tune.training import Experiment, loop
from gpm_tune.training import run as training_run
from gpm_tune.training.saved import SavedModel
from simulation import trainer
from simulation.services import Bucket, Storage, Tracking, plain_copy
from simulation.world import Crash, Event, Process, Threading, World

HOSTS = ("alpha", "beta")
MOST_RUNS = 60  # of a study's driver, until it must have come to its end
COPYING = (optuna.study.study, optuna.trial._trial)
LOOK_EVERY = 2.0  # seconds between looks of Tune at its trials
METRIC = "sliced_wasserstein"

_validated: dict[str, Experiment] = {}
_known: dict[tuple[str, int, int], tuple[Any, ...]] = {}


def _validate(tree: Any) -> Experiment:
    """The experiment of plain data, the same one for equal data: for speed alone."""
    key = json.dumps(tree)
    if key not in _validated:
        _validated[key] = VALIDATE(tree)
    return _validated[key]


def _remembered(name: str, find: Callable[..., Any]) -> Callable[..., Any]:
    """A method of experiments, which never change, computed once: for speed alone."""

    def get(experiment: Experiment, given: Any = None) -> Any:
        key = (name, id(experiment), id(given))
        if key not in _known:
            found = find(experiment, given) if given else find(experiment)
            _known[key] = found, experiment, given  # kept, or others might have their ids
        return _known[key][0]

    return get


VALIDATE = Experiment.model_validate
REMEMBERED = {
    "model_validate": _validate,
    "judge": _remembered("judge", Experiment.judge),
    "inference_part": _remembered("inference_part", Experiment.inference_part),
    **{
        name: property(_remembered(name, getattr(Experiment, name).fget))
        for name in ("training_key", "default_objective", "metrics", "fingerprints", "run_name")
    },
}


def random_study(world: World, name: str) -> StudyConfig:
    """A study of a few trials."""
    draw = world.random
    model = draw.choice(["discr_flow", "discr_flow", "discr_flow", "edm", "edm", "score_gan"])
    steps = draw.choice([3, 4, 8, 12])
    base = POINTS if model == "discr_flow" else {**POINTS, "model": MODELS[model]}
    every = draw.choice([1, 2, 3, 4, 5])
    base = space.put(base, {"training.steps": steps, "evaluation.every": every})
    scheduler = draw.choice(["none", "none", "none", "asha", "hyperband", "median", "pbt", "pbt"])
    searched = {
        "training.optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
        "training.batch_size": {"choice": [16, 32]},
        "seed": {"int": [0, 1]},
    }
    if scheduler != "pbt" or draw.random() < 0.5:
        searched["evaluation.samples"] = {"choice": [100, 200, 300]}
        searched["evaluation.every"] = {"choice": sorted({1, 2, 4, every})}
    if scheduler != "pbt":
        searched["training.steps"] = {"int": [3, steps]} if steps > 3 else {"choice": [3, 5]}
    if model == "discr_flow":
        searched["model.eta"] = {"float": [1.0, 20.0], "log": True}
    if model == "edm":
        searched["model.sampling_steps"] = {"int": [2, 4]}
    paths = draw.sample(sorted(searched), draw.choice([1, 1, 2, 3]))
    sampler: dict[str, Any] = {
        "name": draw.choice(["random"] * 6 + ["grid"] * 5 + ["brute_force"] * 3 + ["tpe"])
    }
    if sampler["name"] == "grid":
        sampler["points"] = 2
    if sampler["name"] == "brute_force":
        paths = [path for path in paths if "float" not in searched[path]] or ["seed"]
    plain: dict[str, Any] = {
        "name": name,
        "experiment": base,
        "search": {path: searched[path] for path in paths},
        "sampler": {**sampler, "seed": draw.randrange(1000)},
        "scheduler": _scheduler(world, scheduler),
        "budget": _budget(world),
        "confirm": draw.choice([None, None, None, {"trials": draw.choice([1, 2]), "seeds": 2}]),
        "constraints": draw.choice([[], [], [], [{"metric": METRIC, "max": 0.3}]]),
        "resources": {"concurrent": draw.choice([1, 2, 3])},
    }
    if scheduler == "none" and draw.random() < 0.1:
        plain["objectives"] = [{"metric": METRIC}, {"metric": "energy_distance"}]
    return StudyConfig.model_validate(plain)


def teachers_study(world: World, study: StudyConfig) -> StudyConfig:
    """A study that trains the teacher of another one's, too, and judges it otherwise."""
    draw, teacher = world.random, study.experiment.teacher
    assert teacher is not None, "the study is of a model with a teacher"
    changed = {"evaluation.every": draw.choice([1, 2, 3, 5]), "training.steps": draw.choice([3, 12, 20])}
    plain = {
        "name": "two",
        "experiment": space.put(teacher.model_dump(mode="json"), changed),
        "search": {"seed": {"int": [0, 1]}},
        "sampler": {"name": "brute_force"},
        "scheduler": {"name": "none"},
        "budget": {"trials": 2},
        "resources": {"concurrent": draw.choice([1, 2])},
    }
    return StudyConfig.model_validate(plain)


def _scheduler(world: World, name: str) -> dict[str, Any]:
    draw = world.random
    more: dict[str, dict[str, Any]] = {
        "asha": {"grace_steps": draw.choice([1, 2]), "reduction_factor": 2},
        "hyperband": {"reduction_factor": 2},
        "median": {"startup_trials": 1},
        "pbt": {
            "interval_steps": draw.choice([1, 2, 4]),
            "quantile": draw.choice([0.25, 0.5]),
            "resample": draw.choice([0.0, 0.25]),
        },
    }
    return {"name": name, **more.get(name, {})}


def _budget(world: World) -> dict[str, Any]:
    draw = world.random
    budget: dict[str, Any] = {"trials": draw.choice([1, 2, 3, 4, 6])}
    if draw.random() < 0.1:
        budget["hours"] = draw.uniform(0.001, 0.1)
    if draw.random() < 0.1:
        budget["target"] = draw.uniform(0.05, 0.2)
    return budget


class Simulation:
    """A few studies, at the same time, whose homes share a bucket and a tracking server."""

    def __init__(self, seed: int, disasters: int | None = None) -> None:
        """disasters: at most; a random number if None. The studies are the same for any."""
        self.world = World(seed, 0)
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.bucket, self.tracking = Bucket(self.world), Tracking(self.world)
        self.storages: dict[str, Storage] = {}
        draw = self.world.random
        homes = [self._home("home"), self._home("another home")]
        self.studies = [(random_study(self.world, "one"), homes[0])]
        if draw.random() < 0.3:
            second = self.studies[0][0].model_copy(update={"name": "two"})  # which shares training runs
            other = draw.choice([second, random_study(self.world, "two")])
            if self.studies[0][0].experiment.teacher:
                other = draw.choice([second, other, teachers_study(self.world, second)])
            self.studies.append((other, draw.choice(homes)))
        most = draw.choice([0, 1, 2, 4, 8, 16])
        self.world.disasters = most if disasters is None else disasters
        self.starts = 0  # of drivers
        self.finished: set[str] = set()

    def _home(self, name: str) -> Home:
        home = Home(self.folder / name, "http://tracking", "s3://bucket/home")
        home.root.mkdir()
        self.storages[home.optuna_uri] = Storage(self.world)
        return home

    def run(self) -> None:
        """Let every study come to its end."""
        operator = Process("the operator", "here", 0)
        for study, home in self.studies:
            self.world.spawn(operator, lambda study=study, home=home: self._operate(study, home))
        self.world.run(lambda: len(self.finished) == len(self.studies))

    def run_again(self) -> None:
        """Give the same commands once more, without disasters."""
        self.world.calm()
        self.finished.clear()
        self.run()

    def close(self) -> None:
        """End all processes."""
        self.world.end()
        shutil.rmtree(self.folder)

    def _operate(self, study: StudyConfig, home: Home) -> None:
        """Give the command that runs a study, again where it has not come to its end."""
        world = self.world
        for _ in range(MOST_RUNS):
            done: list[bool] = []
            self.starts += 1
            drivers = [self._start(study, home, done)]
            if world._has(0.1):
                world.note("gives the command twice")
                drivers.append(self._start(study, home, done))
            while not all(driver.is_dead for driver in drivers):
                world.sleep(LOOK_EVERY)
            if True in done:
                self.finished.add(study.name)
                return
            world.sleep(world.random.choice([0.0, 5.0, 40.0]))
        raise AssertionError(f"study {study.name} has not come to its end in {MOST_RUNS} runs")

    def _start(self, study: StudyConfig, home: Home, done: list[bool]) -> Process:
        def drive() -> None:
            console = SimpleNamespace(print=lambda text, **_: self.world.note(text))
            try:
                done.append(run.run_study(study, home, "local", console))  # type: ignore[arg-type]
                self.world.note(f"returns {done[-1]}")
            except (UserError, OSError) as error:
                self.world.note(f"ends with {type(error).__name__}: {error}")

        return self.world.start(f"driver of {study.name}", self.world.random.choice(HOSTS), drive)

    def run_trials(
        self, study: StudyConfig, home: Home, _address: str, controller: Any, _console: object
    ) -> None:
        """In place of `run._run_trials`."""
        Tune(self.world, study, home, controller).run()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block the program runs in this world."""
        world = self.world
        trainer.Trainer.world = WatchedLease.world = world
        WatchedLease.held_now = {}
        _validated.clear()
        _known.clear()
        clock = SimpleNamespace(
            monotonic=world.monotonic, sleep=world.sleep, time_ns=world.time_ns, now=lambda: _naive(world)
        )
        ids = SimpleNamespace(uuid4=lambda: UUID(int=world.random.getrandbits(128)))
        ray = SimpleNamespace(
            get=lambda value: value, util=SimpleNamespace(get_node_ip_address=lambda: world.process.host)
        )
        nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
        changes: list[tuple[Any, dict[str, Any]]] = [
            (locations, self.bucket.functions()),
            (loop, {"Trainer": trainer.Trainer, "Lease": WatchedLease}),
            (SavedModel, {"load": trainer.load}),
            (tempfile, {"tempdir": str(self.folder)}),
            (Experiment, REMEMBERED),
            (lease.CLOCK, {"now": world.now, "wall": world.wall, "sleep": world.sleep}),
            (lease, {"threading": Threading(world), "this_process": lambda: _this_process(world)}),
            (processes.Process, {"runs": lambda process: _runs(world, process)}),
            (patience, {"time": clock}),
            (budget_tracker, {"time": clock}),
            (trial_manager, {"time": clock}),
            (training_run, {"time": clock, "as_yaml": str}),
            (views, {"as_yaml": str}),
            (optuna_memory, {"datetime": clock}),
            *((module, {"copy": SimpleNamespace(copy=copy.copy, deepcopy=plain_copy)}) for module in COPYING),
            (
                optuna_arguments,
                {"_get_positional_arg_names": cache(optuna_arguments._get_positional_arg_names)},
            ),
            (creation, {"open_storage": lambda uri, _: self.storages[uri], "uuid": ids}),
            (records, {"read_storage": lambda uri, *_: self.storages[uri]}),
            (publisher, {"threading": Threading(world), "import_for_delivery": nothing}),
            (publisher, {"Store": self.tracking.store}),
            (run, dict.fromkeys(("refuse_beside_other_use", "take_over", "check_store", "prepare"), nothing)),
            (run, {"requirements": str, "environment_tags": dict, "as_yaml": str, "time": clock}),
            (run, {"this_machine": lambda: SimpleNamespace(check=nothing)}),
            (run, {"interruptible": lambda: _Entered(bool), "Mirror": lambda *_: _Entered(None)}),
            (run, {"StudyProgress": lambda *_: _Entered(Silent()), "_run_trials": self.run_trials}),
            (trainable, {"ray": ray, "why_sick": nothing, "return_freed_memory": nothing}),
            (
                trainable,
                {
                    "gc": SimpleNamespace(collect=nothing),
                    "Interruption": lambda stop_signal: stop_signal.is_on,
                },
            ),
            (trainable, {"heed_termination": lambda: Termination(world)}),
            *((module, {"uuid4": ids.uuid4}) for module in (lease, ray_adapters)),
        ]
        with pytest.MonkeyPatch.context() as patch:
            for target, values in changes:
                for name, value in values.items():
                    patch.setattr(target, name, value)
            yield


class Tune:
    """What Ray Tune does for a driver, whose process this runs in."""

    def __init__(self, world: World, study: StudyConfig, home: Home, controller: Any) -> None:
        self.world = world
        self.controller = controller
        self.study = study
        self.stop_signal = StopSignal(world)
        room = study.resources.concurrent or 1
        self.searcher = ray_adapters.ControlledSearcher(controller, lambda: room)
        self.scheduler = ray_adapters.ControlledScheduler(controller)
        self.workers: dict[str, Worker] = {}  # by Tune's name for their trials
        self.idle: list[Worker] = []
        self.terms = Terms(
            study=study.name,
            user=records.run_user(controller.study_id),
            base=study.experiment,
            data_fingerprint=controller.data_fingerprint,
            objective=study.objective,
            runs=home.runs,
            storage=home.storage,
            threads=1,
            device="cpu",
            time_limit=None,
            hangs=Path(),
            expected=None,
        )
        controller.on_stop = self.stop_signal.turn_on
        controller.hear = self.stop_signal.heard

    def run(self) -> None:
        """Run trials until there are no more."""
        trials = 0
        try:
            while True:
                if self.world._has(0.0005):
                    self.world.note("is interrupted")
                    self.controller.interrupt()
                self.controller.poll(len(self.workers))
                config: Any = self.searcher.suggest(f"t{trials}")
                while isinstance(config, dict):
                    self._begin(f"t{trials}", config)
                    trials += 1
                    config = self.searcher.suggest(f"t{trials}")
                if not self.workers and (config == Searcher.FINISHED or self.controller.interrupted):
                    return
                if not self.workers:
                    raise AssertionError("there are trials, and none is handed out")
                self.world.sleep(LOOK_EVERY)
                for name, worker in list(self.workers.items()):
                    self._look_at(name, worker)
        finally:
            if not self.world.process.is_dead:
                for worker in [*self.workers.values(), *self.idle]:
                    self.world.kill(worker.process, "is no longer needed")

    def _begin(self, name: str, config: dict[str, Any]) -> None:
        idle = [worker for worker in self.idle if not worker.process.is_dead]
        if idle and self.world.random.random() < 0.7:
            worker = idle[0]
            self.idle.remove(worker)
            worker.tell(config)
        else:
            worker = Worker(self, config)
        self.workers[name] = worker

    def _look_at(self, name: str, worker: Worker) -> None:
        result, worker.result = worker.result, None
        if result is not None:
            if not result["done"]:
                trial: Any = SimpleNamespace(config=worker.config)
                decision = self.scheduler.on_trial_result(None, trial, result)
                if self.world._has(0.02):
                    self.world.note(f"{name}: the result comes twice")
                    decision = max(decision, self.scheduler.on_trial_result(None, trial, result))
                if decision == TrialScheduler.CONTINUE:
                    worker.tell(None)
                    return
            del self.workers[name]
            self.searcher.on_trial_complete(name, result)
            self.idle.append(worker)
            worker.rest()
        elif worker.process.is_dead:
            del self.workers[name]
            self.searcher.on_trial_complete(name, error=True)


class Worker:
    """A process for trials, and what it and Tune tell each other."""

    def __init__(self, tune: Tune, config: dict[str, Any]) -> None:
        self.config = config
        self.result: dict[str, Any] | None = None
        self._world = tune.world
        self._tune = tune
        self._is_resting = False
        self._told = Event(tune.world)
        driver = tune.world.process
        name = f"a trial's process of {tune.study.name}"
        host = driver.host if tune.world.random.random() < 0.5 else tune.world.random.choice(HOSTS)
        self.process = tune.world.start(name, host, self._live, driver)

    def tell(self, config: dict[str, Any] | None) -> None:
        """Let it go on with its trial, or begin with another one."""
        if config is not None:
            self.config, self._is_resting, self.process.is_idle = config, False, False
        self._told.set()

    def rest(self) -> None:
        """Let it wait for another trial, or end."""
        self._is_resting = self.process.is_idle = True
        if self._world.random.random() < 0.3:
            self._told.set()

    def _live(self) -> None:
        one = object.__new__(trainable.TrialTrainable)
        config = self.config
        try:
            one.setup(config, self._tune.stop_signal, self._tune.terms)
            while True:
                result = one.step()
                self._world.step("returns a result")
                self.result = result
                self._told.wait()
                self._told.clear()
                if self._is_resting:
                    one.cleanup()
                    return
                if self.config is not config:
                    config = self.config
                    one.reset_config(config)
        except RuntimeError as error:
            if str(error) != "the trial goes on elsewhere":
                raise
        finally:
            with suppress(Crash):
                one.cleanup()


class StopSignal:
    """In place of the actor that a driver and its trials share."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_on = False
        self._words: list[Any] = []
        self.say = SimpleNamespace(remote=self._say)

    def turn_on(self) -> None:
        self._is_on = True

    def is_on(self) -> bool:
        return self._is_on

    def _say(self, word: Any) -> None:
        self._world.note(word.text)
        self._words.append(word)

    def heard(self) -> list[Any]:
        words, self._words = self._words, []
        return words


class Termination:
    """Whether a process was asked to end, as a node that goes away asks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_asked = False

    def __call__(self) -> bool:
        if not self._is_asked and self._world._has(0.003):
            self._world.note("is asked to end")
            self._is_asked = True
        return self._is_asked


class Silent:
    """An observer to whom nobody listens."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


class _Entered(ExitStack):
    """A context manager that gives something."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self._given = given

    def __enter__(self) -> Any:
        return self._given


class WatchedLease(lease.Lease):
    """A lease that finds out when two hold it."""

    world: World
    held_now: dict[str, set[WatchedLease]]

    def acquire(self, *args: Any) -> None:
        super().acquire(*args)
        self._process = self.world.process
        self.held_now.setdefault(self.location, set()).add(self)

    def check(self) -> None:
        super().check()
        others = [other for other in self.held_now[self.location] if other is not self and other._is_valid()]
        if others:
            self.world.violated(
                f"two write to {self.location}: {self._process.name}, {others[0]._process.name}"
            )

    def release(self) -> None:
        self.held_now.get(self.location, set()).discard(self)
        super().release()

    def _is_valid(self) -> bool:
        """Whether its holder would write now, without a look at the lease."""
        is_fresh = self.world.now() - self._last_beat <= lease.STALE_SECONDS / 2
        is_at_work = not (self._process.is_dead or self._process.is_idle)
        return is_at_work and self._lost_to is None and is_fresh


def _this_process(world: World) -> processes.Process:
    process = world.process
    return processes.Process(
        host=process.host, process=process.number + 1, start=1, boot=process.host, namespace="pid"
    )


def _runs(world: World, process: processes.Process) -> bool | None:
    if process.host != world.process.host:
        return None
    return not world.processes[process.process - 1].is_dead


def _naive(world: World) -> Any:
    return world.wall().replace(tzinfo=None)
