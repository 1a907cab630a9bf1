"""What `gpm-tune doctor` looks at once the program can be imported: one function for each check."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from gpm_tune import locations
from gpm_tune.documents import Document
from gpm_tune.errors import UserError, first_line
from gpm_tune.study.accounts.records import study_names
from gpm_tune.study.cluster.capacity import Capacity, this_machine
from gpm_tune.study.cluster.connection import connected
from gpm_tune.study.cluster.doctor import Finding, Findings, fail, ok, run_check, warn
from gpm_tune.study.cluster.nodes import (
    NodeReport,
    ask_every_node,
    clock_offsets,
    differences,
    listed,
    look,
    look_everywhere,
)
from gpm_tune.study.cluster.private_ray import private_session
from gpm_tune.study.cluster.probe import file_system, place_of, register_model, round_trip, upload
from gpm_tune.study.definition.specification import StudyConfig, find_file, load_study
from gpm_tune.study.storage.home import Home, existing
from gpm_tune.study.tracking.sender import cure, import_for_delivery
from gpm_tune.uris import without_secrets

T = TypeVar("T")

HERE = "this machine"
NETWORK = re.compile(r"9p|afs|beegfs|ceph|cifs|gpfs|lustre|nfs4?|smb3|fuse\.(?!fuse-overlayfs).*")

USED_BY_OTHERS = 0.1  # of a GPU's memory; the driver itself takes a little
SKEW_WARN, SKEW_FAIL = 1.0, 30.0  # seconds between clocks
DISK_WARN, DISK_FAIL = 10e9, 1e9  # bytes free
PROBE_SECONDS = 60.0  # for a storage to be written, read and tidied
TRACKING_SECONDS = 30.0
START_SERVER = (
    "Start the server (by another name than localhost it answers with --allowed-hosts only), or name another "
    "store with --tracking-uri. A study runs without, and delivers what it measures later"
)


@dataclass(frozen=True)
class Case:
    """What the checks look at."""

    home: Home
    address: str
    study: StudyConfig | None
    capacity: Capacity | None  # of this machine or the cluster; None where none answers
    own: NodeReport
    nodes: list[NodeReport]  # of the cluster; none for `local`

    @property
    def machines(self) -> list[NodeReport]:
        """The reports of all machines that trials would run on."""
        return [node for node in self.nodes if not node.error] or [self.own]

    def apart(self, *about: str) -> list[tuple[str, Finding]]:
        """What nodes have otherwise than this process, as `Difference.about` says."""
        return [
            (node.node, fail(found.sentence, found.advice))
            for node in self.nodes
            for found in differences(self.own, node)
            if found.about in about
        ]


Check = Callable[[Case], Findings[None]]


def examine_case(file: Path | None, home: Home, address: str) -> Iterator[Finding]:
    """The findings of all checks, each as soon as it is made."""
    study = (yield from run_check("study", read_study_file, file)) if file else None
    with ExitStack() as stack:
        capacity = yield from run_check("cluster", join, address, stack)
        experiment = study.base if study else None
        folders = (str(home.root), tempfile.gettempdir())
        own = look(HERE, experiment, folders, home.storage)
        nodes = look_everywhere(experiment, folders, home.storage) if capacity and address != "local" else []
        case = Case(home, address, study, capacity, own, nodes)
        for name, check in CHECKS.items():
            yield from run_check(name, check, case)


def read_study_file(file: Path) -> Findings[StudyConfig]:
    """The study of a file, if it is valid."""
    study = load_study(Document.load(find_file(file)))
    yield ok(f"{study.name} is valid: {len(study.search)} values searched in {study.budget.trials} trials")
    return study


def join(address: str, stack: ExitStack) -> Findings[Capacity]:
    """The capacity of this machine, or of the cluster that is connected until the stack is unwound."""
    if address == "local":
        with private_session():  # which tells where Ray has no place for its sockets
            return this_machine()
    capacity = stack.enter_context(connected(address))()
    cpus, gpus = (sum(node.resources.get(name, 0) for node in capacity.present) for name in ("CPU", "GPU"))
    yield ok(f"it answers, and has {cpus:g} CPU cores and {gpus:g} GPUs")
    if capacity.growth.types:
        kinds = [f"up to {most} {node.type}" for node, most in capacity.growth.types if most]
        yield ok(f"it starts nodes when trials wait, {capacity.growth.workers} in all: {', '.join(kinds)}")
    return capacity


def check_versions(case: Case) -> Findings[None]:
    """Whether all nodes answer, with the versions of this process."""
    own = case.own
    wrong = case.apart("node", "versions")
    yield from _of_nodes(wrong)
    names = f"gpm-tune {own.gpm_tune} (code {own.code}), Ray {own.ray}, torch {own.torch}"
    if not case.nodes:
        yield ok(names)
    elif not wrong:
        yield ok(f"the same on {_count(case.nodes)}: {names}")


def check_gpus(case: Case) -> Findings[None]:
    """Whether torch fits the driver wherever there are GPUs, and whether these are free."""
    with_gpus = [machine for machine in case.machines if machine.gpus]
    types = case.capacity.growth.types if case.capacity else ()
    growing = [node.type for node, most in types if most and node.resources.get("GPU")]
    if not with_gpus and growing:
        yield ok(f"no node with a GPU is there yet; the cluster may start {', '.join(growing)}")
    elif not with_gpus:
        found = f"no NVIDIA GPU on {HERE if not case.nodes else 'any node'}"
        if case.study is None or case.study.resources.gpu:
            yield warn(found, "Trials can train on the CPU only, with resources.gpu at 0")
        else:
            yield ok(f"{found}; the study asks for none")
    yield from _of_nodes((machine.node, _fit(machine)) for machine in with_gpus)
    yield from _of_nodes((machine.node, finding) for machine in with_gpus for finding in _occupied(machine))
    if case.own.gpus and not torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        yield fail(
            "torch cannot use the GPUs that the driver has",
            'See what `python -c "import torch; torch.zeros(1).cuda()"` says',
        )


def _fit(machine: NodeReport) -> Finding:
    """Whether torch's CUDA is one that the driver runs; within a major version, any newer one is."""
    runs = f"driver {machine.driver} runs CUDA up to {machine.driver_cuda}"
    if not machine.cuda:
        return fail(
            f"torch {machine.torch} is built without CUDA; {runs}",
            "Install a build with it: pip install torch torchvision --index-url "
            "https://download.pytorch.org/whl/cu…",
        )
    if _major(machine.cuda) > _major(machine.driver_cuda):
        return fail(
            f"torch {machine.torch} is built for CUDA {machine.cuda}; {runs}",
            f"Install a newer NVIDIA driver, or a torch built for CUDA {_major(machine.driver_cuda)}",
        )
    for gpu in machine.gpus:
        if machine.kernels and not has_kernels(machine.kernels, gpu["capability"]):
            return fail(
                f"torch {machine.torch} has no kernels for {gpu['name']}, of compute capability "
                f"{gpu['capability']}: it is built for {', '.join(machine.kernels)}",
                "Use nodes with other GPUs, or install a torch that is built for these",
            )
    kinds = {gpu["name"]: gpu["memory"] for gpu in machine.gpus}
    counts = [
        f"{sum(gpu['name'] == name for gpu in machine.gpus)} x {name} ({memory / 2**30:.0f} GiB)"
        for name, memory in kinds.items()
    ]
    return ok(f"{', '.join(counts)}; torch is built for CUDA {machine.cuda}, {runs}")


