"""The names of the files in the folder of a run, and the settings that are no part of what a run computes."""

from __future__ import annotations

DONE, FAILED, LOCK, TRAINING = "DONE", "FAILED", "lock", "training.npz"
CONFIG, ENV, COMMAND, METRICS, LOG, REPORT = (
    "config.json",
    "env.json",
    "command.txt",
    "metrics.jsonl",
    "log.txt",
    "report.html",
)
FILES = (CONFIG, ENV, COMMAND, METRICS, LOG, REPORT, DONE, FAILED, LOCK)
TRAJECTORY = "trajectory"
SOURCE = "source.py"  # of an experiment that its user brought
PARTS, ARMS = "parts", "arms"
STUDY = (PARTS, ARMS)  # the folders of what a study has computed for good
STATES, HYPERGRADIENTS, STEPS, FIGURES = "states", "hypergradients", "steps", "figures"
META_LOOP = (STATES, HYPERGRADIENTS, STEPS, FIGURES)  # the folders that a meta loop writes to
FOLDERS = (*META_LOOP, *STUDY, TRAJECTORY)

GROWS = ("meta_iterations",)  # settings of a meta loop that may be larger than they were when its run is taken up again
# Settings that are no part of what is asked for: where things lie, and how the machine is used (threads: see threads.py).
WHERE = ("runs_dir", "run_dir", "data_dir", "compilation_cache", "threads", "source", "check")
NO_PROGRESS = "no progress since the last start"  # in log.txt, where the time of a job was up
