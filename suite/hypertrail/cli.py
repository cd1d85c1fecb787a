"""The command line. Dispatch by hand, so that help and list import neither JAX nor matplotlib; tyro reads the fields.

    hypertrail list | run EXPERIMENT | verify EXPERIMENT | compare RUN_A RUN_B | report RUN ... | plot RUN FIGURE
    hypertrail export-tensorboard RUN ... | launch EXPERIMENT | status [FOLDER] | collect [FOLDER ...]

Exit codes: 0 ok, 1 a run of a local launch failed or was lost, 2 usage, 3 numerical failure, 4 data or verification failure, 75
stopped by a signal or by a full disk (the same command with --run-dir goes on), 76 stopped because its time was up (SIGUSR2)
without having got further than where it was started (the same, with more time), 130 SIGINT, 143 SIGTERM and 140 SIGUSR2 (a second
one, or outside a run).
Every expected error is one line on stderr; HYPERTRAIL_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from . import experiments, own, signals, stopping
from .errors import NO_ROOM, FolderLost, NoProgress, OtherData, Stopped, UsageError, looking_at
from .terminal import bounded_width, complain, leave, prepare, say, warnings_in_one_line

C = TypeVar("C")

HELP = """\
usage: hypertrail COMMAND ...

Tune a million hyperparameters by gradient descent, by following a training run's trail backwards.

commands:
  list                   the declared experiments
  run EXPERIMENT         run one; writes a folder under runs/ with numbers, figures and report.html
  verify EXPERIMENT      check its hypergradient: finite differences, and the other engine
  verify everything      every method, hyperparameter and dynamics against each other on a tiny network
  compare RUN_A RUN_B    two run folders side by side, step by step: losses, weights, hypergradients, where they part
  report RUN [RUN ...]   an interactive page about one run, or several side by side, in a folder with its figures
  plot RUN [FIGURE]      one figure of a run as PNG, PDF or SVG; without a name: which ones there are
  export-tensorboard RUN [RUN ...]
                         scalars and histograms of runs as TensorBoard's event files
  launch EXPERIMENT      run it for many seeds and settings: a Slurm job array, or processes of this machine
  status [FOLDER]        how far the runs of a folder or a launch are
  collect [FOLDER ...]   many runs in one table and figure: mean and interval over seeds

hypertrail run EXPERIMENT --help    every setting of an experiment and what it means
hypertrail --version

A run that was stopped, killed or has failed goes on where it was: the same command with --run-dir FOLDER. SIGTERM and SIGUSR2
let it finish its chunk of steps and end with 75; a second one ends it at once. A finished run is left as it is.

exit codes: 0 ok, 1 a run of a local launch failed or was lost, 2 usage, 3 numerical failure, 4 data or verification failure,
75 stopped or disk full (run again to go on), 76 its time was up without progress (run again with more), 130 SIGINT,
143 SIGTERM, 140 SIGUSR2 (at once). HYPERTRAIL_TRACEBACK=1 shows where an error came from.
"""

USAGE, DATA, AGAIN, PIPE, INTERRUPTED, TERMINATED = 2, 4, 75, 141, 130, 143


MOST_DIGITS = 1000  # of a number on the command line
AGAIN_WORDS = "run the same command with --run-dir to go on"


class Terminated(BaseException):
    """SIGTERM, as an exception, so that files are closed and locks let go on the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare()
    try:
        with terminations(), warnings_in_one_line():
            return dispatch(words)
    except SystemExit as end:  # argument parsing: help was printed, or a usage error is in words already
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt as end:
        complain(str(end) or "interrupted (SIGINT)")
        return INTERRUPTED
    except Terminated:
        complain("terminated (SIGTERM)")
        return TERMINATED
    except BrokenPipeError:  # `hypertrail list | head -1`
        leave(sys.stdout)
        return PIPE
    except OSError as problem:
        if traceback_wanted():
            raise
        complain(in_words(problem))
        return AGAIN if problem.errno in NO_ROOM else DATA
    except MemoryError as problem:
        if traceback_wanted():
            raise
        complain(
            f"this asks for more memory than there is ({problem or 'MemoryError'}); ask for less, smaller or fewer"
        )
        return USAGE
    except Exception as problem:
        code = getattr(problem, "exit_code", None)
        if code is None or traceback_wanted():
            raise
        complain(str(problem))
        return int(code)