def has_kernels(built_for: Sequence[str], capability: str) -> bool:
    """Whether code that torch was built with runs on a GPU of this compute capability.

    That of a GPU (sm_80) runs on newer ones of the same major version, but for that of its features alone
    (sm_90a); intermediate code (compute_80) runs on all newer ones. CUDA's programming guide, section
    "Application Compatibility".
    """
    major, minor = map(int, capability.split("."))
    for kind in built_for:
        form, _, number = kind.partition("_")
        if not number.isdecimal():
            if number[:-1] == f"{major}{minor}":
                return True
            continue
        other_major, other_minor = divmod(int(number), 10)
        is_older = (other_major, other_minor) <= (major, minor)
        if is_older and (other_major == major or form == "compute"):
            return True
    return False


def _major(cuda: str) -> int:
    return int(cuda.partition(".")[0])


def _occupied(machine: NodeReport) -> Iterator[Finding]:
    for index, gpu in enumerate(machine.gpus):
        used = gpu["memory"] - gpu["free"]
        if used > USED_BY_OTHERS * gpu["memory"]:
            yield warn(
                f"GPU {index}: {used / 2**30:.1f} of its {gpu['memory'] / 2**30:.1f} GiB are in use",
                "`nvidia-smi` names the processes: end them, or hide the GPU with CUDA_VISIBLE_DEVICES",
            )


