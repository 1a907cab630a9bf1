"""The one loop that trains a run: resumed by whoever asks for more of it, and shared by all who ask alike."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpm_tune import locations
from gpm_tune.errors import DivergedError, OtherDataError, UserError
from gpm_tune.lease import CLOCK, STALE_SECONDS, HeldError, Lease
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.objectives import Objective
from gpm_tune.training.run import EvaluationRecord, Runs, TrainingRun
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.trainer import Evaluation, Trainer

T = TypeVar("T")
_log = logging.getLogger("gpm_tune")


def _at_once(use: Callable[[], T]) -> T:
    return use()


def _nothing(*_: object) -> None:
    pass


@dataclass
class Asker:
    """Who wants a training, and what it is to be told."""

    user: str  # the study, or single experiment, as the run's folder notes it
    name: str  # in words, for others who want the same
    nonce: str | None = None  # of its leases
    predecessors: Collection[str] = ()  # nonces of processes that were lost, whose leases it takes over
    should_stop: Callable[[], bool] = bool
    on_wait: Callable[[str], None] = _log.warning  # is told who trains the run now
    on_note: Callable[[str], object] = _log.warning  # is told where the run goes on if not where it stood
    on_teacher: Callable[[Experiment, EvaluationRecord], object] = _nothing  # is told how its training goes
    on_trained: Callable[[Experiment, EvaluationRecord], object] = _nothing  # likewise, of its own
    check: Callable[[Trainer], object] = _nothing  # raises what speaks against training
    use_storage: Callable[..., Any] = _at_once  # calls what uses the runs' place, which may be away


class Training:
    """An experiment's training run, trained as far as the experiment asks.

    Where the run is trained already, by whomever, nothing is trained. An experiment with another judge than
    who trained it is measured on the weights that are kept: the best of the other judge, and the last.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: TrainingRun,
        asker: Asker,
        *,
        device: torch.device | str = "cpu",
        objective: Objective | None = None,
    ) -> None:
        """objective: what makes an evaluation the best; the experiment's default if None."""
        self.experiment = experiment
        self.run = run
        self._asker = asker
        self._device = device
        self._objective = objective
        self._judge = experiment.judge(objective)
        self._left: float | None = None  # since when nobody has asked for the next evaluation

    @property
    def is_done(self) -> bool:
        """Tell whether the training has come to its end."""
        return self._use(lambda: self.run.is_trained(self.experiment, self._objective))

    def evaluations(self, after: int = -1) -> Generator[EvaluationRecord]:
        """The evaluations after a step, in their order: those on record, then, after training, new ones.

        Ends early where it is asked to stop, with a checkpoint. Raises DivergedError where numbers stop
        being finite, OtherDataError where data have changed, LeaseLostError where another process took the
        run over, and UserError where something is missing.
        """
        with closing(self._evaluations(after)) as found:
            for record in found:
                self._left = CLOCK.now()
                yield record
                self._left = None

    def _evaluations(self, after: int) -> Generator[EvaluationRecord]:
        self._use(lambda: self.run.create(self.experiment, self._asker.user))
        after = yield from self._told(after)
        if self.is_done or self._asker.should_stop():
            yield from self._told(after)  # it may just have come to its end
            return
        teacher = train_teacher(self.experiment, self.run.runs, self._asker, self._device)
        if self._asker.should_stop():
            return
        end = self.experiment.training.steps
        if self._use(lambda: self.run.newest(end)) == end:  # to measure, nobody has to wait
            yield from self._go_on(teacher, _nothing, after)
            return
        lease = Lease(
            f"{self.run.location}/lease.json",
            self._asker.name,
            nonce=self._asker.nonce,
            predecessors=self._asker.predecessors,
        )
        try:
            with ExitStack() as stack:
                held = partial(lease.held, is_over=self._asker.should_stop, on_wait=self._asker.on_wait)
                self._use(lambda: stack.enter_context(held(is_used=self._is_used)))
                yield from self._go_on(teacher, lease.check, after)
        except HeldError:
            if not self._asker.should_stop():
                raise

    def _go_on(
        self, teacher: SavedModel | None, check: Callable[[], object], after: int
    ) -> Generator[EvaluationRecord]:
        after = yield from self._told(after)
        if self.is_done:
            yield from self._told(after)
        else:
            yield from self._train(teacher, check, after)

    def _told(self, after: int) -> Generator[EvaluationRecord, None, int]:
        """What is on record, and what others add to it meanwhile. Returns the step of the last one."""
        while found := self._recorded(after):
            for record in found:
                yield record
                after = record.step
        return after

    def _is_used(self) -> bool:
        """Tell whether the training goes on: who no longer asks for evaluations must not keep others off."""
        return self._left is None or CLOCK.now() - self._left < STALE_SECONDS

    def _recorded(self, after: int) -> list[EvaluationRecord]:
        """The evaluations on record; what was measured after the newest checkpoint is to be trained again."""
        end = self.experiment.training.steps
        newest = self._use(lambda: self.run.newest(end))
        if newest == end and self._use(lambda: self.run.keep_end(end)):
            newest = self._use(lambda: self.run.newest(end))  # it may just have been deleted
        return self._use(lambda: self.run.evaluations(self._judge, after=after, up_to=newest))

    def _train(
        self, teacher: SavedModel | None, check: Callable[[], object], after: int
    ) -> Generator[EvaluationRecord]:
        """check: raises where the run is another process's by now."""
        trainer = Trainer(
            self.experiment,
            device=self._device,
            objective=self._objective,
            cache=self.run.runs.cache,
            teacher=teacher,
        )
        self._asker.check(trainer)
        if not self._use(lambda: self._continue(trainer)):
            for evaluation in trainer.judge_anew():
                record = self._keep(evaluation)
                if record.step > after:
                    yield record
        while not trainer.done and not self._asker.should_stop():
            measured = trainer.run_interval(self._asker.should_stop)
            check()
            kept = self._keep(measured) if measured else None
            self._use(lambda: self.run.keep_checkpoint(trainer))
            if kept:
                self._asker.on_trained(self.experiment, kept)
            if kept and kept.step > after:
                yield kept

    def _keep(self, evaluation: Evaluation) -> EvaluationRecord:
        device, user = str(self._device), self._asker.user
        return self._use(lambda: self.run.keep_evaluation(evaluation, self._judge, device, user))

    def _continue(self, trainer: Trainer) -> bool:
        """Continue where the run stands. Returns False where the weights are to be judged anew."""
        is_own = resume(trainer, self.run, self.experiment.training.steps, self._asker.on_note)
        known = {record.step for record in self.run.evaluations(self._judge)}
        return trainer.best is None or (is_own and trainer.evaluated_step in known)

    def _use(self, use: Callable[[], T]) -> T:
        def use_if_there() -> T:
            self.run.runs.check()
            return use()

        used: T = self._asker.use_storage(use_if_there)
        return used