def in_words(problem: OSError) -> str:
    """What the system refuses, at which file, and what to do."""
    at = "" if problem.filename is None else f"{problem.filename}: "
    what = f"{at}{problem.strerror or problem}"
    if problem.errno == errno.EFBIG:
        return (
            f"a file became larger than this process may write: {what}; raise the limit (ulimit -f), and {AGAIN_WORDS}"
        )
    if problem.errno in NO_ROOM:
        return f"no room left on the disk: {what}; make room, and {AGAIN_WORDS}"
    return f"{what}; put that right, or name another place (--run-dir, --runs-dir, or --out)"


def dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if words else USAGE
    if words[0] == "--version":
        from . import __version__

        print(f"hypertrail {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}, expected one of {', '.join(COMMANDS)}; see hypertrail --help")
    action, operands, what = COMMANDS[command]
    if rest[:1] in (["-h"], ["--help"]) and not operands.startswith("["):  # those read their own words
        told = "\n".join(textwrap.fill(line, 110) for line in what.splitlines())
        print(f"usage: hypertrail {command} {operands}".rstrip() + f"\n\n{told}")
        return 0
    wanted = re.sub(r"\[.*?\]|\.\.\.", "", operands).split()
    given = rest[: len(wanted)]
    if len(given) < len(wanted) or any(word.startswith("-") for word in given):
        raise UsageError(f"hypertrail {command} needs {' '.join(wanted)}; see hypertrail {command} --help")
    if "..." not in operands and "[" not in operands and len(rest) > len(wanted):
        raise UsageError(f"hypertrail {command} takes {operands or 'nothing'}, got {' '.join(rest)} as well")
    return action(words, *given)


# -- commands -----------------------------------------------------------------------------------------------------------


def list_command(words: list[str]) -> int:
    known = {name: experiments.headline(name) for name in experiments.names()} | own.installed()
    width = max(map(len, known))
    for name, headline in known.items():
        print(f"{name:<{width}}  {headline}")
    return 0


def run_command(words: list[str], name: str) -> int:
    found = own.find(name)
    module = found.module
    config = parse(module.Config, words[2:], f"hypertrail run {name}", module.__doc__)
    from . import runs

    study = experiments.is_study(module)
    record, may_grow = runs.config_record(found.title, config, found.settings), () if study else runs.GROWS
    if config.run_dir is not None and runs.is_done(config.run_dir, record, may_grow):
        return nothing_to_do(config.run_dir)
    with signals.asking():
        return into_folder(words, found, config, record, may_grow)


def nothing_to_do(folder: Path) -> int:
    from . import runs

    say(f"{folder} holds this run, finished; nothing to do. Report: {folder / runs.REPORT}")
    return 0


def into_folder(
    words: list[str], found: own.Found, config: Any, record: dict[str, Any], may_grow: Sequence[str]
) -> int:
    """Run an experiment in its folder: from the beginning, or from where an earlier start was ended."""
    from hypertrail_data.used import recording

    from . import display, engines, processes, runs, threads

    module = found.module
    study = experiments.is_study(module)
    engine = engines.load(config.engine)
    began = threads.recorded(config.run_dir)
    with threads.fixed(engine, config.threads, began):
        problem, drawn = with_its_data(module, config)  # an own task may start the devices already
        with engines.starting(engine):
            processes.share(engine, config.devices, problem)
            engine.describe()
    path = config.run_dir or runs.folder_for(record, datetime.datetime.now())
    with (
        engines.compilation_cache(config.compilation_cache, engine),
        processes.folder(engine, path) as path,
        runs.Run(path, record, may_grow) as run,
    ):
        if run.finished:
            return nothing_to_do(path)
        source = found.source.content if found.source else None
        run.describe(words, engine.describe(), (runs.FIGURES,) if study else runs.META_LOOP, source)
        for how, splits in drawn:
            run.data_used(how, splits)
        voice = display.Voice(run.log)
        with recorded(run), recording(run.data_used):
            voice.say(f"run folder: {path}")
            if not run.fresh:
                voice.say("it holds this run, not finished: goes on where that was")
                if line := threads.on_going_on(engine, began):
                    voice.say(line)
            with voice:
                if study:
                    run.begin_study()
                    module.study(config, run, voice)
                    lines: list[dict[str, Any]] = []
                else:
                    if run.fresh and getattr(config, "check", False):
                        check(problem, engine, voice)
                    lines = tune(module, config, problem, engine, run, voice)
                    if hasattr(module, "after"):
                        module.after(config, problem, engine, run, voice)
            show_end(run, voice, lines)
            summary = {} if study else {"meta_iterations": config.meta_iterations}
            run.done({**summary, "time": runs.now()})
    return 0


