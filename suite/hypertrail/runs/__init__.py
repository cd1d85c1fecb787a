"""The folder of one run: what was asked, where it ran, what came out. One writer at a time; nothing is overwritten.

runs/<experiment>/<time>-<config hash>-s<seed>/
    config.json  env.json  command.txt      written before the first step; what later starts differ in is added
    metrics.jsonl  log.txt                  one line per meta-iteration; what was printed, and every start and stop
    states/0000.npz …                       hyperparameters and outer state BEFORE each meta-iteration (the last: after all)
    hypergradients/0000.npz …               the hypergradient of each meta-iteration ("exact" beside it where compared)
    steps/0000.npz …                        elementary loss of every step, ‖dw‖ of every step back
    trajectory/                             only with --trajectory disk: that of the last hypergradient
    training.npz                            the middle of the training that is at work, or its end while its hypergradient is,
                                            if that takes minutes (midway.py)
    figures/  report.html                   one page that needs nothing but itself, made at the end
    report/  tensorboard/                   where `hypertrail report` and `export-tensorboard` were asked for
    lock                                    who writes here (lock.py); empty: nobody
    DONE or FAILED                          the last file of all; neither: interrupted, or still at work

A study writes lines of its own into metrics.jsonl and .npz files of its own instead of states/, hypergradients/ and steps/;
what its parts found lies in parts/.

What is read from such a folder is not trusted (reading.py), and what is written goes into this folder alone (writing.py,
lock.py). docs/runs.md says what happens after which accident.

The same command with --run-dir on the folder of

    nothing, or an empty folder    begins
    an unfinished run              goes on: a meta loop from its last good state (tuning.py), a study after its last part; what is
                                   computed again is told in midway.py
    a FAILED run                   removes FAILED, says so in log.txt, and tries again from the last good state
    a finished run                 does nothing where its files are as they were written; with more meta-iterations (a meta loop):
                                   goes on from the last update
    a run of another config        is refused, with every field that differs; fields that say where things lie may differ
"""

from .config import config_record, differences, folder_for, identity
from .environment import environment, now
from .names import (
    COMMAND,
    CONFIG,
    DONE,
    ENV,
    FAILED,
    FIGURES,
    GROWS,
    LOCK,
    LOG,
    META_LOOP,
    METRICS,
    NO_PROGRESS,
    REPORT,
    TRAINING,
    WHERE,
)
from .reading import (
    no_progress,
    read_config,
    read_json,
    read_lines,
    read_metrics,
    read_part,
    read_text,
    status,
    writer,
)
from .run import Reached, Run, is_done, refuse_other_data
from .writing import append, dump, write_atomic

__all__ = [
    "COMMAND",
    "CONFIG",
    "DONE",
    "ENV",
    "FAILED",
    "FIGURES",
    "GROWS",
    "LOCK",
    "LOG",
    "META_LOOP",
    "METRICS",
    "NO_PROGRESS",
    "REPORT",
    "TRAINING",
    "WHERE",
    "Reached",
    "Run",
    "append",
    "config_record",
    "differences",
    "dump",
    "environment",
    "folder_for",
    "identity",
    "is_done",
    "no_progress",
    "now",
    "read_config",
    "read_json",
    "read_lines",
    "read_metrics",
    "read_part",
    "read_text",
    "refuse_other_data",
    "status",
    "write_atomic",
    "writer",
]
