"""The scripts for several nodes, run: torchrun really, SLURM with commands of its names that do here what it would."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from safetensors.torch import load_file
from test_cli import write_config, write_data
from tiny import tiny_folder

ROOT = Path(__file__).parents[1]

SRUN = """#!/usr/bin/env bash
# Two nodes with a task each, and where scancel finds them.
for node in 0 1; do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_LOCALID=0 "$@" & echo $! >> tasks
done
for task in $(cat tasks); do wait "$task" || exit; done
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> calls
kill -TERM $(cat tasks)
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> calls
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    """A clone with the scripts, whose environment is that of these tests, and a small run to train."""
    write_program(tmp_path / "scripts/env.sh", "")
    write_program(tmp_path / ".venv/bin/python", f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        write_program(tmp_path / "bin" / name, text)
    return tmp_path


def edited(place: Path, name: str, **lines: str) -> Path:
    """The script with other values in the lines that its reader is to edit."""
    text = (ROOT / "scripts" / name).read_text()
    for old, new in lines.values():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    write_program(place / "scripts" / name, text)
    return place / "scripts" / name


def environment(place: Path, **more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    return os.environ | {"PYTHONPATH": paths, "PATH": path, "OMP_NUM_THREADS": "1"} | more


def free_port(first: int, last: int) -> int:
    for port in range(first, last):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError(f"no free port from {first} to {last}")


def slurm(place: Path, job: int) -> dict[str, str]:
    """What sbatch sets for two nodes with a task each; here both are this machine."""
    return environment(
        place,
        SLURM_SUBMIT_DIR=str(place),
        SLURM_JOB_ID=str(job),
        SLURM_NNODES="2",
        SLURM_NTASKS="2",
        SLURM_NTASKS_PER_NODE="1",
        SLURM_NODELIST="localhost,localhost",
    )


def adapter(place: Path, run: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(place / f"runs/{run}/version_0/checkpoints/step{step}/adapter_model.safetensors")


def test_torchrun_and_slurm_train_the_same_and_go_on(place):
    tiny_folder()
    write_data(place)
    options = ["--config", write_config(place, trainer__max_steps=2, data__init_args__prompts_per_batch=2)]

    def run(script: Path, env: dict[str, str], *more: str) -> str:
        command = ["bash", str(script), *options, *more]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr + done.stdout

    port = free_port(29600, 29999)
    torchrun = edited(
        place,
        "train_torchrun.sh",
        processes=("processes=8 ", "processes=2 "),
        head=("head=localhost:29500 ", f"head=localhost:{port} "),
        run=("run=train ", "run=torchrun "),
    )
    assert "MEMBER: 2/2" in run(torchrun, environment(place))

    job = 120_000 + free_port(15000, 24999) - 15000
    sbatch = edited(place, "train_slurm.sh", run=("run=train ", "run=slurm "))
    assert "MEMBER: 2/2" in run(sbatch, slurm(place, job), "--trainer.max_steps", "1")
    assert not (place / "calls").exists()  # nothing to queue again
    (place / "tasks").unlink()
    said = run(sbatch, slurm(place, job))
    assert "Restoring states from the checkpoint path" in said
    assert [path.name for path in (place / "runs/slurm").iterdir()] == ["version_0"]

    expected, got = adapter(place, "torchrun", 2), adapter(place, "slurm", 2)
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in expected.items())
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_job_whose_time_is_up_stops_its_tasks_and_then_queues_itself_again(place):
    write_program(
        place / ".venv/bin/python",
        "#!/usr/bin/env bash\n"
        "trap 'echo saved $SLURM_PROCID >> calls; exit 0' TERM\n"
        "echo ready >> ready-$SLURM_PROCID\n"
        "while true; do sleep 0.05; done\n",
    )
    for number in (0, 1):
        os.mkfifo(place / f"ready-{number}")
    script = edited(place, "train_slurm.sh")
    job = subprocess.Popen(["bash", str(script), "--config", "x.yaml"], cwd=place, env=slurm(place, 77))
    for number in (0, 1):  # returns once that task can be told
        assert (place / f"ready-{number}").read_text() == "ready\n"
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=60)
    calls = (place / "calls").read_text().splitlines()
    assert calls[0] == "scancel --signal=TERM 77"
    assert sorted(calls[1:3]) == ["saved 0", "saved 1"]
    assert calls[3:] == ["scontrol requeue 77"]


def test_a_job_that_fails_is_not_queued_again(place):
    write_program(place / ".venv/bin/python", "#!/usr/bin/env bash\nexit 3\n")
    script = edited(place, "train_slurm.sh")
    done = subprocess.run(["bash", str(script), "--config", "x.yaml"], cwd=place, env=slurm(place, 77))
    assert done.returncode == 3
    assert not (place / "calls").exists()


@pytest.mark.parametrize("name", ["train_torchrun.sh", "train_slurm.sh"])
def test_scripts_say_how_they_are_used(place, name):
    done = subprocess.run(
        ["bash", str(edited(place, name))], cwd=place, env=slurm(place, 77), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], check=True)


def test_the_tasks_of_a_job_find_each_other(monkeypatch):
    """By what the script's #SBATCH lines make SLURM set, as Lightning reads it."""
    variables = {"JOB_ID": "4321987", "NTASKS": "16", "NTASKS_PER_NODE": "8", "NNODES": "2"}
    variables |= {"NODELIST": "gpu[07-08]", "PROCID": "11", "LOCALID": "3", "NODEID": "1", "JOB_NAME": "medgrpo"}
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")  # Lightning sets these: gone again after this test
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert SLURMEnvironment.detect()
    job = SLURMEnvironment()
    job.validate_settings(num_devices=8, num_nodes=2)
    assert (job.world_size(), job.global_rank(), job.local_rank(), job.node_rank()) == (16, 11, 3, 1)
    assert (job.main_address, job.main_port) == ("gpu07", 15000 + 1987)
    lines = (ROOT / "scripts/train_slurm.sh").read_text().splitlines()
    set_by_user = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH --") and "=" in line
    )
    assert set_by_user["ntasks-per-node"] == set_by_user["gpus-per-node"]  # a task for each GPU, and each sees all
    assert set_by_user["job-name"] not in ("bash", "interactive")  # with these Lightning does not see SLURM
    with pytest.raises(ValueError, match="devices=4"):
        job.validate_settings(num_devices=4, num_nodes=2)
