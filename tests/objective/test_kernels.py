"""Every kernel of the Epps-Pulley statistic gives the plain formula, in value and gradient, and `auto` chooses well.

The Triton kernels run in a process of their own: on a GPU, or everywhere through Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lejepa_med.errors import ConfigError
from lejepa_med.objective import LeJEPALoss, SIGReg, characteristic, cpp_kernel, eager_kernel, epps_pulley

# shape of the projections [*batch, sample, slice], their scale, number of knots, t_max
CASES: dict[str, tuple[tuple[int, ...], float, int, float]] = {
    "views": ((3, 64, 21), 1.0, 17, 3.0),
    "two samples": ((2, 33), 1.0, 17, 3.0),
    "one sample": ((1, 5), 1.0, 17, 3.0),
    "several blocks of samples": ((2, 2, 197, 50), 1.0, 17, 3.0),
    "other knots": ((2, 40, 16), 2.0, 9, 5.0),
    "nearly collapsed": ((64, 40), 1e-2, 17, 3.0),
    "far out": ((33, 70), 1e3, 17, 3.0),
    "two samples far out": ((2, 70), 1e3, 17, 3.0),
    "three knots": ((10, 4), 1.0, 3, 3.0),
}
HERE = ("eager", "cpp")


def projections(case: str) -> Tensor:
    shape, scale, _, _ = CASES[case]
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def plain(x: Tensor, num_knots: int, t_max: float) -> Tensor:
    """The trapezoid rule, written as in the paper: stores batch x slice x knots."""
    knots = torch.linspace(0, t_max, num_knots, dtype=x.dtype)
    phi = torch.exp(1j * x[..., None] * knots).mean(-3)
    gauss = torch.exp(-(knots**2) / 2)
    return x.shape[-2] * 2 * torch.trapezoid((phi - gauss).abs() ** 2 * gauss, knots, dim=-1)


@pytest.mark.parametrize("kernel", ["auto", *HERE])
def test_a_share_without_samples_has_sums_of_zero(kernel: Any) -> None:
    """More ranks than samples: the rank has nothing to add, but takes part."""
    x = torch.zeros(3, 0, 5, requires_grad=True)
    sums = characteristic.characteristic_sums(x, 17, 3 / 16, kernel)
    sums.sum().backward()
    assert sums.shape == (2, 17, 3, 5) and not sums.any()
    assert x.grad is not None and x.grad.shape == x.shape


def value_and_gradient(statistic: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sum over slices, each with another weight."""
    x = x.clone().requires_grad_()
    value = statistic(x)
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype, device=value.device).view_as(value)
    (gradient,) = torch.autograd.grad((weights * value).sum(), x)
    return value.detach().cpu(), gradient.cpu()


