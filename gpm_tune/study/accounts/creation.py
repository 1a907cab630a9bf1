"""A study in Optuna's storage: opened, or created with its first trials and what others have learnt."""

from __future__ import annotations

import json
import logging
import uuid
import warnings
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from gpm_tune.data.fingerprint import described
from gpm_tune.errors import MIGRATE, OtherDataError, UserError
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.database import open_storage
from gpm_tune.study.accounts.records import StudyRecord, measure_of, read_study
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig

FORMAT = 2
"""Of a study's records: one of another format cannot be continued, as its trials keep other things."""

logging.getLogger("alembic").setLevel(logging.WARNING)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of a sampler that a file chose


def create_or_load_study(
    study: StudyConfig, storage: str | None, patience: Patience | None = None
) -> optuna.Study:
    """The study as the storage has it, from now on if it is new; in no storage one that is forgotten.

    patience: with a storage that is busy or full; until its end, if None.
    Raises UserError where a study of this name has another base, search space or objective, OtherDataError
    where the data have changed since it began.
    """
    identity = study.identity | {"format": FORMAT}
    identity |= {"fingerprints": study.experiment.fingerprints} if storage else {}
    opened = optuna.create_study(
        storage=storage and open_storage(storage, patience or Patience()),
        study_name=study.name,
        load_if_exists=True,
        directions=["minimize" if goal.mode == "min" else "maximize" for goal in study.goals],
    )
    if "id" not in opened.user_attrs:
        names = study.warm_start if storage else []
        data = identity.get("fingerprints", {}).get("data")
        learnt = [trial for name in names for trial in _learn_from(name, study, storage or "", data)]
        _create(opened, study, identity, learnt)
    _check(study, json.loads(opened.user_attrs["identity"]), identity)
    return opened


def _check(study: StudyConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError where a study, as it was begun, is not the one that is to be continued."""
    if before.get("format") != now["format"]:
        raise UserError(
            f"study '{study.name}' was begun by version 0.1, whose trainings others do not read\n{MIGRATE}"
        )
    differing = _differences(before | {"fingerprints": {}}, now | {"fingerprints": {}})
    if differing:
        raise UserError(
            f"study '{study.name}' exists already with other values of "
            f"{', '.join(differing)}; its trials would not be comparable. Choose another "
            "name (--name), or give the file its former values to continue"
        )
    for whose, found in now.get("fingerprints", {}).items():
        if found != before["fingerprints"][whose]:
            config = study.experiment if whose == "data" else study.experiment.teacher
            assert config is not None, "it has a teacher, whose data were read"
            raise OtherDataError(
                f"study '{study.name}': {described(config.data)} have changed since it began: their "
                f"fingerprint was {before['fingerprints'][whose]}, now it is {found}. Trials on both could "
                "not be compared\n"
                f"help: put the data back to continue, or begin another study: --name {study.name}-2"
            )


def _create(
    opened: optuna.Study, study: StudyConfig, identity: dict[str, Any], learnt: list[FrozenTrial]
) -> None:
    for start in study.start_from:
        tree = space.put(study.base, start) if isinstance(start, dict) else study.base
        opened.enqueue_trial(space.parameters(tree, study.base, study.search), skip_if_exists=True)
    known = {trial.user_attrs.get("origin") for trial in opened.get_trials(deepcopy=False)}
    opened.add_trials(trial for trial in learnt if trial.user_attrs["origin"] not in known)
    opened.set_user_attr("identity", json.dumps(identity))
    opened.set_user_attr("features", study.experiment.features)
    opened.set_user_attr("id", uuid.uuid4().hex)  # last: it says that the rest is there


def _learn_from(name: str, study: StudyConfig, storage: str, data: str | None) -> list[FrozenTrial]:
    """The completed trials of a study that lie within another's search space, as trials of the latter.

    data: the fingerprint of the latter's. A value that was not searched there is that study's base value.
    Raises UserError where the two measure different things.
    """
    record = read_study(storage, name)
    _refuse_other_measures(record, study, data)
    found = []
    for trial in record.trials:
        if trial.state != "complete" or trial.scores is None:
            continue
        tree = space.put(record.experiment, trial.values)
        try:
            params = space.parameters(tree, study.base, study.search)
        except ValueError:
            continue
        found.append(
            optuna.create_trial(
                params=params,
                distributions={path: study.search[path].for_optuna for path in params},
                values=trial.scores,
                user_attrs={"origin": f"{name}/{trial.number}"},
            )
        )
    return found


def _refuse_other_measures(record: StudyRecord, study: StudyConfig, data: str | None) -> None:
    here = measure_of(study.goals, study.base, study.experiment.features, data)
    differing = [key for key, value in here.items() if record.measure[key] != value]
    if differing:
        raise UserError(
            f"warm_start: study '{record.name}' has other values of {', '.join(differing)}; what it measured "
            "cannot be compared with this study's trials"
        )


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two trees of plain data differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        found = [_differences(one.get(k), other.get(k), f"{path}.{k}" if path else k) for k in keys]
        return [path for paths in found for path in paths]
    return [] if one == other else [path]
