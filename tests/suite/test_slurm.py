"""Launching on a real Slurm of one node, started here: submitted, preempted, requeued, cancelled, resumed; the same bits.

Needs slurmctld, slurmd, sbatch and munged (Debian: slurm-wlm, munge); skipped, visibly, where they are not installed.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypertrail import runs

pytestmark = pytest.mark.slow

CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=here NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:1 State=UNKNOWN
PartitionName=low Nodes=here Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=grace Nodes=here PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=here PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
# Some seconds of work on the reference engine, in steps of a fraction of one.
SMALL = ["--engine", "cpu", "--depth", "4", "--growth", "2", "--blocks", "1", "--train", "64", "--valid", "32", "--batch", "16",
         "--steps", "40", "--precision", "float64", "--no-compare-exact"]  # fmt: skip


def found(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin")))


def until(what, seconds=300.0):
    """Wait until what() is true; what it gave. The limit is there so that a test that cannot pass ends."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"still not after {seconds} s"
        time.sleep(0.1)
    return answer


class Slurm:
    """One node and its controller, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        for name in ("state", "spool", "work"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            ports = one.getsockname()[1], two.getsockname()[1]
        host = socket.gethostname().partition(".")[0]
        conf = CONF.format(host=host, ports=ports, user=getpass.getuser(), folder=folder)
        (folder / "slurm.conf").write_text(conf)
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "gres.conf").write_text("NodeName=here Name=gpu File=/dev/null\n")  # to be asked for; nobody opens it
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        here = self.folder
        options = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log",
                   "seed-file": "munged.seed"}  # fmt: skip
        self.spawn("munged", "--foreground", "--force", *(f"--{key}={here / name}" for key, name in options.items()))
        until(lambda: (here / "munge.socket").exists())
        self.spawn("slurmctld", "-D", "-i", "-f", here / "slurm.conf")
        self.spawn("slurmd", "-D", "-f", here / "slurm.conf", "-N", "here")
        until(lambda: set(self.call("sinfo", "-h", "-o", "%T").stdout.split()) == {"idle"})

    def spawn(self, program, *words) -> None:
        with open(self.folder / f"{program}.out", "w") as out:
            command = [found(program), *map(str, words)]
            self.processes.append(
                subprocess.Popen(command, env=self.env, stdout=out, stderr=out, start_new_session=True)
            )

    def stop(self) -> None:
        """Cancel what is left, then end the daemons, each by its number."""
        self.call("scancel", "--me")
        try:
            until(lambda: not self.queue())
        finally:
            for process in reversed(self.processes):
                process.terminate()
                process.wait(20)

    def call(self, *words) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(one) for one in words],
            env=self.env,
            capture_output=True,
            text=True,
            cwd=self.folder / "work",
            check=False,
        )

    def ask(self, *words) -> str:
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def hypertrail(self, *words) -> str:
        return self.ask(sys.executable, "-m", "hypertrail", *words)

    def queue(self) -> dict[str, str]:
        return dict(line.split() for line in self.ask("squeue", "-h", "-r", "-o", "%i %T").splitlines())

    def at_once(self, *jobs) -> None:
        """A requeued job waits for two minutes; not here."""
        for job in jobs:
            until(lambda job=job: self.queue().get(job) == "PENDING")
            time.sleep(2)  # within the second of its requeue slurmd would refuse it: "Job credential revoked"
            self.ask("scontrol", "update", f"jobid={job}", "starttime=now")

    def take_the_node(self) -> str:
        """A job of higher priority that wants everything, for a second."""
        return self.ask(
            "sbatch", "--parsable", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
        ).strip()

    @property
    def work(self) -> Path:
        return self.folder / "work"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [program for program in PROGRAMS if found(program) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} not found (Debian: slurm-wlm, munge)")
    one = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        one.start()
        yield one
    finally:
        one.stop()


def launch(slurm, *words) -> tuple[Path, list[str], list[Path]]:
    """Launch drmad-digits; the launch's folder, its jobs, and the folders of its runs."""
    said = slurm.hypertrail("launch", "drmad-digits", *SMALL, *words)
    folder = slurm.work / re.search(r"hypertrail status (\S+)", said)[1]
    from hypertrail.launch import launches

    planned = launches.read(folder).runs
    return folder, [run.jobs[-1] for run in planned], [run.folder for run in planned]