def on_kernel(kernel: Any, case: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    _, _, num_knots, t_max = CASES[case]
    return value_and_gradient(lambda x: epps_pulley(x, num_knots, t_max, kernel), projections(case).to(device, dtype))


def far_from_plain(found: tuple[Tensor, Tensor], case: str) -> tuple[float, float]:
    """Largest error of value and of gradient, relative to the largest value and gradient."""
    _, _, num_knots, t_max = CASES[case]
    expected = value_and_gradient(lambda x: plain(x, num_knots, t_max), projections(case).double())
    errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    return errors[0], errors[1]


def tolerance(case: str, dtype: torch.dtype) -> float:
    far = CASES[case][1] > 100
    if dtype == torch.float64:
        return 1e-10 if far else 1e-12
    return 1e-4 if far else 1e-5


@pytest.fixture
def compiler(request: pytest.FixtureRequest) -> None:
    """What needs a C++ compiler is skipped without one; the eager kernel does not."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and parameters.params.get("kernel") == "eager":
        return
    try:
        cpp_kernel.library()
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no C++ compiler here")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """No compiled kernel and no warning given yet, before and after."""
    cached = (
        cpp_kernel.library,
        characteristic._cpp,
        characteristic._inductor,
        characteristic._triton,
        characteristic._warn_once,
    )
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", HERE)
def test_kernel_equals_the_plain_formula(compiler: None, kernel: str, case: str, dtype: torch.dtype) -> None:
    value, gradient = far_from_plain(on_kernel(kernel, case, dtype), case)
    assert value < tolerance(case, dtype) and gradient < tolerance(case, dtype), (value, gradient)


COMPILED = ("views", "two samples", "several blocks of samples", "nearly collapsed", "far out")


@pytest.mark.long
def test_torch_compile_equals_the_plain_formula(compiler: None, tmp_path: Path) -> None:
    """Long: compiling takes some ten seconds. In a process of its own, since it cannot look through the checks of
    shapes that tests put around every function."""
    file = tmp_path / "compiled.pt"
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", __file__, str(file), "compiled"], check=True, timeout=500
    )
    results = torch.load(file, weights_only=True)
    for case in COMPILED:
        value, gradient = far_from_plain(results[case], case)
        allowed = tolerance(case, torch.float32)
        assert value < allowed and gradient < allowed, (case, value, gradient)


def test_where_torch_compile_fails_a_forced_kernel_is_one_sentence(
    forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler in /usr/bin")

    monkeypatch.setattr(characteristic.torch, "compile", broken)
    sentence = r"objective.kernel compiled: torch.compile does not work here \(RuntimeError\); choose auto or eager"
    with pytest.raises(ConfigError, match=sentence):
        epps_pulley(torch.zeros(4, 2), kernel="compiled")


def test_the_base_angle_is_reduced_without_loss() -> None:
    """Its error is multiplied by the number of knots; far out, step * x alone is off by 1e-5."""
    step, x = 0.2, 1e3 * torch.randn(1000, generator=torch.Generator().manual_seed(8))
    exact = torch.exp(1j * step * x.double())
    naive = torch.exp(1j * (step * x))
    assert (eager_kernel.unit_circle(x, step) - exact).abs().max() < 5e-7
    assert (naive - exact).abs().max() > 5e-6


@pytest.mark.parametrize("kernel", HERE)
def test_gradient_against_finite_differences(compiler: None, kernel: Any) -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: epps_pulley(y, kernel=kernel), (x,))


@pytest.mark.parametrize("kernel", HERE)
@pytest.mark.parametrize("samples", [1, 2, 50])
def test_many_knots_reach_the_closed_form(compiler: None, kernel: Any, samples: int) -> None:
    x = torch.randn(samples, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pairs = torch.exp(-((x - x.T) ** 2) / 2).mean()
    cross = torch.exp(-(x**2) / 4).mean()
    exact = math.sqrt(2 * math.pi) * (pairs + 1 / math.sqrt(3)) - 2 * math.sqrt(math.pi) * cross
    torch.testing.assert_close(epps_pulley(x, 401, 8.0, kernel)[0], samples * exact, rtol=1e-9, atol=1e-9)


def test_any_number_of_threads_gives_the_same_bits(compiler: None) -> None:
    x = torch.randn(3, 100, 700, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(lambda y: epps_pulley(y, kernel="cpp"), x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kernel", HERE)
def test_not_a_number_stays_one(compiler: None, kernel: Any) -> None:
    x = torch.zeros(8, 3)
    x[2, 1], x[3, 2] = math.nan, math.inf
    assert epps_pulley(x, kernel=kernel).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("kernel", HERE)
def test_only_the_projections_are_kept_for_backward(compiler: None, kernel: Any) -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()

    def kept(statistic: Any) -> int:
        stored = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: stored.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            statistic(x)
        return sum(t.numel() for t in stored.values())

    assert kept(lambda y: epps_pulley(y, 65, kernel=kernel)) < 2.5 * x.numel()  # the small quadratic form among them
    assert kept(lambda y: plain(y, 65, 3.0)) > 65 * x.numel()


@pytest.mark.parametrize("kernel", HERE)
def test_half_precision_is_cast_up_and_autocast_ignored(compiler: None, kernel: Any) -> None:
    x = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(5)).bfloat16()
    outside = epps_pulley(x.float(), kernel=kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(epps_pulley(x, kernel=kernel), outside)
    assert outside.dtype == torch.float32


def test_auto_compiles_for_large_problems_only(compiler: None) -> None:
    small, large = torch.randn(2, 16, 40), torch.randn(4, 64, characteristic.CPP_FROM // 256)
    for x, kernel in ((small, "eager"), (large, "cpp")):
        for other in HERE:
            same = torch.equal(epps_pulley(x), epps_pulley(x, kernel=other))  # type: ignore[arg-type]
            assert same == (other == kernel), (kernel, other)


@pytest.mark.parametrize("broken", ["compiler missing", "compiler fails", "no folder to write to"])
def test_without_a_compiler_auto_is_eager_and_says_so_once(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    if broken == "no folder to write to":
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    else:
        monkeypatch.setenv("CXX", "/nowhere/g++" if broken == "compiler missing" else "false")
    x = torch.randn(64, characteristic.CPP_FROM // 64, generator=torch.Generator().manual_seed(6))
    with caplog.at_level(logging.WARNING):
        values = [epps_pulley(x), epps_pulley(x)]
    assert all(torch.equal(value, epps_pulley(x, kernel="eager")) for value in values)
    assert len(caplog.messages) == 1
    assert "no C++ compiler works here" in caplog.messages[0] and "/" not in caplog.messages[0]
    with pytest.raises(ConfigError, match=r"objective.kernel cpp: no C.. compiler works here .*choose auto or eager"):
        epps_pulley(x, kernel="cpp")


def test_a_forced_kernel_on_the_wrong_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"objective.kernel triton"):
        LeJEPALoss(num_slices=4, kernel="triton")(torch.zeros(2, 3, 4), num_global=1)


def test_the_setting_reaches_the_kernel_from_the_module(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(7))
    expected = SIGReg(num_slices=8)(z)
    monkeypatch.setattr(cpp_kernel, "sums", lambda x, num_knots, step: x.new_zeros(2, num_knots, x.shape[0], 8))
    assert torch.equal(SIGReg(num_slices=8, kernel="eager")(z), expected)
    assert not torch.allclose(SIGReg(num_slices=8, kernel="cpp")(z), expected)


def triton_results(file: Path, device: str) -> dict[str, Any]:
    """What `write_triton_results` finds in a new process; Triton's interpreter is chosen by the environment."""
    environment = os.environ | {"TRITON_INTERPRET": "0" if device == "cuda" else "1"}
    subprocess.run([sys.executable, __file__, str(file), device], check=True, env=environment, timeout=300)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def write_triton_results(file: str, device: str) -> None:
    results: dict[str, Any] = {
        f"{case} {dtype}": on_kernel("triton", case, dtype, device)
        for case in CASES
        for dtype in (torch.float32, torch.float64)
    }
    repeated = [on_kernel("triton", "several blocks of samples", torch.float32, device) for _ in range(2)]
    results["repeats"] = all(torch.equal(a, b) for a, b in zip(*repeated, strict=True))
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    results["gradcheck"] = torch.autograd.gradcheck(lambda y: epps_pulley(y, kernel="triton"), (x,))
    torch.save(results, file)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton here")),
        pytest.param(
            "cuda",
            marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
        ),
    ],
)
def test_triton_equals_the_plain_formula(tmp_path: Path, device: str) -> None:
    results = triton_results(tmp_path / "triton.pt", device)
    assert results.pop("gradcheck") and results.pop("repeats")
    assert len(results) == 2 * len(CASES)
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            value, gradient = far_from_plain(results[f"{case} {dtype}"], case)
            assert value < tolerance(case, dtype) and gradient < tolerance(case, dtype), (case, dtype, value, gradient)


if __name__ == "__main__":
    if sys.argv[2] == "compiled":
        torch.save({case: on_kernel("compiled", case, torch.float32) for case in COMPILED}, sys.argv[1])
    else:
        write_triton_results(sys.argv[1], sys.argv[2])
