"""The steps of `unrolled search`, up to the training with the best settings."""

from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from model.bundle.folders import TRAINED
from model.cli import arguments, console, libraries
from model.cli.arguments import RUNS
from model.config import Config
from model.datasets.dataset import Dataset

if TYPE_CHECKING:
    from model.search.results import Search


class Interrupted(KeyboardInterrupt):
    """A search that Ctrl-C has stopped.

    Attributes:
        folder: of the search, which has the finished trials.
        trials: their number.
    """

    def __init__(self, folder: Path, trials: int):
        super().__init__(
            f"stopped; finished trials in {folder}: {trials}; the same call with resume=True"
            " continues, and with search=0, too, trains with the best settings so far"
        )
        self.folder, self.trials = folder, trials


def run(
    dataset: Dataset,
    config: Config,
    *,
    source: str | None,
    fixed: Collection[str],
    minutes: float | None,
    trials: int | None = None,
    output: Path,
    runs: Path,
    resume: bool,
    int8: bool | None,
    progress: bool,
) -> "Search":
    """Search for settings, and write a report; the arguments are those of `model.train`.

    Args:
        source: the file or data set for the command in the report; None for DataFrames.
        fixed: names of settings that are not searched.
        minutes: for the search; None: as long as the trials take.
        trials: finished ones at which the search ends.

    Raises:
        ValueError: see `search.study.search`.
        Interrupted: Ctrl-C was pressed.
    """
    with libraries.imports():
        from model.cli.search_table import SearchTable
        from model.export import promotion, quantize
        from model.search import report, study
        from model.training import warm_start
        from model.training.runs import Run

    options = [] if output == TRAINED else ["--output", str(output)]
    options += [] if runs == RUNS else ["--runs", str(runs)]
    if int8:
        if "cell" in fixed:
            quantize.check(config.network.cell)
        config, fixed = config.update({"network": {"cell": "lstm"}}), {*fixed, "cell"}
        options.append("--int8")
    elif int8 is False:
        options.append("--no-int8")
    promotion.check(config.name, output)
    start, seen = warm_start.load(config), []
    if start is not None:  # its network is the only one
        config = warm_start.settings(config, start.metadata)
        fixed = {*fixed, *warm_start.SETTINGS, "normalise"}
        seen = warm_start.warnings(dataset, start)
    console.describe(dataset, seen, progress=progress)
    with SearchTable() if progress else nullcontext() as callback:
        result = study.search(
            dataset,
            config,
            Run(runs / config.name),
            fixed=fixed,
            minutes=minutes,
            most=trials,
            resume=resume,
            callback=callback,
        )
    command, bidirectional = None, False
    if result.best:
        best = result.config
        bidirectional = best.network.bidirectional and "bidirectional" not in fixed
        if source is not None:
            command = arguments.train_command(source, best, options)
    page = report.write(result, command)
    if progress:
        text = report.summary(result)
        console.print_search(text, page, command, bidirectional=bidirectional)
    if result.interrupted:
        raise Interrupted(result.folder, len(result.trials))
    return result
