"""A checkpoint is whole or not there, whatever happens while it is written, and loads exactly or with a reason."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lejepa_med.errors import UserError, WeightsError
from lejepa_med.training import checkpoint as checkpoint_module
from lejepa_med.training.checkpoint import Checkpoints
from lejepa_med.training.checkpoint_file import FORMAT_VERSION, Hashing, digest_file, load_checkpoint
from lejepa_med.training.host_copy import HostCopy
from lejepa_med.whole_files import file_digest

STORED = Path(__file__).parent / "stored" / "version_1"
LARGE = 2**20


def state_of(step: int, numbers: int = 64) -> dict[str, Any]:
    """What a trainer would save; every number says the step."""
    weights = torch.full((numbers // 4, 4), float(step)).t()
    return {"model": {"w": weights}, "optimizer": {"state": {0: {"exp_avg": weights.clone()}}, "groups": [(0.9, None)]}}


def saved(run: Path, *steps: int, keep: int = 9) -> Path:
    """RUN/checkpoints with one checkpoint per step."""
    (run / "config.yaml").parent.mkdir(parents=True, exist_ok=True)
    with Checkpoints(run, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step))
    return run / "checkpoints"


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def both(*steps: int) -> set[str]:
    return {f"step_{step}.pt{suffix}" for step in steps for suffix in ("", ".sha256")}


def put(folder: Path, step: int, state: Any) -> None:
    """A file with the name and digest of a checkpoint, and `latest` that names it."""
    file = folder / f"step_{step}.pt"
    torch.save(state, file)
    digest_file(file).write_text(file_digest(file))
    (folder / "latest").write_text(file.name)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    (tmp_path / "spec.yaml").write_text("version: 1\n")
    folder = saved(tmp_path, 1, 2)
    state = load_checkpoint(folder)
    assert torch.equal(state["model"]["w"], state_of(2)["model"]["w"])
    assert state["optimizer"]["groups"] == [(0.9, None)] and state["optimizer"]["state"][0]["exp_avg"].shape == (4, 16)
    assert (state["step"], state["format"], state["score"]) == (2, FORMAT_VERSION, None)
    assert (state["config"], state["spec"], state["code_version"]) == ("seed: 3\n", "version: 1\n", "0.1.0")
    assert (folder / "step_2.pt.sha256").read_text() == file_digest(folder / "step_2.pt")
    assert names(folder) == both(1, 2) | {"latest"}


def test_training_goes_on_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is that of the moment of `save`, and a second write waits for the first."""
    go_on, order = threading.Event(), list[str]()
    write = torch.save

    def slow(state: Any, stream: Any) -> None:
        assert go_on.wait(60)
        order.append(f"wrote {state['step']}")
        write(state, stream)

    monkeypatch.setattr(checkpoint_module.torch, "save", slow)
    checkpoints, state = Checkpoints(tmp_path, 9), state_of(1)
    checkpoints.save(1, state)
    state["model"]["w"].fill_(-1)
    checkpoints.check()
    assert not (tmp_path / "checkpoints" / "latest").exists()
    threading.Timer(0.2, lambda: (order.append("released"), go_on.set())).start()
    checkpoints.save(2, state)
    assert order == ["released", "wrote 1"] or order == ["released", "wrote 1", "wrote 2"]
    checkpoints.close()
    assert order == ["released", "wrote 1", "wrote 2"]
    assert load_checkpoint(tmp_path / "checkpoints")["model"]["w"].unique().tolist() == [-1]
    (tmp_path / "checkpoints" / "latest").write_text("step_1.pt")
    assert load_checkpoint(tmp_path / "checkpoints")["model"]["w"].unique().tolist() == [1]


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {1: 0.9, 2: 0.5, 3: None, 4: 0.7, 5: float("nan"), 6: 0.5}
    with Checkpoints(tmp_path, 2) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state_of(step), score)
        assert checkpoints.load("best")["step"] == 2 and checkpoints.load("best")["score"] == 0.5
        assert checkpoints.load()["step"] == 6
        assert names(tmp_path / "checkpoints") == both(2, 5, 6) | {"latest", "best"}
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(7, state_of(7), 0.4)
        assert checkpoints.load("best")["step"] == 7
    assert names(tmp_path / "checkpoints") == both(6, 7) | {"latest", "best"}


