"""The experiments on features and meshes: what their margins say of given rows, and that their parts measure what they name."""

from __future__ import annotations

import pytest
import torch

from tersor.papers import entropic_student, squeeze3d


def student_rows(ours: float, jpeg: float, plain: float, bare: float) -> list[dict]:
    points = ((1, 50.0, jpeg - 0.2), (9, 200.0, jpeg))
    rows = [{"method": "JPEG", "quality": quality, "bytes": size, "accuracy": accuracy} for quality, size, accuracy in points]
    for seed in entropic_student.SEEDS:
        rows += [{"method": entropic_student.OURS, "seed": seed, "bytes": size, "accuracy": ours} for size in (200.0, 400.0)]
        rows += [
            {"method": entropic_student.PLAIN, "seed": seed, "bytes": 260.0, "accuracy": plain},
            {"method": entropic_student.BARE, "seed": seed, "bytes": 300.0, "accuracy": bare},
        ]
    return rows


def test_a_curve_is_read_in_the_logarithm_of_its_bytes_and_level_beyond_its_ends():
    curve = [(400.0, 0.9), (100.0, 0.5)]
    found = [entropic_student._at(curve, size) for size in (10.0, 100.0, 200.0, 400.0, 1e6)]
    assert found == pytest.approx([0.5, 0.5, 0.7, 0.9, 0.9])


def test_the_margin_of_the_student_is_the_worst_of_all_rivals_and_seeds():
    rows = student_rows(0.7, 0.6, 0.65, 0.5)
    margins = entropic_student._margins(rows)
    assert margins == pytest.approx({"pictures": 0.1, entropic_student.PLAIN: 0.05, entropic_student.BARE: 0.2})
    next(row for row in rows if row["method"] == entropic_student.BARE and row["seed"] == 1)["accuracy"] = 0.8
    assert entropic_student._margins(rows)[entropic_student.BARE] == pytest.approx(-0.1)


def test_pictures_cost_more_at_higher_quality_and_headers_are_counted_apart():
    from tersor.coding.features import as_picture

    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 4, 4, generator=random)
    image = (255 * torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1))[0].to(torch.uint8)
    for form in ("JPEG", "WEBP"):
        sent = [as_picture(image, form, quality) for quality in (5, 50, 95)]
        errors = [float((arrived.float() - image).abs().mean()) for arrived, _, _ in sent]
        assert errors == sorted(errors, reverse=True)
        assert [payload for _, _, payload in sent] == sorted(payload for _, _, payload in sent)
        assert all(0 < payload < whole for _, whole, payload in sent)
        # Headers and tables of one form are of one size.
        assert len({whole - payload for _, whole, payload in sent}) == 1
    small, _, _ = as_picture(image, "JPEG", 95, 16)
    assert small.shape == image.shape


def shape_rows(error: float, floor: float, nearest: float, size: float) -> list[dict]:
    rows = [
        {"method": "floor: latent fitted to the shape", "shapes": "generated", "chamfer": floor},
        {"method": "nearest training shape", "shapes": "generated", "chamfer": nearest},
        {"method": "draco", "shapes": "generated", "bits": 6, "chamfer": 0.01, "bytes_of_file": 2000.0},
    ]
    ours = {"method": "bridge", "shapes": "generated", "code": 32, "bits": 8, "chamfer": error, "bytes_of_file": size, "bytes": 30.0}
    return [*rows, *({**ours, "seed": seed} for seed in squeeze3d.SEEDS)]


@pytest.mark.parametrize(
    ("rows", "margin"),
    [
        (shape_rows(0.02, 0.02, 0.1, 100.0), 0.3),
        (shape_rows(0.04, 0.02, 0.1, 100.0), -0.5),
        (shape_rows(0.02, 0.02, 0.03, 100.0), 0.5 - 2 / 3),
        (shape_rows(0.02, 0.02, 0.1, 250.0), -0.2),
    ],
    ids=["holds", "above the floor", "no better than the nearest", "too many bytes"],
)
def test_the_margin_of_the_bridge_is_the_worst_of_its_bounds(rows: list[dict], margin: float):
    found, _ = squeeze3d._margin(rows)
    assert found == pytest.approx(margin)


def test_without_draco_the_comparison_is_skipped_by_name():
    rows = [row for row in shape_rows(0.02, 0.02, 0.1, 100.0) if row["method"] != "draco"]
    margin, said = squeeze3d._margin(rows)
    assert margin == pytest.approx(0.3)
    assert "DracoPy" in said[-1]


def test_draco_gives_meshes_back_more_exactly_at_more_bits():
    pytest.importorskip("DracoPy")
    from tersor.coding.mesh import surface

    targets = [squeeze3d._target(surface(lambda places, radius=radius: places.norm(dim=1) - radius, 20), 0) for radius in (0.5, 0.8)]
    rows = list(squeeze3d._draco(targets))
    assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
    assert rows[0]["chamfer"] > rows[-1]["chamfer"] - 1e-3
    assert rows[-1]["normals"] > 0.95
