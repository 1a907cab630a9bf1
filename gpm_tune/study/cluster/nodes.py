"""What is true of every node of a cluster: its software, GPUs and data; and whether all have the same."""

from __future__ import annotations

import logging
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import torch

from gpm_tune.errors import UserError, damage, on_one_line
from gpm_tune.metrics import check_features
from gpm_tune.plugins import failure, packages
from gpm_tune.study.storage.home import existing
from gpm_tune.study.storage.inputs import prepare_data
from gpm_tune.study.tracking.provenance import code_digest
from gpm_tune.training import Experiment
from gpm_tune.version import __version__

LOOK_SECONDS = 600.0  # for a node to make its report: it may have to get the data first
CLOCK_SECONDS = 10.0
CLOCK_PROBES = 5
SET_STORAGE = (
    "Set --storage, or GPM_TUNE_STORAGE, to a bucket (s3://…, gs://…) or a folder that all nodes share: a "
    "trial whose node vanishes goes on from there on another one"
)
NOT_IMPORTED = "gpm_tune of this version cannot be imported there"

_log = logging.getLogger("gpm_tune")

T = TypeVar("T")


class Gpu(TypedDict):
    """A GPU as its driver describes it; memory in bytes."""

    name: str
    capability: str  # its compute capability: 8.9
    memory: int
    free: int


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself; or in `error` why it says nothing."""

    node: str
    error: str = ""
    python: str = ""
    gpm_tune: str = ""
    code: str = ""  # digest of gpm_tune's source files
    ray: str = ""
    torch: str = ""
    cuda: str = ""  # for which torch is built; empty in a build for CPUs
    kernels: list[str] = field(default_factory=list)  # for which kinds of GPU: sm_80, sm_90a, compute_120
    driver: str = ""  # NVIDIA's; empty where there is none
    driver_cuda: str = ""  # the newest CUDA that the driver runs
    gpus: list[Gpu] = field(default_factory=list)
    plugins: dict[str, str] = field(default_factory=dict)  # packages with plug-ins, and their versions
    data: str = ""  # fingerprint of the study's data, and of its teacher's where these are others
    lacks: str = ""  # why data, or the network of the features, cannot be had
    runs_host: str = ""  # on whose disk its trials write their runs; empty with a storage
    free: dict[str, int] = field(default_factory=dict)  # bytes on the disk of each folder

    @property
    def versions(self) -> dict[str, str]:
        """What must be the same on all nodes; not torch's build, which may be another without a GPU."""
        return {
            "gpm_tune": f"{self.gpm_tune} (code {self.code})",
            "Ray": self.ray,
            "Python": ".".join(self.python.split(".")[:2]),
            "torch": self.torch.partition("+")[0],
            **{f"plug-in {name}": version for name, version in sorted(self.plugins.items())},
        }