def train_teacher(
    experiment: Experiment, runs: Runs, asker: Asker, device: torch.device | str
) -> SavedModel | None:
    """The experiment's teacher, where it is given by an experiment: trained, unless it is already.

    It has the best weights of its training alone. Where its run was judged otherwise meanwhile, by whoever
    shares the training, and these are not kept, it is trained once more, in a run of its own.

    None where there is no such teacher, or it is asked to stop before. Raises DivergedError where the
    teacher's numbers stop being finite, and as `Training.evaluations` does.
    """
    teacher = experiment.teacher
    if teacher is None:
        return None
    name = f"{asker.name}, its teacher"
    asker = replace(asker, name=name, nonce=None, check=_nothing, on_trained=asker.on_teacher)
    shared = runs.of(teacher)
    if note := asker.use_storage(lambda: shared.note_of_other_data(teacher)):
        asker.on_note(note)
    # What is followed must not depend on who has trained the run before.
    for run in (shared, runs.alone(teacher)):
        training = Training(teacher, run, asker, device=device)
        try:
            for _ in training.evaluations():
                pass
        except DivergedError as error:
            raise DivergedError(f"the teacher: {error}") from error
        if not training.is_done:
            return None
        try:
            best: SavedModel = asker.use_storage(partial(run.best, teacher))
            return best
        except UserError as error:
            lack = error
    raise lack


def resume(trainer: Trainer, run: TrainingRun, up_to: int, say: Callable[[str], object]) -> bool:
    """Continue from a run's newest checkpoint up to a step that is whole; with none from step 0.

    say: is told what had to be passed over, and why. Returns whether it was judged as the trainer does.
    Raises OtherDataError where the data have changed since.
    """
    passed: list[str] = []
    with tempfile.TemporaryDirectory() as cache:
        for place in run.checkpoints(up_to):
            try:
                is_own = trainer.restore(locations.local(place, Path(cache)))
            except OtherDataError:
                raise
            except UserError as error:
                passed.append(str(error))
                continue
            if passed:
                say(f"{'; '.join(passed)}; continued from the one before, at step {trainer.step} in {place}")
            return is_own
    if passed:
        say(f"{'; '.join(passed)}; no earlier one is whole: started again from step 0")
    return True
