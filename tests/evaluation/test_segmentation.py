"""Segmentation: what can be seen is learnt, what cannot is not, and scores are MONAI's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from torch import Tensor

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.convolution import Conv3d, keep_tiny_maps_in_float32
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.config.evaluation import Timm2dEncoder
from lejepa_med.config.pretraining import ModelConfig
from lejepa_med.config.segmentation import SegmentationRecipe
from lejepa_med.data.cache import Cache, entry_name, publish_manifest, write_entry, write_settings
from lejepa_med.errors import DataError, UserError
from lejepa_med.evaluation.grey_slices import GreySlices
from lejepa_med.evaluation.segmentation import segment
from lejepa_med.evaluation.segmentation_cases import Geometry, load_case, stitched, training_windows, window_starts
from lejepa_med.evaluation.segmentation_heads import DecoderHead, Segmenter
from lejepa_med.evaluation.segmentation_metrics import dice, hd95_mm
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec

CPU = torch.device("cpu")


class Intensities(Backbone):
    """Each token is one voxel: whatever intensity tells can be learnt from it."""

    def __init__(self, spatial_dims: int, side: int) -> None:
        super().__init__()
        self.dim = self.token_dim = 2
        self.spatial_dims, self.in_channels = spatial_dims, 1
        self.spec = Spec(inference=InferenceSpec(window=(side,) * spatial_dims))

    def forward(self, images: Float[Tensor, "batch channel *spatial"]) -> Float[Tensor, "batch dim"]:
        return self.tokens(images)[0].mean(1)

    def tokens(
        self, images: Float[Tensor, "batch channel *spatial"]
    ) -> tuple[Float[Tensor, "batch token token_dim"], tuple[int, ...]]:
        both = torch.cat([images, images**2], 1)
        return both.flatten(2).transpose(1, 2), tuple(images.shape[2:])

    def intermediate(
        self, images: Float[Tensor, "batch channel *spatial"], last: int = 2
    ) -> list[Float[Tensor, "batch _"]]:
        return [self.forward(images)]


def write_masked(folder: Path, shapes: list[tuple[int, ...]], spacing: float | None = 2.0) -> Cache:
    """Bright balls (class 4) in noise, and a brighter slab (class 7) beside them; sizes and places differ."""
    preprocess, random, rows = PreprocessSpec(spacing_mm=(2.0, 2.0, 2.0)), np.random.default_rng(0), []
    write_settings(folder, preprocess)
    for number, shape in enumerate(shapes):
        middle = np.array(shape).reshape(-1, *[1] * len(shape)) * random.uniform(0.45, 0.7)
        mask = (np.sqrt(((np.indices(shape) - middle) ** 2).sum(0)) < min(shape) * random.uniform(0.2, 0.3)) * 4
        mask[: 2 + number % 2] = 7
        image = random.normal(60, 6, shape) + 80 * (mask == 4) + 160 * (mask == 7)
        key = f"s{number}"
        written = write_entry(folder, entry_name(key, "x", preprocess), np.clip(image, 0, 255).astype(np.uint8))
        of_mask = write_entry(folder, entry_name(key, "m", preprocess), mask.astype(np.uint8))
        row = {"series_key": key, "patient_key": f"p{number}", "study_key": key, "group_key": key}
        row |= {"modality": "mri" if spacing else "image", "sequence": "", "shape": list(shape)}
        row |= {"spacing_mm": [spacing] * len(shape) if spacing else None, "sha256": written.sha256}
        row |= {"entry": entry_name(key, "x", preprocess), "mask_entry": entry_name(key, "m", preprocess)}
        rows.append(row | {"mask_sha256": of_mask.sha256})
    publish_manifest(folder, pd.DataFrame(rows))
    (folder / "mask_labels.json").write_text('{"0": "background", "4": "ball", "7": "slab"}')
    return Cache.open(folder)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    shapes = [(18, 20, 16), (15, 22, 18), (20, 17, 19), (16, 16, 16), (13, 18, 21), (22, 14, 17)]
    return write_masked(tmp_path_factory.mktemp("volumes"), shapes)


def recipe(**settings: object) -> SegmentationRecipe:
    return SegmentationRecipe.model_validate({"steps": 120, "lr": 0.03, "precision": "float32"} | settings)


def network(window: tuple[int, ...] = (16, 16, 16), name: str = "resnet10_3d") -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {"name": name} if "timm" in name else {"name": name, "width": 0.125, "stem_pool": False}
        backbone = build(ModelConfig.model_validate(config))
    backbone.spec = Spec(inference=InferenceSpec(window=window))
    return backbone.eval()


TRAIN, TEST = ["s0", "s1", "s2", "s3"], ["s4", "s5"]


def test_what_intensity_tells_is_learnt(volumes: Cache) -> None:
    scores = segment(Intensities(3, 16), volumes, TRAIN, TEST, recipe(), CPU, 0, "linear")
    assert scores.shape == (2, 4) and scores.dtype == np.float64
    assert scores[:, :2].min() > 0.9
    assert scores[:, 2:].max() <= 4.0


def test_scores_depend_on_the_seed_alone(volumes: Cache) -> None:
    """The same draw gives the same scores, another seed others."""
    arguments = (Intensities(3, 16), volumes, TRAIN, TEST, recipe(steps=5))
    first, again = (segment(*arguments, CPU, 3, "linear") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, segment(*arguments, CPU, 4, "linear"), equal_nan=True)


def test_an_untrained_head_is_far_below(volumes: Cache) -> None:
    scores = segment(Intensities(3, 16), volumes, TRAIN, TEST, recipe(steps=1, lr=1e-9), CPU, 0, "linear")
    assert np.nanmean(scores[:, :2]) < 0.4


@pytest.mark.parametrize("method", ["linear", "decoder"])
def test_a_frozen_backbone_stays_as_it_is(volumes: Cache, method: str) -> None:
    backbone = network()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    segment(backbone, volumes, TRAIN, TEST, recipe(steps=3), CPU, 0, method)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_the_backbone_learns_only_if_told() -> None:
    for finetuned in (False, True):
        model = Segmenter(network(), 3, "decoder", recipe(finetune_backbone=finetuned)).train()
        model(torch.rand(2, 1, 16, 16, 16)).sum().backward()
        assert all((parameter.grad is not None) == finetuned for parameter in model.backbone.parameters())
        assert model.backbone.training == finetuned
        assert 1_000 < sum(parameter.numel() for parameter in model.head.parameters()) < 1_000_000


@pytest.mark.long
def test_a_decoder_sees_more_than_the_deepest_tokens(volumes: Cache) -> None:
    """Random weights: the deepest map of 2 x 2 x 2 tokens cannot draw a ball, all stages can."""
    linear = segment(network(), volumes, TRAIN, TEST, recipe(steps=200), CPU, 0, "linear")
    decoder = segment(network(), volumes, TRAIN, TEST, recipe(steps=200, lr=0.01), CPU, 0, "decoder")
    assert decoder[:, 0].mean() > 0.75 > linear[:, 0].mean()


def test_two_dimensions(tmp_path: Path) -> None:
    cache = write_masked(tmp_path, [(24, 30)] * 6, spacing=None)
    scores = segment(Intensities(2, 24), cache, TRAIN, TEST, recipe(), CPU, 0, "linear")
    assert scores[:, :2].min() > 0.85


def test_slices_of_volumes_by_a_2d_backbone(volumes: Cache) -> None:
    scores = segment(Intensities(2, 16), volumes, TRAIN, TEST, recipe(), CPU, 0, "linear")
    assert scores[:, :2].min() > 0.9


@pytest.mark.parametrize("window", [(8, 8, 8), (16, 16, 16), (32, 32, 32)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_stitched_windows_are_the_volume(volumes: Cache, window: tuple[int, ...], overlap: float) -> None:
    """A prediction that is the image itself comes back as it was, whatever the windows."""
    geometry = Geometry(InferenceSpec(window=window), (4, 7))
    case = load_case(volumes, "s2", geometry)
    back = stitched(lambda images: torch.cat([images, -images], 1), case, geometry, overlap)
    torch.testing.assert_close(back[0], case.image[0, 0])
    torch.testing.assert_close(back[1], -case.image[0, 0])


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_stitched_slices_are_the_volume(volumes: Cache, plane: str) -> None:
    geometry = Geometry(InferenceSpec.model_validate({"window": (8, 8), "planes": (plane,)}), (4, 7))
    case = load_case(volumes, "s2", geometry)
    whole = torch.from_numpy(np.array(volumes.read("s2").array)).float() / 255
    torch.testing.assert_close(stitched(lambda images: images, case, geometry, 0.25)[0], whole)


def test_another_pitch_goes_back_to_prepared_voxels(volumes: Cache) -> None:
    geometry = Geometry(InferenceSpec(window=(8, 8, 8), pitch_mm=4.0), (4, 7))
    case = load_case(volumes, "s0", geometry)
    assert tuple(case.classes.shape) == (1, 9, 10, 8) and case.truth.shape == (18, 20, 16)
    assert set(case.classes.unique().tolist()) == {0, 1, 2}
    assert stitched(lambda images: images, case, geometry, 0.0).shape == (1, 18, 20, 16)


def test_windows_show_every_class_and_are_never_mirrored_left_to_right(volumes: Cache) -> None:
    geometry = Geometry(InferenceSpec(window=(8, 8, 8)), (4, 7))
    cases = [load_case(volumes, key, geometry) for key in TRAIN]
    assert {case.flips for case in cases} == {(1, 2)}
    settings = recipe(batch_size=200, foreground_share=1.0, shift_voxels=0)
    images, target = training_windows(cases, geometry, settings, np.random.default_rng(0))
    assert images.shape == (200, 1, 8, 8, 8)
    shares = [(target == value).flatten(1).any(1).float().mean() for value in (1, 2)]
    assert min(shares) > 0.4
    inside = images[:, 0] > 0  # the slab lies at the low end of R: mirrored windows would have it at the high end
    slab = (target == 2) & inside
    low, high = (slab[:, half].sum() for half in (slice(0, 4), slice(4, 8)))
    assert low > 2 * high


def test_starts_cover_every_voxel() -> None:
    for have in range(1, 40):
        for overlap in (0.0, 0.25, 0.5, 0.9):
            starts = window_starts(have, 8, overlap)
            assert set(range(have)) <= {start + step for start in starts for step in range(8)}


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
def test_dice_and_distance_are_monais() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        truth, predicted = (np.zeros((12, 14, 10), bool) for _ in range(2))
        low = random.integers(1, 4, 3)
        truth[tuple(slice(a, a + 6) for a in low)] = True
        predicted[tuple(slice(a, a + b) for a, b in zip(low + 1, random.integers(2, 6, 3), strict=True))] = True
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth)]
        assert dice(predicted, truth) == pytest.approx(float(DiceMetric()(*pair)))
        expected = HausdorffDistanceMetric(include_background=True, percentile=95)(*pair, spacing=[1.0, 2.0, 3.0])
        assert hd95_mm(predicted, truth, (1.0, 2.0, 3.0)) == pytest.approx(float(expected))


def test_a_known_distance() -> None:
    """A plate moved by three voxels of 2 mm."""
    truth, moved = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    truth[2, 2:8, 2:8] = moved[5, 2:8, 2:8] = True
    assert hd95_mm(moved, truth, (2.0, 1.0, 1.0)) == pytest.approx(6.0)
    assert hd95_mm(truth, truth, (2.0, 1.0, 1.0)) == 0.0
    assert dice(moved, truth) == 0.0


def test_what_is_not_defined_is_nan() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert np.isnan(dice(full, empty)) and np.isnan(hd95_mm(full, empty, (1.0, 1.0, 1.0)))
    assert dice(empty, full) == 0.0 and np.isnan(hd95_mm(empty, full, (1.0, 1.0, 1.0)))


def test_bad_input_is_one_sentence(volumes: Cache, tmp_path: Path) -> None:
    bare = Cache.open(volumes.folder)
    bare.table.loc[1, "mask_entry"] = ""
    with pytest.raises(DataError, match="segmentation: 1 of 4 training series have no mask, the first s1"):
        segment(Intensities(3, 16), bare, TRAIN, TEST, recipe(), CPU, 0, "linear")
    pictures = write_masked(tmp_path, [(24, 24)] * 2, spacing=None)
    with pytest.raises(DataError, match="a 2D image does not fit a window of"):
        segment(Intensities(3, 16), pictures, ["s0"], ["s1"], recipe(), CPU, 0, "linear")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(volumes: Cache) -> None:
    scores = segment(network(), volumes, TRAIN, TEST, recipe(steps=20), torch.device("cuda"), 0, "decoder")
    assert scores.shape == (2, 4) and np.isfinite(scores[:, :2]).all()


def test_slices_fill_the_window_in_true_proportions(tmp_path: Path) -> None:
    """As a network of another resolution wants them; predictions come back voxel for voxel."""
    cache = write_masked(tmp_path, [(18, 24, 5), (24, 12, 4)])
    spec = InferenceSpec(window=(48, 48), planes=("axial",))
    for key, seen in (("s0", (36, 48)), ("s1", (48, 24))):
        geometry = Geometry(spec, (4, 7), fitted=True)
        case = load_case(cache, key, geometry)
        assert tuple(case.classes.shape[1:]) == seen and case.slice_axis == 2

        def look_up(images: Tensor) -> Tensor:
            """Class by intensity: the ball lies about 140, the slab about 220."""
            return torch.cat([-((images - level / 255) ** 2) for level in (60, 140, 220)], 1)

        found = stitched(look_up, case, geometry, overlap=0.5).argmax(0).numpy()
        assert found.shape == case.truth.shape
        assert (found == case.truth).mean() > 0.9, "edges are between two classes"


def test_a_colour_network_learns_what_can_be_seen(volumes: Cache) -> None:
    torch.manual_seed(0)
    network = build(ModelConfig(name="timm/test_efficientnet", in_channels=3))
    assert isinstance(network, Timm2d)
    backbone = GreySlices(network.eval(), Timm2dEncoder(model="test_efficientnet", image_size=32))
    assert [len(found) for found in backbone.feature_maps(torch.rand(2, 1, 32, 32))] == [2] * 5
    sides = [found.shape[-1] for found in backbone.feature_maps(torch.rand(1, 1, 32, 32))]
    assert sides == [16, 8, 4, 2, 1]
    trained = recipe(steps=60, lr=0.01, overlap=0.0, batch_size=8)
    scores = segment(backbone, volumes, TRAIN, TEST, trained, CPU, 0, "decoder", fitted=True)
    untrained = segment(backbone, volumes, TRAIN, TEST, recipe(steps=1, lr=1e-9, overlap=0.0), CPU, 0, "decoder", True)
    assert np.nanmean(scores[:, :2]) > np.nanmean(untrained[:, :2]) + 0.3


def test_bf16_gradients_of_the_decoder_are_right() -> None:
    """Its maps get as small as a backbone's last, where oneDNN's bf16 conv3d gives any weight gradient."""
    torch.manual_seed(0)
    head = DecoderHead((8, 16, 32, 64), 3, spatial_dims=3, width=16)
    keep_tiny_maps_in_float32(head)
    assert isinstance(Segmenter(network(), 3, "decoder", SegmentationRecipe()).head.fine[0], Conv3d)
    maps = [torch.randn(4, size, *[side] * 3) for size, side in ((8, 8), (16, 4), (32, 2), (64, 1))]
    wanted = torch.randn(4, 3, 16, 16, 16)

    def gradients(bf16: bool) -> list[Tensor]:
        head.zero_grad()
        garbage = [torch.full((size,), torch.nan) for size in (1000, 5000, 27648, 100000)]
        del garbage  # whatever is read before it is written
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = head(maps, (16, 16, 16))
        (output.float() * wanted).mean().backward()
        return [p.grad.clone() for p in head.parameters() if p.grad is not None and p.ndim > 1]

    exact = gradients(bf16=False)
    for _ in range(4):
        for found, right in zip(gradients(bf16=True), exact, strict=True):
            assert float((found - right).norm() / right.norm()) < 0.1


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    cache = write_masked(tmp_path, [(16, 16, 16)] * 3)
    with pytest.raises(UserError, match="diverged"):
        segment(network(), cache, ["s0", "s1"], ["s2"], SegmentationRecipe(steps=20, lr=1e30), CPU, 0, "decoder")