class Difference(NamedTuple):
    """Something that a node does not have as the process that runs the study has it."""

    about: Literal["node", "versions", "storage", "data"]
    sentence: str
    advice: str  # empty where the sentence has it
    may_pass: bool = False  # at another try


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a function returned on a node; or in `error` why there is nothing."""

    node: str
    value: T | None
    error: str


def look(
    node: str,
    experiment: Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
    storage: str | None = None,
) -> NodeReport:
    """The report of the machine this runs on, under a name.

    experiment: as plain data; its data set, and the network of its features, are made ready.
    folders: whose disks' free space is told. storage: has the runs, and may have the data set.
    """
    data, lacks = _make_ready(experiment, storage) if experiment else ("", "")
    driver, driver_cuda, gpus = _gpus()
    return NodeReport(
        node,
        python=platform.python_version(),
        gpm_tune=__version__,
        code=code_digest(),
        ray=version("ray"),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        # What torch.cuda.get_arch_list() gives, but on a head without a GPU, too.
        kernels=(torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else [],
        driver=driver,
        driver_cuda=driver_cuda,
        gpus=gpus,
        plugins=packages(),
        data=data,
        lacks=lacks,
        runs_host="" if storage else socket.gethostname(),
        free={folder: shutil.disk_usage(existing(Path(folder))).free for folder in folders},
    )


def look_everywhere(
    experiment: Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
    storage: str | None = None,
    seconds: float = LOOK_SECONDS,
) -> list[NodeReport]:
    """The reports of all nodes of the cluster that is connected, made at the same time.

    A node that makes none within `seconds`, or cannot, has one with an `error`.
    """
    known = {f.name for f in fields(NodeReport)} - {"node", "error"}
    return [
        # Another version of the package may tell more, or less.
        NodeReport(answer.node, answer.error, **{k: v for k, v in (answer.value or {}).items() if k in known})
        for answer in ask_every_node(_look_plain, experiment, folders, storage, seconds=seconds)
    ]


def _look_plain(*arguments: Any) -> dict[str, Any]:
    return asdict(look("", *arguments))


def check_same(own: NodeReport, others: Sequence[NodeReport]) -> None:
    """Raise UserError that names every node which has not what the process that runs the study has.

    What may pass, such as a download that failed, is a warning where it is not so on all of them.
    """
    found = [(other.node, difference) for other in others for difference in differences(own, other)]
    if not found:
        return
    nodes: dict[str, list[str]] = {}
    for node, difference in found:
        nodes.setdefault(difference.sentence, []).append(node)
    lines = [f"{listed(names)}: {sentence}" for sentence, names in nodes.items()]
    are_some_able = len({node for node, _ in found}) < len(others)
    if are_some_able and all(difference.may_pass for _, difference in found):
        _log.warning("%s; trials that start there try again, then go elsewhere", "; ".join(lines))
        return
    title = "no trial was started: the nodes lack what the process that runs the study has"
    advice = filter(None, dict.fromkeys(difference.advice for _, difference in found))
    raise UserError("\n".join([title, *lines, *advice]))


def incompatibility(own: NodeReport, other: NodeReport) -> str | None:
    """Why a node that has joined later must not take part; None where it may, or what it lacks may pass."""
    found = [difference for difference in differences(own, other) if not difference.may_pass]
    if not found:
        return None
    advice = " ".join(filter(None, dict.fromkeys(difference.advice for difference in found)))
    return f"node {other.node}: {'; '.join(difference.sentence for difference in found)}. {advice}".strip()


def differences(own: NodeReport, other: NodeReport) -> Iterator[Difference]:
    """What keeps trials on another node from being the same as on this one."""
    advice = "`ray up` of the cluster's file again installs the same versions on every node"
    if other.error:
        may_pass = not other.error.startswith(NOT_IMPORTED)
        yield Difference("node", other.error, f"{advice}, and starts those that are down", may_pass)
        return
    ours, theirs = own.versions, other.versions
    for name in ours | theirs:
        expected, found = ours.get(name, "none"), theirs.get(name, "none")
        if expected != found:
            yield Difference("versions", f"{name}: expected {expected}, found {found}", advice)
    if own.runs_host != other.runs_host:
        sentence = "its trials would write their runs to its own disk, and not to that of this process"
        yield Difference("storage", sentence, SET_STORAGE)
    if other.lacks:
        yield Difference("data", other.lacks, "", may_pass=True)
    elif own.data and own.data != other.data:
        sentence = f"data: expected the fingerprint {own.data}, found {other.data}"
        advice = "Delete the data set on the nodes whose copy is wrong, and it is fetched again"
        yield Difference("data", sentence, advice)


def listed(nodes: Sequence[str]) -> str:
    """Nodes as the subject of a sentence."""
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}"


def ask_every_node(
    function: Callable[..., T], *arguments: object, seconds: float = LOOK_SECONDS
) -> list[Answer[T]]:
    """Call a function on every node of the cluster that is connected, whatever its trials occupy."""
    import ray

    asked = {name: on_node(node, function).remote(*arguments) for name, node in _nodes().items()}
    answered, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    for reference in late:
        ray.cancel(reference, force=True)
    answers: list[Answer[T]] = []
    for name, reference in asked.items():
        if reference not in answered:
            answers.append(Answer(name, None, f"it has not answered within {seconds:g} s"))
            continue
        try:
            answers.append(Answer(name, ray.get(reference), ""))
        except Exception as error:  # what the function raises, or Ray where it cannot be called
            answers.append(Answer(name, None, _why(error)))
    return answers


def clock_offsets() -> dict[str, tuple[float, float]]:
    """How many seconds the clock of each node is ahead of this one's, and how far that may be wrong.

    As NTP does: of several round trips the shortest, with the node's clock read halfway. Nodes that do
    not answer are left out.
    """
    import ray

    offsets = {}
    for name, node in _nodes().items():
        task, trips = on_node(node, _now), []
        with suppress(ray.exceptions.RayError):
            for _ in range(CLOCK_PROBES):
                before = time.time()
                there = ray.get(task.remote(), timeout=CLOCK_SECONDS)
                after = time.time()
                trips.append((after - before, there - (before + after) / 2))
        if trips:
            trip, offset = min(trips)
            offsets[name] = offset, trip / 2
    return offsets


def _now() -> float:
    return time.time()


def _nodes() -> dict[str, str]:
    """The ids of all nodes that are alive, by what people call them."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return {f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": node["NodeID"] for node in alive}


