"""Pictures hold what they claim: sides, sizes, regions and reference lines, by their pixels and artists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lejepa_med.backbones import Backbone
from lejepa_med.data.cache import CachedVolume
from lejepa_med.errors import DataError
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.viz.contact_sheet import views_sheet
from lejepa_med.viz.curves import curve_panels, loss_curves, mixing_weight, smoothed
from lejepa_med.viz.pca import pca_picture, token_colours, token_maps
from lejepa_med.viz.slices import grey, middle_slices, plane_slice, square_pixels


class BrightnessTokens(Backbone):
    """Stands in for a network: a token is (mean, mean square, 1 - mean, row) of its 4-voxel patch."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.dim = self.token_dim = 4
        self.spatial_dims, self.in_channels = axes, 1
        self.spec = Spec(preprocess=PreprocessSpec(), inference=InferenceSpec(window=(24,) * axes))
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        self.seen.append(tuple(images.shape[2:]))
        pool = torch.nn.functional.avg_pool3d if self.spatial_dims == 3 else torch.nn.functional.avg_pool2d
        mean = pool(images, 4)
        tokens = torch.cat([mean, mean**2, 1 - mean, torch.zeros_like(mean)], 1)
        return tokens.flatten(2).transpose(1, 2), tuple(mean.shape[2:])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tokens(images)[0].mean(1)

    def intermediate(self, images: torch.Tensor, last: int = 2) -> list[torch.Tensor]:
        return [self.forward(images)] * last