def check_data(case: Case) -> Findings[None]:
    """Whether the study's data, and the network of its features, are on every machine, and the same."""
    if case.study is None:
        return
    wrong = case.apart("data")
    yield from _of_nodes(wrong)
    if case.own.lacks and case.own.lacks not in [finding.found for _, finding in wrong]:
        yield fail(case.own.lacks, "")
    elif not wrong:
        experiment = case.study.experiment
        features = f", features {experiment.features}" if experiment.features else ""
        where = f" on {_count(case.nodes)}" if case.nodes else ""
        yield ok(f"{experiment.data_label} with the fingerprint {case.own.data}{features}{where}")


def check_home(case: Case) -> Findings[None]:
    """Whether the home, and runs in it, can be written, on a disk of this machine; and its database opens."""
    root = case.home.root
    place = existing(root)
    try:
        for folder in (place, existing(Path(case.home.alone.runs.location))):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        yield fail(
            f"{folder}: {error.strerror}", "Name a folder that can be written with --home, or GPM_TUNE_HOME"
        )
        return
    kind = file_system(place)
    if NETWORK.fullmatch(kind):
        yield warn(
            f"{root} is on a network file system ({kind}), on which SQLite can lose data",
            "Put --home on a disk of this machine; what nodes share belongs into --storage",
        )
    try:
        studies = study_names(case.home.optuna_uri)
    except Exception as error:  # whatever SQLAlchemy, or a later version of Optuna, has against it
        yield fail(
            f"{root / 'optuna.db'} cannot be read: {type(error).__name__}: {first_line(error)}",
            "Use the version of gpm-tune that wrote it, or another --home",
        )
        return
    known = f"{len(studies)} studies in it" if root.exists() else "made by the first study"
    yield ok(f"{root}{f' on {kind}' if kind else ''}, {known}")


def check_storage(case: Case) -> Findings[None]:
    """Whether this process and every node can write, read and delete runs in the storage; it is the same."""
    if case.home.storage is None:
        wrong = case.apart("storage")
        yield from _of_nodes(
            (node, replace(found, found=f"none is set: {found.found}")) for node, found in wrong
        )
        if not wrong:
            yield ok("none is set: everything stays in the home")
        return
    import pyarrow.fs  # noqa: F401 (not in the thread, which may be left behind with it)

    name, runs, mark = case.home.storage, case.home.runs.location, f"gpm-tune-doctor-{uuid.uuid4().hex}"
    advice = (
        "Does it exist, and may this machine's role or key list, read, write and delete there?"
        if locations.is_bucket(name)
        else "Name a folder that can be written and, on a cluster, is the same one on all nodes"
    )
    try:
        speed = within(PROBE_SECONDS, round_trip, runs)
        place = place_of(runs, mark)
        within(PROBE_SECONDS, locations.write, place, b"written by gpm-tune doctor")
    except Exception as error:
        yield fail(f"{name}: {first_line(error)}", advice)
        return
    try:
        yield ok(f"{name}: {speed}")
        if case.nodes:
            answers = ask_every_node(round_trip, runs, mark, seconds=PROBE_SECONDS)
            broken = {node.node for node in case.nodes if node.error}  # has been said
            yield from _of_nodes(
                (answer.node, fail(f"{name}: {answer.error}", advice))
                for answer in answers
                if answer.error and answer.node not in broken
            )
            speeds = [answer.value for answer in answers if answer.value]
            if speeds:
                slowest = min(speeds, key=lambda speed: speed.write)
                yield ok(f"the same on {_count(speeds)}; the slowest: {slowest}")
    finally:
        within(PROBE_SECONDS, locations.delete_file, place)


