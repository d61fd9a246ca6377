import numpy as np
import torch

from glo_core.data.image_source import TensorImages
from glo_core.evaluation.neighbors import nearest, take_ids
from glo_core.sampling.generate import interpolate
from glo_core.sampling.image_grid import GAP, grid, in_rows


def test_a_grid_is_upright_and_in_reading_order() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    for number in range(4):
        images[number, 0, :, 0] = 50 * (number + 1)  # A red line along the top of each.
    sheet = np.asarray(grid(in_rows(images, 2)))
    assert sheet.shape == (2 * 8 + GAP, 2 * 8 + GAP, 3)
    assert sheet[0, 0, 0] == 50
    assert sheet[0, 8 + GAP, 0] == 100
    assert sheet[8 + GAP, 0, 0] == 150
    assert sheet[7, 0].tolist() == [0, 0, 0]
    assert sheet[0, 8].tolist() == [255, 255, 255]


def test_gray_images_make_a_gray_grid() -> None:
    assert grid([np.zeros((2, 8, 8, 1), np.uint8)]).mode == "L"


def test_neighbours_are_those_of_brute_force(blobs: torch.Tensor) -> None:
    ids = np.arange(150, dtype=np.int64) * 3 + 1
    source = TensorImages(blobs, ids, code_shards=8)
    queries = blobs[[5, 77]].numpy()
    parts = [nearest(queries, source.select(shards), 4) for shards in ([0, 3, 5], [1, 2], [4, 6, 7])]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    pixels = blobs.numpy().reshape(150, -1) / 255
    for place, query in enumerate([5, 77]):
        distances = ((pixels - pixels[query]) ** 2).mean(1)
        assert merged.ids[place].tolist() == ids[np.argsort(distances, kind="stable")[:4]].tolist()
        np.testing.assert_allclose(merged.distances[place], np.sort(distances)[:4], atol=1e-6)
    assert np.array_equal(take_ids(source, merged.ids[:, 0]), queries)


def test_interpolation_ends_at_its_ends_and_stays_on_the_sphere() -> None:
    start, end = torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    line = interpolate(start, end, 5, "sphere")
    assert torch.equal(line[[0, -1]], torch.stack([start, end]))
    torch.testing.assert_close(line.norm(dim=1), torch.ones(5))