def with_its_data(module: ModuleType, config: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """(the problem of a meta loop, else None; how data were drawn for it, and the splits that this gave). Refuses what cannot be
    done, before there is a folder."""
    from hypertrail_data.used import recording

    drawn: list[tuple[str, Any]] = []
    with recording(lambda how, splits: drawn.append((how, splits))):
        if experiments.is_study(module):
            refuse_early(module, config)
            return None, drawn
        problem = build(module, config)
    refuse_method(config, problem)
    return problem, drawn or [("the problem", problem.splits)]


def check(problem: Any, engine: Any, voice: Any) -> None:
    """Compare the hypergradient of an own task with differences of short trainings. VerificationFailure where they differ."""
    for line in engine.check(problem):
        voice.say(line)


def show_end(run: Any, voice: Any, lines: Sequence[dict[str, Any]]) -> None:
    """The closing tables and the report. All of it can be made again from the folder, so where it fails the run is done all the
    same; a full disk and a stop are told as such."""
    from . import display
    from .report.writing import write_report
    from .sections import own_sections

    try:
        own = own_sections(run.path)
        display.show_end(voice, lines, own, write_report(run.path, "done", own))
    except (FolderLost, Stopped):
        raise
    except Exception as problem:
        if getattr(problem, "errno", None) in NO_ROOM or traceback_wanted():
            raise
        words = f"the report was not written ({type(problem).__name__}: {problem}); hypertrail report {run.path} tries again"
        voice.say(f"warning: {words}")


def refuse_early(module: ModuleType, config: Any) -> None:
    """What a study lacks (data, above all) it says before it has a folder: by `ready`, or by building its `problem`."""
    from .experiments._common import built

    ask = getattr(module, "ready", None) or getattr(module, "problem", None)
    if ask is not None:
        built(ask, config)


def refuse_method(config: Any, problem: Any) -> None:
    """What the method or the trajectory cannot do is said before there is a folder."""
    from . import keeping, methods, refusals, tuning

    refusals.refuse_too_large(problem)
    method, keep = methods.parse_method(config.method), keeping.parse_keep(config.trajectory, Path())
    kept = tuning.keep_for(method, tuning.beside(config.compare_exact, method), keep)
    refusals.refuse_plan(problem, method, kept)


def tune(module: ModuleType, config: Any, problem: Any, engine: Any, run: Any, voice: Any) -> list[dict[str, Any]]:
    """The meta loop of an experiment, into its folder; the lines of metrics.jsonl."""
    from . import methods, tuning

    return tuning.into_run(
        run,
        problem,
        engine,
        methods.parse_method(config.method),
        module.rule(config),
        config.meta_iterations,
        config.compare_exact,
        steps_of(module, config, problem),
        config.trajectory,
        voice.report,
        voice.finished,
        problem_for(module, config, problem),
    )


def verify_command(words: list[str], name: str) -> int:
    if name == "everything":
        from . import everything

        return everything.main(parse(everything.Options, words[2:], "hypertrail verify everything", everything.__doc__))
    from . import verify

    module = own.find(name).module
    if not hasattr(module, "problem"):
        raise UsageError(
            f"{name} is a study without a problem of its own; hypertrail verify has nothing to check in it"
        )
    options, default = verify.options(module)
    config = parse(options, words[2:], f"hypertrail verify {name}", verify.__doc__, default)
    return verify.main(module, config, name)


def compare_command(words: list[str], a: str, b: str) -> int:
    from .report import compare

    _, out = operands_and_out(words, at_most=2)
    with looking_at(f"{a} and {b}"):
        return compare.main(Path(a), Path(b), out)


def report_command(words: list[str], *first: str) -> int:
    from .report import writing

    folders, out = operands_and_out(words)
    with looking_at(" and ".join(folders)):
        return writing.main([Path(one) for one in folders], out)


def plot_command(words: list[str], folder: str) -> int:
    from .report import plot

    (_, *names), out = operands_and_out(words, at_most=2)
    with looking_at(folder):
        return plot.main(Path(folder), names[0] if names else None, out)


def export_tensorboard_command(words: list[str], *first: str) -> int:
    from .report import events

    folders, out = operands_and_out(words)
    with looking_at(" and ".join(folders)):
        return events.main([Path(one) for one in folders], out)


def operands_and_out(words: list[str], at_most: int | None = None) -> tuple[list[str], Path | None]:
    """What stands behind the command, and the path behind --out wherever it stands."""
    command, *rest = words
    operands, out, place = [], None, iter(rest)
    for word in place:
        if word == "--out" or word.startswith("--out="):
            given = next(place, "") if word == "--out" else word.removeprefix("--out=")
            if not given:
                raise UsageError(f"hypertrail {command} --out needs a path; see hypertrail {command} --help")
            out = Path(given)
        elif word.startswith("-"):
            raise UsageError(f"hypertrail {command} knows no {word}, only --out; see hypertrail {command} --help")
        else:
            operands.append(word)
    if at_most is not None and len(operands) > at_most:
        raise UsageError(f"hypertrail {command} takes at most {at_most} names, got {' '.join(operands)}")
    return operands, out


def launch_command(words: list[str], name: str) -> int:
    from .launch import command

    return command.main(name, words[2:], words)


def status_command(words: list[str]) -> int:
    from .launch import status

    return status.main(parse(status.Options, words[1:], "hypertrail status", status.__doc__))


def collect_command(words: list[str]) -> int:
    from .launch import collect

    return collect.main(parse(collect.Options, words[1:], "hypertrail collect", collect.__doc__))


COMMANDS: dict[str, tuple[Callable[..., int], str, str]] = {
    "list": (list_command, "", "The declared experiments."),
    "run": (run_command, "EXPERIMENT ...", "Run an experiment. `hypertrail run EXPERIMENT --help` shows its settings."),
    "verify": (
        verify_command,
        "EXPERIMENT ...",
        "Check an experiment's hypergradient against finite differences and the other engine; `everything`: all methods, "
        "hyperparameters and dynamics on a tiny network.",
    ),
    "compare": (
        compare_command,
        "RUN_A RUN_B [--out DIR]",
        "Two run folders side by side, meta-iteration by meta-iteration and step by step, and where they part beyond the "
        "tolerance table.\n--out DIR: the same as compare.csv, and as a figure, compare.png and compare.pdf.",
    ),
    "report": (
        report_command,
        "RUN [RUN ...] [--out DIR]",
        "A folder with index.html about one run, or several side by side: interactive figures (the report extra) that need "
        "no network, tables, and every figure as PNG and PDF.\n--out DIR: the folder; else RUN/report (and RUN/report.html, "
        "the same in one file with still pictures), or for several runs a new reports/<time> in the folder that holds them.",
    ),
    "plot": (
        plot_command,
        "RUN [FIGURE] [--out FILE]",
        "One figure of a run; without a name, which figures there are.\n--out FILE: ends in .png, .pdf or .svg; else "
        "RUN/figures/FIGURE.png.",
    ),
    "export-tensorboard": (
        export_tensorboard_command,
        "RUN [RUN ...] [--out DIR]",
        "Scalars and histograms of runs as event files for `tensorboard --logdir DIR` (the track extra).\n--out DIR: the "
        "folder, with one in it for each run; else RUN/tensorboard, of each run.",
    ),
    "launch": (
        launch_command,
        "EXPERIMENT ...",
        "Run an experiment for many seeds and settings. `hypertrail launch EXPERIMENT --help` shows how.",
    ),
    "status": (status_command, "[FOLDER] ...", "How far the runs of a folder or a launch are."),
    "collect": (collect_command, "[FOLDER ...] ...", "Many runs in one table and figure."),
}


# -- pieces -------------------------------------------------------------------------------------------------------------


def build(module: ModuleType, config: Any) -> Any:
    """The experiment's problem; what network, splits or schedule refuse is a usage error."""
    from .experiments._common import built

    return built(module.problem, config)


def steps_of(module: ModuleType, config: Any, problem: Any) -> Callable[[int], int] | None:
    """T of each meta-iteration, where the experiment says so itself."""
    return (lambda k: module.steps(config, problem, k)) if hasattr(module, "steps") else None


def problem_for(module: ModuleType, config: Any, problem: Any) -> Callable[[int], Any] | None:
    """The problem of each meta-iteration, where the experiment takes another one each time."""
    return (lambda k: module.problem_for(config, problem, k)) if hasattr(module, "problem_for") else None


@contextlib.contextmanager
def recorded(run: Any) -> Iterator[None]:
    """What stops a run is written into its folder: FAILED for an error, a line in the log for what lets it go on later.

    Stopped becomes NoProgress where the time of a job was up (SIGUSR2) and nothing was won in it.
    """
    before = run.reached()
    try:
        yield
    except KeyboardInterrupt:
        run.log("stopped by SIGINT")
        raise KeyboardInterrupt(f"stopped by SIGINT; run the same command with --run-dir {run.path} to go on") from None
    except (FolderLost, OtherData):  # nothing is written any more, or the run is as it was
        raise
    except Stopped as stopped:
        stuck = stopping.asked() == signal.SIGUSR2.name and not run.reached().beyond(before)
        message = f"{stopped}; {more_time(run)}" if stuck else str(stopped)
        run.log(message)
        raise (NoProgress if stuck else Stopped)(f"{message}: {run.path}") from None
    except Exception as problem:
        message = f"{type(problem).__name__}: {problem}"
        if getattr(problem, "exit_code", None) == AGAIN or getattr(problem, "errno", None) in NO_ROOM:
            with contextlib.suppress(OSError):  # no room for this line either
                run.log(f"stopped: {message}")
            raise
        run.log(f"failed: {message}")
        with contextlib.suppress(Exception):  # what stopped the run is told, not what else went wrong on the way out
            from .report.writing import write_report

            write_report(run.path, f"failed: {message}")
        run.failed(message)
        raise


def more_time(run: Any) -> str:
    """What a run needs whose job was too short for it."""
    from .runs import NO_PROGRESS

    return f"{NO_PROGRESS}: needs a longer --time{', or a new run with --trajectory disk' if lost_with_it(run) else ''}"


def lost_with_it(run: Any) -> bool:
    """Whether a training is lost with the process only because all its states are kept in memory."""
    from . import keeping, methods, tuning

    config = run.record["config"]
    if "method" not in config or "trajectory" not in config:
        return False
    method, keep = methods.parse_method(config["method"]), keeping.parse_keep(config["trajectory"], run.path)
    kept = tuning.keep_for(method, tuning.beside(config["compare_exact"], method), keep)
    return kept == keep and not keeping.from_middle(kept)


def parse(config: type[C], words: Sequence[str], prog: str, doc: str | None, default: Any = None) -> C:
    """The config from the command line, by tyro. Its boxed complaints become one UsageError line."""
    return parse_known(config, words, prog, doc, default, every=True)[0]


def parse_known(
    config: type[C], words: Sequence[str], prog: str, doc: str | None, default: Any = None, every: bool = False
) -> tuple[C, list[str]]:
    """The same, and the words that are no settings of `config`; every: there must be none."""
    import tyro

    for word in words:
        refuse_word(word, prog)
    said = io.StringIO()
    asked = {"default": default} if default else {}
    try:
        with contextlib.redirect_stderr(said), bounded_width():
            out = tyro.cli(config, args=words, prog=prog, description=doc, return_unknown_args=not every, **asked)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        complaint = one_line(said.getvalue())
        raise UsageError(f"{complaint}{'' if complaint.endswith('?') else ';'} see {prog} --help") from None
    return (out, []) if every else out


def refuse_word(word: str, prog: str) -> None:
    """UsageError for what tyro would take for its own, or no parser reads: Python reads whole numbers of 4,300 digits at most."""
    if word.startswith("--tyro-"):  # scripts that complete words, which know no `hypertrail COMMAND`
        raise UsageError(f"Unrecognized options: {word}; see {prog} --help")
    if not word:
        raise UsageError(
            f"an empty word stands on the command line: is a variable of the shell empty? See {prog} --help"
        )
    digits = max(map(len, re.findall(r"\d+", word)), default=0)
    if digits > MOST_DIGITS:
        raise UsageError(
            f"{word} holds a number of {digits:,} digits, expected at most {MOST_DIGITS:,}: no setting is so large; "
            f"see {prog} --help"
        )


def one_line(boxed: str) -> str:
    """tyro's box (title, complaint, suggestions, a pointer to the help) in one line: the complaint, and what was meant."""
    rows = [line.strip("│╭╮╰╯ ") for line in boxed.splitlines()[1:]]  # without the title
    sections = [one for one in re.split(r"^[─-]+$", "\n".join(rows), flags=re.MULTILINE) if one.strip()]
    complaint = " ".join(sections[0].split()) if sections else boxed
    complaint = re.sub(r"^Error parsing [A-Z]\w*: ", "", complaint).replace(" .", ".").rstrip(".")
    meant = next((re.search(r"--[\w-]+", one) for one in sections[1:] if "Perhaps you meant" in one), None)
    return f"{complaint}; did you mean {meant.group()}?" if meant else complaint


@contextlib.contextmanager
def terminations() -> Iterator[None]:
    """SIGTERM raises Terminated while the command works; a run has its own way with it (signals.py)."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: somebody else's process
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def traceback_wanted() -> bool:
    return os.environ.get("HYPERTRAIL_TRACEBACK", "") not in ("", "0")