def on_node(node: str, function: Callable[..., object]) -> Any:
    """The function as a task of one node that waits for no trial to end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=place)


def _why(error: Exception) -> str:
    """Why a node gave no answer, in a sentence."""
    cause = getattr(error, "cause", None) or error  # of what Ray wraps
    lines = [line for line in str(cause).splitlines() if line.strip()] or [""]
    if "failed to import" in lines[0]:
        return f"{NOT_IMPORTED} ({lines[-1].strip()})"
    return lines[0] if isinstance(cause, UserError) else f"{type(cause).__name__}: {lines[0]}"


def drain(node: str, reason: str, seconds: float) -> None:
    """Let a node get no more work; it may go on with what it has for so long."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # the only one that Ray always accepts
    deadline = int((time.time() + seconds) * 1000)
    GcsClient(ray.get_runtime_context().gcs_address).drain_node(node, why, reason, deadline)


def _make_ready(plain: Mapping[str, Any], storage: str | None) -> tuple[str, str]:
    """The fingerprint of an experiment's data, and why it or the features' network cannot be had."""
    experiment = Experiment.model_validate(plain)
    try:
        for needed in filter(None, (experiment, experiment.teacher)):
            prepare_data(needed, storage)
        fingerprint = ", ".join(experiment.fingerprints.values())
        if experiment.feature_network:
            check_features(experiment.feature_network, experiment.evaluation.inception_weights)
    except UserError as error:
        return "", " ".join(str(error).split())
    except OSError as error:
        return "", f"the data set {experiment.data.name} cannot be read: {error}"
    except Exception as error:  # whatever a damaged file leads to
        said = failure(error) or damage(experiment.data.name, on_one_line(error))
        return "", " ".join(said.split())
    return fingerprint, ""


def _gpus() -> tuple[str, str, list[Gpu]]:
    """The NVIDIA driver's version, the newest CUDA that it runs, and its GPUs; nothing where it is absent."""
    import pynvml

    try:
        pynvml.nvmlInit()
        newest = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return (
            str(pynvml.nvmlSystemGetDriverVersion()),
            f"{newest // 1000}.{newest % 1000 // 10}",
            [_gpu(handle) for handle in handles],
        )
    except pynvml.NVMLError:
        return "", "", []


def _gpu(handle: Any) -> Gpu:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        capability=f"{major}.{minor}",
        memory=int(memory.total),
        free=int(memory.free),
    )
