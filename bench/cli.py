"""The command line: `python -m bench COMMAND`, in a folder that holds a params.yaml."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import add_commands
from bench.errors import BenchError
from bench.store import Store

if TYPE_CHECKING:
    from bench.plan import Plan
    from bench.settings import Params

REPORTS = Path("reports")
PARTIAL = Path("reports-partial")
MANIFESTS = Path("data/manifests")


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print an error that is for the reader, and exit with 1; others keep their traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:  # what reads the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}; make room (the store is {Store().root}) and run again", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that workers are stopped, not left behind


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = _parser().parse_args(arguments)
    with reporting_errors():
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add(
        "repro",
        _repro,
        "compute what is missing, run the pipeline, compare with the committed reports",
    )
    add_commands(add)
    cells = add("cells", _cells, "list the plan's cells and which of them are computed")
    cells.add_argument("--missing", action="store_true", help="only those that are not")
    tune = add("tune", _tune, "compute the tuning trials on the validation part and write their table")
    tune.add_argument("--to", type=Path, default=Path("docs/tuning.md"), help="where (default: docs/tuning.md)")
    _add_evaluate(
        add(
            "evaluate",
            _evaluate,
            "evaluate somebody else's encoder, from a file, under params.yaml's protocols; print its row of the table",
        )
    )
    show = add("show", _show, "what a cell is, what it gave, where it lies")
    show.add_argument("cell", help="its key, or the first letters of it")
    report = add("report", _report, "render reports from the records of the pipeline")
    report.add_argument("--partial", action="store_true", help=f"render what is there into {PARTIAL}/")
    claims = add(
        "claims", _claims, "print the ledger: a verdict on every claim of the papers, from the committed records"
    )
    claims.add_argument("--readme", action="store_true", help="write its counts into README.md instead")
    render = add("render", _render, "render the committed records again")
    render.add_argument("--to", type=Path, default=REPORTS, help="where (default: reports/)")
    probe = add("probe", _probe, "compare this machine's numerics with the committed ones")
    probe.add_argument("--json", action="store_true", help="print the hashes instead")
    add("compare", _compare, "compare the new reports with the committed ones")
    add("schema", _schema, "print the JSON schema of params.yaml")
    return parser


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    from bench.encoders import ENCODERS
    from bench.weights import LAYOUTS

    command.epilog = (
        "example: python -m bench evaluate --checkpoint moco_v2_800ep_pretrain.pth.tar --layout moco "
        "--encoder resnet50 --option stem=imagenet --normalise imagenet. "
        "docs/checkpoints.md tells what each layout takes and drops."
    )
    command.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help=".safetensors, .npz, or torch.save's format"
    )
    command.add_argument("--layout", required=True, help=f"how the file names its tensors: {', '.join(LAYOUTS)}")
    command.add_argument("--encoder", required=True, help=f"which encoder they are for: {', '.join(ENCODERS)}")
    command.add_argument(
        "--option", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="an option of the encoder"
    )
    command.add_argument(
        "--normalise",
        required=True,
        metavar="HOW",
        help="what the encoder wants done to images in [0, 1]: none, imagenet, or means and deviations by channel "
        "as 0.5,0.5,0.5/0.2,0.2,0.2",
    )
    command.add_argument("--name", help="of its row (default: the file's)")
    command.add_argument(
        "--protocol", nargs="+", action="extend", metavar="NAME", help="only these evaluations of params.yaml"
    )


def _repro(options: argparse.Namespace) -> None:
    """Everything, in child processes: each sets its pins before it imports torch."""
    from bench import params
    from bench.launch import CellsFailedError

    def run(*command: str) -> int:
        print("$ " + " ".join(command), file=sys.stderr, flush=True)
        return subprocess.run([sys.executable, "-m", *command], env=environment).returncode

    environment = {
        **os.environ,
        # DVC's stages call python3: let it be this one
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "BENCH_SUBMISSION": f"{time.time_ns():x}",  # what fails in one part is not tried again in the next
    }

    settings = params.load(Path("params.yaml"))  # whatever is wrong with it is said before any work starts
    run("bench", "probe")
    waits = getattr(settings.cluster, "wait", True)
    submitted = run("bench", "submit", *(["--wait"] if waits else []))
    if submitted not in (0, CellsFailedError.status):
        sys.exit(submitted)
    if not waits and _count_missing():
        sys.exit("the jobs are queued; `make repro` again collects what they computed")
    if run("dvc", "repro", "--keep-going") or submitted:
        run("bench", "report", "--partial")
        sys.exit(f"not everything could be computed (see above); what is there is in {PARTIAL}/")
    sys.exit(run("bench", "compare"))


def _count_missing() -> int:
    store = Store()
    return sum(not store.has(cell.key) for cell in planned()[1].cells())


def planned() -> "tuple[Params, Plan]":
    """params.yaml and its plan, every data set prepared."""
    from bench import params, plan

    settings = params.load(Path("params.yaml"))
    return settings, plan.make_plan(settings, plan.prepare_all(settings, MANIFESTS))


def _tune(options: argparse.Namespace) -> None:
    from bench import params, plan
    from bench.tune import tune

    settings = params.load(Path("params.yaml"))
    tune(settings, plan.prepare_all(settings, MANIFESTS), options.to)
    print(f"wrote {options.to}; the chosen levels belong in params.yaml")


def _cells(options: argparse.Namespace) -> None:
    store = Store()
    for cell in planned()[1].cells():
        state = "done" if store.has(cell.key) else "failed" if store.failure(cell.key) else "missing"
        if state != "done" or not options.missing:
            print(f"{cell.key}  {state:8}{cell.stage:10}{cell.label}")


def _report(options: argparse.Namespace) -> None:
    from bench.records import gather, gather_outputs, read_beside
    from bench.report import render

    if not options.partial:
        render(gather_outputs(Path()), REPORTS)
        return
    from bench.plan import report_plan

    # from the store, not from the stages' outputs: DVC skips what depends on a stage that failed
    settings, made = planned()
    store = Store()
    records = gather(report_plan(made, settings), lambda cell: store.path(cell["key"]), read_beside(Path()))
    render(records, PARTIAL)
    count, missing = records.numbers["planned"], len(records.numbers["missing"])
    print(f"{count - missing} of {count} cells in {PARTIAL}/")


def _claims(options: argparse.Namespace) -> None:
    from bench.claims.paper import load
    from bench.claims.show import as_text
    from bench.records import Records
    from bench.report import judge

    numbers = Records.read(REPORTS).numbers
    if options.readme:
        _write_counts(numbers)
    else:
        print(as_text(judge(numbers, load())), end="")


def _write_counts(numbers: dict[str, Any]) -> None:
    from bench.claims.paper import ClaimsError, load
    from bench.claims.show import into_readme
    from bench.files import write_text
    from bench.registry import ROOT
    from bench.report import judge

    if not numbers["judged"]:
        raise ClaimsError("these records judge no study, so that README.md is left; run it in profiles/full")
    ledger = os.path.relpath(REPORTS / "tables" / "claims.md", ROOT)
    readme = ROOT / "README.md"
    write_text(readme, into_readme(readme.read_text(encoding="utf-8"), judge(numbers, load()), ledger))


def _render(options: argparse.Namespace) -> None:
    from bench.records import Records
    from bench.report import render

    render(Records.read(REPORTS), options.to)


def _evaluate(options: argparse.Namespace) -> None:
    from bench import params, plan
    from bench.external import External, demand, evaluate_external, parse_options, problems
    from bench.numerics import pin

    settings = params.load(Path("params.yaml"))
    protocols = list(dict.fromkeys(options.protocol or settings.evaluations))
    given = parse_options(options.option)
    name = options.name or options.checkpoint.name.partition(".")[0]
    asked = External(name, options.checkpoint, options.layout, options.encoder, given, options.normalise)
    demand(problems(asked, settings, protocols))
    pin(settings.defaults.numerics, settings.defaults.threads)
    manifests, store = plan.prepare_all(settings, MANIFESTS), Store()
    cells, table = evaluate_external(asked, settings, manifests, protocols, store)
    print(table.markdown())
    for cell in cells:
        print(f"{cell.label}: {store.path(cell.key) / 'record.json'}")


def _show(options: argparse.Namespace) -> None:
    from bench.plan import find
    from bench.show import describe

    print(describe(find(planned()[1], options.cell), Store()))


def _probe(options: argparse.Namespace) -> None:
    from bench.compare import committed_probe, first_difference

    ours, theirs = _machine_probe(), committed_probe(REPORTS)
    if options.json:
        print(json.dumps(ours, indent=1))
    elif not ours:
        print("numerics probe: none yet, as cells are computed on GPUs, this machine has none and no cell is computed")
    elif theirs is None:
        print("no committed numerics probe to compare with")
    elif (part := first_difference(ours, theirs)) is None:
        print("numerics probe: equal to the committed one, so results must be byte-identical")
    else:
        print(f"numerics probe: differs from the committed one, first in '{part}'; results will be")
        print("compared with the committed ones within their intervals")


def _compare(options: argparse.Namespace) -> None:
    from bench.compare import compare

    print(compare(REPORTS, _machine_probe()))


def _machine_probe() -> dict[str, str]:
    """This machine's; where GPUs of a cluster compute and it has none, what a computed cell tells of them, if any."""
    from bench import params
    from bench.numerics import pin, require

    defaults = params.load(Path("params.yaml")).defaults
    pin(defaults.numerics, defaults.threads)
    import torch

    if defaults.device == "cuda" and not torch.cuda.is_available():
        store = Store()
        computed = (store.environment(cell.key) for cell in planned()[1].cells() if store.has(cell.key))
        return next((found["probe"] for found in computed if "probe" in found), {})  # adopted ones tell nothing
    require(defaults.numerics, defaults.threads, defaults.device)
    from bench.probe import cached_probe

    return cached_probe(Store().root, defaults.device)


def _schema(options: argparse.Namespace) -> None:
    from bench.params import json_schema

    print(json.dumps(json_schema(), indent=1, sort_keys=True))