def numbers(folder: Path):
    """Every number of a run that does not tell the time or the memory it took."""
    lines = runs.read_metrics(folder)
    for line in lines:
        line.pop("memory")
        for cost in line["cost"].values():
            del cost["seconds"]
    return lines, {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.npz"))}


def at_work(*folders: Path) -> bool:
    return all(len(runs.read_metrics(folder)) > 1 for folder in folders)


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def of_array(job: str) -> bool:
    return re.fullmatch(r"\d+_\d+", job) is not None


def test_an_array_that_is_preempted_and_requeued_ends_with_the_same_bits(slurm):
    words = ("--seeds", "0:2", "--meta-iterations", "15", "--partition", "low", "--time", "10", "--cpus", "2")
    folder, jobs, (a, b) = launch(slurm, *words)
    assert all(map(of_array, jobs))
    until(lambda: at_work(a, b))
    assert "2 of 2 runs: running\nnothing to submit" in slurm.hypertrail("launch", "drmad-digits", *SMALL, *words)

    high = slurm.take_the_node()  # no time of grace: Slurm sends SIGTERM and requeues
    until(lambda: slurm.queue().get(high) in ("RUNNING", None))
    assert "2 runs: 2 waiting" in slurm.hypertrail("status", folder)
    assert all("stopped by SIGTERM after" in log(one) for one in (a, b)), log(a)
    slurm.at_once(*jobs)
    until(lambda: all("taken up by process" in log(one) for one in (a, b)))
    assert "2 runs: 2 running" in slurm.hypertrail("status", folder)

    slurm.ask("scontrol", "requeue", jobs[0])
    until(lambda: log(a).count("stopped by SIGTERM") == 2)
    slurm.at_once(jobs[0])
    until(lambda: not slurm.queue(), 900)
    assert "2 runs: 2 done" in slurm.hypertrail("status", folder)

    for seed, one in enumerate((a, b)):
        alone = slurm.work / f"alone-{seed}"
        slurm.hypertrail("run", "drmad-digits", *SMALL, "--meta-iterations", "15", "--seed", seed, "--run-dir", alone)
        assert numbers(one) == numbers(alone)
    assert "nothing to submit" in slurm.hypertrail("launch", "drmad-digits", *SMALL, *words)
    assert "2 runs counted" in slurm.hypertrail("collect", folder)
    assert (folder / "collected" / "drmad-digits.png").stat().st_size > 10_000


def test_a_stopped_job_requeues_itself_and_a_cancelled_one_does_not(slurm):
    words = ("--seeds", "7", "--meta-iterations", "15", "--partition", "grace", "--time", "10")
    folder, (job,), (run,) = launch(slurm, *words)
    assert not of_array(job)
    until(lambda: at_work(run))
    slurm.take_the_node()  # with time of grace: a job that ends in it is not requeued by Slurm
    until(lambda: slurm.queue().get(job) == "PENDING")
    assert log(run).count("stopped by SIGTERM") == 1
    assert "Restarts=1" in slurm.ask("scontrol", "show", "job", job)
    slurm.at_once(job)
    until(lambda: "taken up by process" in log(run))

    slurm.ask("scancel", job)
    until(lambda: job not in slurm.queue())
    assert log(run).count("stopped by SIGTERM") == 2
    assert "1 runs: 1 stopped" in slurm.hypertrail("status", folder)
    assert "JobState=CANCELLED" in slurm.ask("scontrol", "show", "job", job)

    again, (other,), (same,) = launch(slurm, *words)
    assert (again, same) == (folder, run)
    assert other != job
    until(lambda: not slurm.queue(), 900)
    assert runs.status(run) == "done"


def test_when_its_time_is_up_it_stops_and_is_requeued(slurm):
    words = ("--seeds", "8", "--meta-iterations", "1000", "--time", "1", "--notice", "40")
    folder, (job,), (run,) = launch(slurm, *words)
    until(lambda: slurm.queue().get(job) == "PENDING" and run.exists())
    assert log(run).count("stopped by SIGUSR2") == 1
    assert "1 runs: 1 waiting" in slurm.hypertrail("status", folder)
    slurm.ask("scancel", job)


def test_what_wins_nothing_in_its_time_is_not_requeued(slurm):
    words = (
        "--seeds",
        "9",
        "--meta-iterations",
        "1",
        "--method",
        "exact",
        "--steps",
        "100000",
        "--time",
        "1",
        "--notice",
        "45",
    )
    folder, (job,), (run,) = launch(slurm, *words)
    until(lambda: job not in slurm.queue())
    assert log(run).count("stopped by SIGUSR2") == 1
    said = slurm.hypertrail("status", folder)
    assert (
        "stopped: no progress since the last start: needs a longer --time, or a new run with --trajectory disk" in said
    )
    assert "Restarts=0" in slurm.ask("scontrol", "show", "job", job)


def test_what_slurm_refuses_is_one_line(slurm):
    done = slurm.call(sys.executable, "-m", "hypertrail", "launch", "rosenbrock", "--partition", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"hypertrail: Slurm refused the jobs: .*invalid partition specified: nowhere.*\n", done.stderr)
    assert not list(slurm.work.glob("runs/launches/*-rosenbrock"))


def test_the_script_of_a_dry_run_is_what_is_submitted(slurm):
    words = ("launch", "rosenbrock", "--engine", "cpu", "--grid", "steps=5,6", "--setup", "true")
    shown = slurm.hypertrail(*words, "--dry-run")
    shown = shown[shown.index("#!/bin/bash") : shown.index("\nnothing was submitted")]
    said = slurm.hypertrail(*words)
    folder = slurm.work / re.search(r"hypertrail status (\S+)", said)[1]
    (written,) = (folder / "jobs").glob("*_submission.sh")
    plain = shown.replace("'", "").replace("<time>-rosenbrock", folder.name).strip()
    assert written.read_text().replace("'", "").strip() == plain
    until(lambda: not slurm.queue())
    assert "2 runs: 2 done" in slurm.hypertrail("status", folder)


def test_the_batch_file_for_a_gpu_node(slurm, root):
    """On the GPU of gres.conf, which computes nothing: the engine is the reference."""
    file = root / "gpu-ver" / "slurm" / "run.sbatch"
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    slurm.env["PATH"] = path
    slurm.ask("sbatch", "--test-only", file, "drmad-digits", "runs/one")
    words = (file, "drmad-digits", "one", *SMALL, "--meta-iterations", "15")
    job = slurm.ask("sbatch", "--parsable", "--partition", "grace", *words).strip()
    run = slurm.work / "one"
    until(lambda: at_work(run))
    slurm.take_the_node()
    until(lambda: slurm.queue().get(job) == "PENDING")
    slurm.at_once(job)
    until(lambda: not slurm.queue(), 900)
    said = (slurm.work / f"hypertrail-{job}.log").read_text()
    assert runs.status(run) == "done", said
    assert log(run).count("stopped by SIGTERM") == log(run).count("taken up by process") == 1
