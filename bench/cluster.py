"""The section `cluster` of params.yaml: how cells are run. Nothing of it enters a key."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.options import NonNegative, Positive, PositiveInt
from bench.strict import Strict


class Debug(Strict):
    """In this process, one cell after the other."""

    name: Literal["debug"] = "debug"
    checkpoint_seconds: NonNegative = 30


class Local(Strict):
    """On the cores of this machine; `workers: null` is as many as there are cores."""

    name: Literal["local"] = "local"
    workers: PositiveInt | None = None
    checkpoint_seconds: NonNegative = 30


class Resources(Strict):
    """What a job asks SLURM for; null leaves it to the cluster.

    Args:
        partition, account, qos, gres: as sbatch takes them.
        nodes: machines of a job.
        gpus: of each machine; one task runs on each.
        tasks: of each machine; null is one for each GPU, or one.
        cpus: of each task; null is as many as a cell has threads.
        memory: of each machine, in GB.
        time: the limit in minutes; what is not done by then saves its state and is queued again.
        extra: further options of sbatch, by name: {constraint: a100, exclusive: true}.
        setup: shell commands that run before Python on the machine.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str | None = None
    nodes: PositiveInt = 1
    gpus: PositiveInt | None = None
    tasks: PositiveInt | None = None
    cpus: PositiveInt | None = None
    memory: Positive | None = None
    time: PositiveInt = 60
    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    setup: list[str] = Field(default_factory=list)

    def gpu_count(self, device: str) -> int:
        """GPUs of each machine; one where a cell wants one and none is named."""
        return self.gpus or int(device == "cuda")

    def processes(self, device: str) -> int:
        """Processes of each machine."""
        return self.tasks or self.gpu_count(device) or 1


class Overrides(Resources):
    """Resources of one kind of cell: what is given replaces what all have."""

    time: PositiveInt | None = None  # type: ignore[assignment]
    nodes: PositiveInt | None = None  # type: ignore[assignment]
    extra: dict[str, str | int | bool] | None = None  # type: ignore[assignment]
    setup: list[str] | None = None  # type: ignore[assignment]


class Slurm(Resources):
    """As jobs of a SLURM cluster.

    Args:
        stages: resources by kind of cell where they differ: {evaluate: {gpus: null, time: 20}}.
        parallelism: jobs of one array that run at once.
        max_jobs: jobs in the queue at once; more cells share a job.
        requeue: queue a job again at its time limit, and let SLURM do so after preemption or a node's failure.
        wait: whether `dvc repro` waits for the jobs; if not it ends at once and says how to come back.
        python: the command that starts Python on the machine: a container's, for one.
        checkpoint_seconds: how often training saves its state.
        late_seconds: how long what one machine wrote may take to be seen by another.
    """

    name: Literal["slurm"] = "slurm"
    stages: dict[Literal["pretrain", "evaluate"], Overrides] = Field(default_factory=dict)
    parallelism: PositiveInt | None = None
    max_jobs: PositiveInt | None = None
    requeue: bool = True
    wait: bool = True
    python: str | None = None
    checkpoint_seconds: NonNegative = 300
    late_seconds: NonNegative = 60

    def resources(self, stage: str) -> Resources:
        """What a job for cells of this stage asks for."""
        common = {name: getattr(self, name) for name in Resources.model_fields}
        return Resources(**common | _given(self.stages, stage))


def _given(stages: Mapping[Any, Overrides], stage: str) -> dict[str, Any]:
    if stage not in stages:
        return {}
    own = stages[stage].model_dump(exclude_unset=True)
    # null takes back what all have, where that can be taken back
    return {k: v for k, v in own.items() if v is not None or Resources.model_fields[k].default is None}


Cluster = Annotated[Debug | Local | Slurm, Field(discriminator="name")]
KINDS: dict[str, type[Debug] | type[Local] | type[Slurm]] = {"debug": Debug, "local": Local, "slurm": Slurm}