def check_tracking(case: Case) -> Findings[None]:
    """Whether MLflow's store answers and can be written.

    A registered model is made and deleted, as a study makes one, and a server is sent a file: of a run
    MLflow would keep a trace.
    """
    name = str(case.home.tracking_uri)
    if not case.home.is_tracked:
        yield ok(f"{name}, made by the first study")
        return
    # A study waits for a server that is away; a person who asks does not.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import_for_delivery(
        case.home.tracking_uri.secret()
    )  # not in the thread, which may be left behind with it
    try:
        seconds = within(TRACKING_SECONDS, register_model, case.home)
    except Exception as error:
        yield fail(
            f"{name}: {without_secrets(_root(error))}",
            cure(error) or START_SERVER,
        )
        return
    yield ok(f"{name} answers, and can be written, in {seconds * 1000:.0f} ms")
    if case.home.artifact_root is None:
        try:
            within(TRACKING_SECONDS, upload, case.home)
        except Exception as error:
            yield fail(
                f"{name} takes no files: {without_secrets(_root(error))}",
                "May the server write to its --artifacts-destination? See its log",
            )


def _root(error: BaseException) -> str:
    """What an error began with: MLflow wraps it in the whole history of its request."""
    before = error.__cause__ or error.__context__
    return _root(before) if before is not None else f"{type(error).__name__}: {first_line(error)}"


def check_clocks(case: Case) -> Findings[None]:
    """Whether the nodes' clocks agree with this one."""
    if case.nodes:
        yield from judge_clocks(clock_offsets())


def judge_clocks(offsets: Mapping[str, tuple[float, float]]) -> Findings[None]:
    """What the seconds mean by which nodes' clocks are ahead, each with its doubt."""
    for node, (offset, doubt) in offsets.items():
        if abs(offset) > SKEW_WARN:
            found = f"node {node}: its clock is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}"
            advice = "Run a time service there, such as chrony: buckets refuse what is signed at a wrong time"
            yield (fail if abs(offset) > SKEW_FAIL else warn)(f"{found} (± {doubt:.3f} s)", advice)
    if offsets and all(abs(offset) <= SKEW_WARN for offset, _ in offsets.values()):
        offset, doubt = max(offsets.values(), key=lambda pair: abs(pair[0]))
        yield ok(f"{_count(offsets)} within {abs(offset):.3f} s (± {doubt:.3f} s) of this machine's")


def check_disks(case: Case) -> Findings[None]:
    """Whether there is room for caches and checkpoints."""
    short: list[tuple[str, Finding]] = []
    for machine in case.machines:
        for folder, free in machine.free.items():
            if free < DISK_WARN:
                level = fail if free < DISK_FAIL else warn
                found = f"{folder} has {free / 1e9:.1f} GB free"
                short.append((machine.node, level(found, "Delete what is not needed, or use a larger disk")))
    yield from _of_nodes(short)
    if not short:
        least = [
            f"{min(machine.free[folder] for machine in case.machines) / 1e9:.0f} GB free for {folder}"
            for folder in case.own.free
        ]
        where = f", or more, on {_count(case.nodes)}" if case.nodes else ""
        yield ok(", ".join(least) + where)


def check_room(case: Case) -> Findings[None]:
    """Whether a trial of the study fits."""
    if case.study is None or case.capacity is None:
        return
    wanted = case.study.resources
    where = HERE if case.address == "local" else "the Ray cluster"
    case.capacity.check(wanted, where)
    together = case.capacity.trials_at_a_time(wanted)
    yield ok(f"a trial takes {wanted.cpu} CPU and {wanted.gpu:g} GPU; {together} can run at a time")


CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "GPUs": check_gpus,
    "data": check_data,
    "home": check_home,
    "storage": check_storage,
    "tracking": check_tracking,
    "clocks": check_clocks,
    "disks": check_disks,
    "resources": check_room,
}


def _of_nodes(findings: Iterable[tuple[str, Finding]]) -> Iterator[Finding]:
    """One finding for all nodes of which it is true; about this machine alone it says so by itself."""
    nodes: dict[Finding, list[str]] = {}
    for node, finding in findings:
        nodes.setdefault(finding, []).append(node)
    for finding, names in nodes.items():
        yield finding if names == [HERE] else replace(finding, found=f"{listed(names)}: {finding.found}")


def _count(nodes: Iterable[object]) -> str:
    number = len(list(nodes))
    return f"{number} node{'s' if number > 1 else ''}"


def within(seconds: float, function: Callable[..., T], *arguments: object) -> T:
    """What a function returns or raises; UserError where it takes longer, and is left behind."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    if not wait([future], seconds).done:
        raise UserError(f"it has not answered within {seconds:g} s")
    return future.result()