def two_regions(shape: tuple[int, ...]) -> CachedVolume:
    """Dark towards the left of the patient (low R), bright towards the right."""
    array = np.full(shape, 80, np.uint8)
    array[shape[0] // 2 :] = 220
    return CachedVolume("key", "patient", "mri", array, (1.0,) * len(shape))


def test_slices_follow_the_radiological_convention() -> None:
    volume = np.zeros((6, 8, 10), np.uint8)
    volume[5, 7, 9] = 255  # right, anterior, superior
    axial, coronal, sagittal = (
        plane_slice(volume, plane, index) for plane, index in (("axial", 9), ("coronal", 7), ("sagittal", 5))
    )
    assert axial.shape == (8, 6) and coronal.shape == (10, 6) and sagittal.shape == (10, 8)
    for picture in (axial, coronal, sagittal):
        assert picture[0, 0] == 255 and picture.sum() == 255


def test_middle_slices_stand_side_by_side() -> None:
    volume = np.arange(6 * 8 * 10, dtype=np.uint8).reshape(6, 8, 10)
    picture = middle_slices(volume)
    assert picture.shape == (10, 6 + 4 + 6 + 4 + 8)
    np.testing.assert_array_equal(picture[1:9, :6], volume[:, :, 5].T[::-1, ::-1])
    np.testing.assert_array_equal(picture[:, 10:16], volume[:, 4].T[::-1, ::-1])
    np.testing.assert_array_equal(middle_slices(volume[0]), volume[0])


def test_thick_slices_are_stretched_to_square_pixels() -> None:
    picture = np.zeros((10, 6), np.uint8)
    assert square_pixels(picture, "coronal", (1.0, 1.0, 4.0)).shape == (40, 6)
    assert square_pixels(picture, "axial", (1.0, 1.0, 4.0)).shape == (10, 6)


def test_ct_is_shown_through_its_window() -> None:
    assert grey(np.array([-1000, -160, 40, 240, 3000], np.int16)).tolist() == [0, 0, 128, 255, 255]
    assert grey(np.array([0.0, 0.5, 1.0], np.float32)).tolist() == [0, 128, 255]


@pytest.mark.parametrize("axes", [2, 3])
def test_contact_sheet_shows_every_view(axes: int, tmp_path: Path) -> None:
    values = torch.linspace(0.2, 1.0, 10)
    large = values[:4].reshape(2, 2, 1, *(1,) * axes).expand(-1, -1, -1, *(16,) * axes)
    small = values[4:].reshape(3, 2, 1, *(1,) * axes).expand(-1, -1, -1, *(8,) * axes)
    views_sheet([large, small], tmp_path / "views.png", ["first", "second"])
    picture = np.asarray(Image.open(tmp_path / "views.png").convert("L"))
    expected = grey(values.numpy())
    areas = [int((picture == shade).sum()) for shade in expected]
    planes = axes - 1
    assert all(208**2 * planes <= area < 1.1 * 208**2 * planes for area in areas[:4])
    assert all(100**2 * planes <= area < 1.2 * 100**2 * planes for area in areas[4:-1])


def test_contact_sheet_of_global_views_only(tmp_path: Path) -> None:
    views_sheet([torch.full((1, 1, 3, 8, 8), 0.5)], tmp_path / "views.png", ["one"])
    picture = np.asarray(Image.open(tmp_path / "views.png"))
    assert 208**2 <= (picture == 128).all(-1).sum() < 208**2 + 100  # a few pixels at the edges of letters


@pytest.mark.parametrize("axes", [2, 3])
def test_pca_separates_two_regions(axes: int, tmp_path: Path) -> None:
    volumes = [two_regions((24,) * axes), two_regions((24,) * axes)]
    backbone = BrightnessTokens(axes)
    (first, second), shares = token_colours(token_maps(backbone, volumes))
    np.testing.assert_allclose(first, second)
    low, high = first[:2].reshape(-1, 3), first[-2:].reshape(-1, 3)
    assert abs(low[:, 0].mean() - high[:, 0].mean()) > 0.9  # the first component tells the regions apart
    assert low[:, 0].std() < 0.01 and high[:, 0].std() < 0.01
    assert shares[0] > 0.99
    assert pca_picture(backbone, volumes, tmp_path / "tokens.png") == shares
    with Image.open(tmp_path / "tokens.png") as picture:
        assert picture.height == 2 * (axes - 1) * 210 - 10


def test_pca_enlarges_inputs_with_a_tiny_grid(tmp_path: Path) -> None:
    backbone = BrightnessTokens(3)
    backbone.spec = Spec(inference=InferenceSpec(window=(12, 12, 12)))
    item = token_maps(backbone, [two_regions((10, 11, 12))])[0]
    assert backbone.seen == [(12, 12, 12), (24, 24, 24), (24, 24, 24)]
    assert item.tokens.shape == (6, 6, 6, 4) and item.content == (10, 11, 12)


def test_pca_of_a_2d_backbone_on_volumes_takes_the_middle_slice() -> None:
    backbone = BrightnessTokens(2)
    item = token_maps(backbone, [two_regions((20, 24, 9))])[0]
    assert item.content == (20, 24) and item.image.shape == (24, 24)
    assert item.image[12:, 12].max() == pytest.approx(220 / 255) and item.image[:2].max() == 0


def write_run(run: Path, steps: int = 60, lam: float = 0.3) -> None:
    run.mkdir(exist_ok=True)
    lines, diagnostics = [], []
    for step in range(steps):
        prediction, sigreg = 0.5 + 0.01 * step, 3.0 - 0.03 * step
        total = (1 - lam) * prediction + lam * sigreg
        lines.append(
            {"step": step, "total": total, "prediction": prediction, "sigreg": sigreg, "lr": 1e-3, "grad_norm": 2}
        )
        diagnostics.append({"step": step, "feature_rank": 10 + step, "projection_rank": 5.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "diagnostics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in diagnostics[::10]))


def test_curves_hold_the_reference_lines_and_the_record(tmp_path: Path) -> None:
    write_run(tmp_path)
    axes = {panel.get_title(loc="left"): panel for panel in loss_curves(tmp_path).axes}
    dashed = {
        title: [line.get_ydata()[0] for line in panel.lines if line.get_label().startswith(("1.05", "λ"))]
        for title, panel in axes.items()
    }
    assert dashed["SIGReg"] == [1.0525]
    assert dashed["Total loss"] == pytest.approx([0.3 * 1.0525])
    assert dashed["Prediction term"] == []
    points = axes["SIGReg"].lines[0]
    np.testing.assert_allclose(points.get_ydata(), 3.0 - 0.03 * np.arange(60))
    feature_rank = axes["Effective rank"].lines[0]
    np.testing.assert_allclose(feature_rank.get_ydata(), [10, 20, 30, 40, 50, 60])
    assert list(curve_panels(tmp_path)) == ["prediction", "sigreg", "total", "lr", "ranks", "grad_norm"]
    steps = (0, 30, 60)
    probes = [
        {"step": step, "task": task, "metric": metric, "linear": 0.2 + step / 100, "knn": 0.1}
        for step in steps
        for task, metric in (("grade", "balanced_accuracy"), ("age", "r2"))
    ]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in probes))
    panel = curve_panels(tmp_path)["probe"].axes[0]
    assert [line.get_label() for line in panel.lines] == ["grade, linear", "grade, k-NN", "age, linear", "age, k-NN"]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [0.2, 0.5, 0.8])
    assert panel.get_ylabel() == "balanced accuracy, R²"
    drawn = [axes.get_title(loc="left") for axes in loss_curves(tmp_path).axes if axes.axison]
    assert len(drawn) == 7 and drawn[-1] == "Online probe, training patients"


def test_lambda_is_read_from_the_record() -> None:
    lines = [
        {"total": 0.7 * p + 0.3 * s, "prediction": p, "sigreg": s} for p, s in ((1.0, 2.0), (0.5, 1.5), (1.0, 1.0))
    ]
    assert mixing_weight(lines) == pytest.approx(0.3)


def test_smoothing_keeps_lines_straight_and_means() -> None:
    np.testing.assert_allclose(smoothed(np.full(30, 2.0), 7), 2.0)
    line = np.arange(30.0)
    np.testing.assert_allclose(smoothed(line, 5)[2:-2], line[2:-2])


def test_curves_of_an_empty_run_are_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        loss_curves(tmp_path)