def test_without_a_score_there_is_no_best(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    with pytest.raises(WeightsError, match="no checkpoint has a held-out loss; take `latest`"):
        load_checkpoint(folder, "best")


def test_going_on_from_an_older_one_replaces_the_later_ones(tmp_path: Path) -> None:
    """Else the last k by number would be those of a past that was given up."""
    folder = saved(tmp_path, 2, 4, 6, keep=3)
    (folder / "latest").write_text("step_2.pt")
    (folder / "step_5.pt.sha256").write_text("left behind by a kill")
    assert saved(tmp_path, 4, keep=3) == folder
    assert load_checkpoint(folder)["step"] == 4
    assert names(folder) == both(2, 4) | {"latest"}
    assert (folder / "step_4.pt.sha256").read_text() == file_digest(folder / "step_4.pt")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flipped, "step_6.pt: damaged, its bytes are not those that were written"),
    "truncated": (lambda file: os.truncate(file, file.stat().st_size - 1), "step_6.pt: damaged, its bytes"),
    "empty": (lambda file: file.write_bytes(b""), "step_6.pt: damaged, its bytes"),
    "gone": (lambda file: file.unlink(), "step_6.pt: missing"),
    "no digest": (lambda file: digest_file(file).unlink(), "for step_6.pt.sha256 is missing"),
    "empty digest": (lambda file: digest_file(file).write_text(""), "step_6.pt: damaged, its bytes"),
    "binary digest": (lambda file: digest_file(file).write_bytes(b"\xff\xfe"), "step_6.pt: cannot be read"),
    "weights of others": (lambda file: put(file.parent, 6, {"w": torch.zeros(1)}), "not written by lejepa-med"),
    "a list": (lambda file: put(file.parent, 6, [1, 2]), "step_6.pt: not written by lejepa-med"),
    "format 0": (lambda file: put(file.parent, 6, {"format": 0, "step": 6}), "not written by lejepa-med"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_refused_with_the_one_that_is(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path, 2, 4, 6)
    flipped(folder / "step_4.pt")
    act, problem = DAMAGE[damage]
    act(folder / "step_6.pt")
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    way_out = f"; step_2.pt is whole: write this name into {folder / 'latest'} to go on from there"
    assert message.startswith(f"checkpoint {folder / 'step_6.pt'}: ") and message.endswith(way_out)
    assert problem in message and "\n" not in message
    (folder / "latest").write_text("step_2.pt")
    assert load_checkpoint(folder)["step"] == 2


@pytest.mark.parametrize("text", [None, b"", b"../x.pt", b"\xff"])
def test_a_damaged_pointer(tmp_path: Path, text: bytes | None) -> None:
    problem = "is missing" if text is None else "names no checkpoint"
    folder = saved(tmp_path, 1)
    (folder / "latest").unlink() if text is None else (folder / "latest").write_bytes(text)
    with pytest.raises(WeightsError, match=rf"the file latest {problem}.*; step_1.pt is whole: write this name into"):
        load_checkpoint(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint to resume from; start without --resume"):
        load_checkpoint(tmp_path / "checkpoints")
    folder = saved(tmp_path, 1)
    flipped(folder / "step_1.pt")
    with pytest.raises(WeightsError, match=r"damaged.*; no other one is whole: start a new run"):
        load_checkpoint(folder)


def test_a_newer_format(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    put(folder, 1, {"format": FORMAT_VERSION + 1, "step": 1})
    with pytest.raises(WeightsError, match=f"format {FORMAT_VERSION + 1} is newer than this lejepa-med; upgrade it"):
        load_checkpoint(folder)


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.file, "w")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_inside_is_executed(tmp_path: Path, writer: str) -> None:
    folder, touched = saved(tmp_path, 1), tmp_path / "touched"
    content = {"format": FORMAT_VERSION, "step": 2, "model": Trap(touched)}
    put(folder, 2, content)
    if writer == "pickle":
        (folder / "step_2.pt").write_bytes(pickle.dumps(content))
        digest_file(folder / "step_2.pt").write_text(file_digest(folder / "step_2.pt"))
    with pytest.raises(WeightsError, match=r"step_2.pt: not written by lejepa-med; step_1.pt is whole"):
        load_checkpoint(folder)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("config", "series", "differ"),
    [
        ("seed: 4\nmodel: {name: a, width: 1.0}", "x", "seed"),
        ("seed: 3\nmodel: {name: a, width: 0.5}", "x", "model"),
        ("seed: 3\nmodel: {name: a, width: 1.0}", "y", "the series"),
    ],
)
def test_the_checkpoint_of_another_run(tmp_path: Path, config: str, series: str, differ: str) -> None:
    for run, text, keys in (("mine", "seed: 3\nmodel: {name: a, width: 1.0}", "x"), ("other", config, series)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.yaml").write_text(text)
        (tmp_path / run / "pretraining_series.csv").write_text(keys)
    mine, other = saved(tmp_path / "mine", 1), saved(tmp_path / "other", 2)
    for name in both(2):
        shutil.copy(other / name, mine)
    (mine / "latest").write_text("step_2.pt")
    with pytest.raises(WeightsError, match=rf"step_2.pt: of another run \({differ} differ\); step_1.pt is whole"):
        Checkpoints(tmp_path / "mine", 1).load()
    assert load_checkpoint(mine)["step"] == 2, "who does not ask for a run gets it"


def test_settings_that_may_change_are_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\ntrain: {device: cpu}\nmodel: {name: a}")
    saved(tmp_path, 1)
    (tmp_path / "config.yaml").write_text("seed: 3\ntrain: {device: cuda}\nmodel: {name: a, of_a_later_version: 1}")
    assert Checkpoints(tmp_path, 1).load()["step"] == 1


def test_a_stored_checkpoint_of_format_1(tmp_path: Path) -> None:
    """Written by the first version, before there were a config, a score and an average inside."""
    shutil.copytree(STORED, tmp_path / "checkpoints")
    assert torch.load(STORED / "step_7.pt", weights_only=True)["format"] == 1
    (tmp_path / "config.yaml").write_text("seed: 3")
    state = Checkpoints(tmp_path, 1).load()
    assert (state["format"], state["step"], state["score"], state["average"]) == (FORMAT_VERSION, 7, None, None)
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    network.load_state_dict(state["model"])
    optimizer = torch.optim.AdamW(network.parameters())
    optimizer.load_state_dict(state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert [float(value["step"]) for value in optimizer.state_dict()["state"].values()] == [1] * 4
    assert int(network[1].num_batches_tracked) == 1
    assert [list(of_rank) for of_rank in state["rng"]] == [["cpu"]]
    torch.set_rng_state(state["rng"][0]["cpu"])


def test_format_2_had_the_random_state_of_one_rank(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    rng = torch.arange(4, dtype=torch.uint8)
    put(folder, 1, state_of(1) | {"format": 2, "step": 1, "average": None, "rng": rng})
    state = load_checkpoint(folder)
    assert (state["format"], len(state["rng"])) == (FORMAT_VERSION, 1)
    assert torch.equal(state["rng"][0]["cpu"], rng)


def test_saving_after_format_1_writes_the_present_one(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "checkpoints")
    folder = saved(tmp_path, 8, keep=1)
    assert torch.load(folder / "step_8.pt", weights_only=True)["format"] == FORMAT_VERSION
    assert names(folder) == both(8) | {"latest"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and sys.platform == "linux"
    mounted = mounted and not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)])
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.check_call(["umount", str(folder)])


def test_disk_full(small_disk: Path) -> None:
    """Four of 8 MB do not fit: nothing partial is left, the last good one is, and with room it goes on."""
    checkpoints = Checkpoints(small_disk, 2)
    checkpoints.save(1, state_of(1, LARGE))
    checkpoints.save(2, state_of(2, LARGE))
    with pytest.raises(UserError) as caught:
        checkpoints.close()
    assert re.fullmatch(
        r"training stopped at the checkpoint of step 2: the disk is full \(\d+ MB free, or a quota is used up\); "
        r"the last good checkpoint is step_1\.pt; make room, then go on with --resume",
        str(caught.value),
    )
    assert names(small_disk / "checkpoints") == both(1) | {"latest"}
    assert Checkpoints(small_disk, 2).load()["step"] == 1
    subprocess.check_call(["mount", "-o", "remount,size=40m", str(small_disk)])
    saved(small_disk, 2)
    assert load_checkpoint(small_disk / "checkpoints")["step"] == 2


def test_read_only(small_disk: Path) -> None:
    folder = saved(small_disk, 1)
    subprocess.check_call(["mount", "-o", "remount,ro", str(small_disk)])
    checkpoints = Checkpoints(small_disk, 1)
    checkpoints.save(2, state_of(2))
    with pytest.raises(
        UserError, match=r"cannot be written \(read-only.*last good checkpoint is step_1.pt; change its"
    ):
        checkpoints.save(3, state_of(3))
    checkpoints.close()
    assert load_checkpoint(folder)["step"] == 1


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """Surfaces in `check`, once; an error of the training itself comes first."""
    folder = saved(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE, before[1]))
    try:
        checkpoints = Checkpoints(tmp_path, 1)
        checkpoints.save(2, state_of(2, LARGE))
        assert checkpoints.last_good() == "the last good checkpoint is step_1.pt"
        with pytest.raises(
            UserError, match=r"at the checkpoint of step 2: cannot be written \(file too large\); the last"
        ):
            checkpoints.check()
        checkpoints.check()
        with pytest.raises(ZeroDivisionError), checkpoints:
            checkpoints.save(2, state_of(2, LARGE))
            raise ZeroDivisionError
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(folder) == both(1) | {"latest"}


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from lejepa_med.training.checkpoint import Checkpoints

run, kills, numbers = Path(sys.argv[1]), int(sys.argv[2]), 2 ** 19
folder, moments, amid, reached = run / "checkpoints", random.Random(int(sys.argv[3])), 0, 0

def save_all_the_time(step):
    checkpoints, weights = Checkpoints(run, 2), torch.empty(numbers)
    while True:
        step += 1
        checkpoints.save(step, {"model": {"w": weights.fill_(step)}}, score=1 / step)

for kill in range(kills):
    child = os.fork()
    if not child:
        save_all_the_time(reached)
    give_up = time.monotonic() + 60
    while not (folder / "latest").exists():
        assert time.monotonic() < give_up
    time.sleep(moments.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the child ended on its own"
    amid += any(file.name.startswith(".") for file in folder.iterdir())
    for which in ("latest", "best"):
        if which == "latest" or (folder / "best").exists():
            state = Checkpoints(run, 2).load(which)
            assert state["model"]["w"].unique().tolist() == [state["step"]]
    assert Checkpoints(run, 2).load()["step"] >= reached
    reached = Checkpoints(run, 2).load()["step"]
with Checkpoints(run, 2) as checkpoints:
    checkpoints.save(reached + 1, {})
assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]
assert len(list(folder.glob("step_*"))) == 2 * len(list(folder.glob("step_*.pt")))
print(amid, reached)
"""


def kill(run: Path, kills: int, seed: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(run), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    amid, reached = map(int, done.stdout.split())
    assert amid >= kills / 5 and reached >= kills / 5, "the kills did not fall into the writing"


def test_five_kills_leave_a_loadable_folder(tmp_path: Path) -> None:
    kill(tmp_path, 5, seed=0)


@pytest.mark.long
def test_fifty_kills_leave_a_loadable_folder(tmp_path: Path) -> None:
    kill(tmp_path, 50, seed=1)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as stream:
        hashing = Hashing(stream)
        torch.save(state_of(3, LARGE), hashing)
    assert hashing.end() == file_digest(tmp_path / "a")


def test_a_copy_is_apart_and_its_memory_is_used_again() -> None:
    host, state = (
        HostCopy(),
        {"a": torch.arange(6.0).reshape(2, 3).t(), "b": [torch.ones(2), {"c": None}], "d": (1, "x")},
    )
    first = host.copy(state)
    assert torch.equal(first["a"], state["a"]) and first["a"].stride() == state["a"].stride()
    assert first["b"][1] == {"c": None} and first["d"] == (1, "x")
    places = first["a"].data_ptr(), first["b"][0].data_ptr()
    state["a"].zero_()
    assert first["a"].sum() == 15
    again = host.copy(state | {"b": [torch.zeros(5)]})
    assert again["a"].data_ptr() == places[0] != state["a"].data_ptr() and again["a"].sum() == 0
    assert again["b"][0].shape == (5,)


def test_what_could_not_be_read_back_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a\.0: a PosixPath cannot be read back"):
        HostCopy().copy({"a": [Path("x")]})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_from_a_gpu_is_of_its_moment() -> None:
    """Whatever the stream does after the call does not reach the copy, though the host has not waited."""
    weights = torch.ones(2**26, device="cuda")
    host = HostCopy()
    for value in (1.0, 2.0):
        weights.fill_(value)
        copied: Tensor = host.copy({"w": weights})["w"]
        for _ in range(20):
            weights.mul_(3.0)
        host.wait()
        assert copied.is_pinned() and copied.unique().tolist() == [value]
