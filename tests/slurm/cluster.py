"""A SLURM of one node, this machine, in a directory of its own: munged, slurmctld and slurmd.

It needs Debian's slurmctld, slurmd, slurm-client and munge, and root.
"""

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
MpiDefault=none
ReturnToService=2
# A job that is put back waits for cred_expire before it may begin: two minutes if nothing is said.
SchedulerParameters=sched_interval=1
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Sockets=2 CoresPerSocket=1 ThreadsPerCore=1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES OverSubscribe=FORCE:4 MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no SLURM here; '' if there can."""
    programs = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if programs:
        return f"{', '.join(programs)} are not installed (slurmctld, slurmd, slurm-client, munge)"
    return "" if os.geteuid() == 0 else "starting a SLURM needs root"


class Slurm:
    """Runs while it is entered."""

    def __init__(self, folder):
        self._folder, self._daemons = Path(folder), []
        self.environment = dict(
            os.environ, PATH=_path(), SLURM_CONF=str(self._folder / "slurm.conf")
        )

    def __enter__(self):
        folder = self._folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(128))
        os.chmod(folder / "munge.key", 0o400)
        host = socket.gethostname().split(".")[0]
        ports = _free_ports(2)
        (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=ports))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key"]
        munge += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
        munge += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
        self._start(munge)
        _until(lambda: (folder / "munge.socket").exists(), "munged")
        self._start(["slurmctld", "-D", "-f", str(folder / "slurm.conf")])
        self._start(["slurmd", "-D", "-N", host, "-f", str(folder / "slurm.conf")])
        _until(lambda: "idle" in self("sinfo", "--noheader", "--format=%T"), "slurmd", folder)
        return self

    def __exit__(self, *_):
        self("scancel", "--state=RUNNING", "--full", "--signal=KILL")
        self("scancel", "--user=root")
        with suppress(RuntimeError):  # what is left then is seen by `left`
            _until(lambda: not self("squeue", "--noheader").strip(), "the queue", self._folder, 20)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __call__(self, *command):
        """The output of one of SLURM's commands."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    def state(self, job):
        """(state, restarts) of a job, such as ('RUNNING', 0)."""
        words = dict(
            word.split("=", 1)
            for word in self("scontrol", "show", "job", job).split()
            if "=" in word
        )
        return words.get("JobState", ""), int(words.get("Restarts", 0))

    def left(self):
        """What still runs of this SLURM and of its jobs: their command lines."""
        lines = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ends just now
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                is_own = str(self._folder).encode() in (process / "environ").read_bytes()
                if is_own and int(process.name) != os.getpid():
                    lines.append(command)
        return lines

    def _start(self, command):
        log = open(self._folder / f"{command[0]}.out", "wb")  # noqa: SIM115 (until the daemon ends)
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        )


def _path():
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _until(condition, what, folder=None, limit_s=60):
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            logs = [path.read_text(errors="replace")[-1500:] for path in folder.glob("slurm*.log")]
            raise RuntimeError(f"{what} did not start in {limit_s} s: {logs}")
        time.sleep(0.2)
