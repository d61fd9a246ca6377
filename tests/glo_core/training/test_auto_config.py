import dataclasses

import pytest

import glo_core as glo
from glo_core.training.auto_config import images_to_see, resolve_defaults


@pytest.mark.parametrize(
    ("images", "resolution", "batch_size", "dim"),
    [
        (1, 8, 16, 16),
        (2059, 64, 16, 64),
        (32_767, 32, 16, 32),
        (32_768, 128, 32, 128),
        (60_000, 32, 32, 32),
        (10**7, 256, 256, 128),
    ],
)
def test_batch_and_dimension_follow_the_data(images: int, resolution: int, batch_size: int, dim: int) -> None:
    config = resolve_defaults(glo.TrainConfig(), images, resolution)
    assert (config.batch_size, config.code.dim) == (batch_size, dim)


def test_a_setting_of_the_config_wins_over_the_rule() -> None:
    decoder = glo.DecoderConfig(filters=(8, 4, 2), norm_group=6)
    config = glo.TrainConfig(batch_size=24, seed=3, code=glo.CodeConfig(dim=7, init="random"), decoder=decoder)
    resolved = resolve_defaults(config, 60_000, 32)
    assert dataclasses.asdict(resolved) == dataclasses.asdict(config)
    assert resolve_defaults(resolved, 10**7, 128) is resolved


def test_what_a_run_chose_stays_where_nothing_is_said() -> None:
    earlier = resolve_defaults(glo.TrainConfig(), 60_000, 32)
    grown = resolve_defaults(glo.TrainConfig(), 10**7, 32, earlier)
    assert (grown.batch_size, grown.code.dim, grown.decoder.filters) == (32, 32, (256, 128, 64))
    assert resolve_defaults(glo.TrainConfig(batch_size=48), 10**7, 32, earlier).batch_size == 48


@pytest.mark.parametrize(
    ("batch_size", "code_shards", "rows"),
    [(16, 32, 16), (32, 32, 32), (128, 32, 32), (256, 32, 32), (128, 2, 64), (48, 32, 48), (33, 32, 33), (96, 32, 48)],
)
def test_a_norm_group_is_the_fewest_whole_lanes_of_32_rows(batch_size: int, code_shards: int, rows: int) -> None:
    config = glo.TrainConfig(batch_size=batch_size)
    assert resolve_defaults(config, 60_000, 32, code_shards=code_shards).decoder.norm_group == rows


def test_a_norm_group_that_cuts_a_lane_is_refused_in_one_line() -> None:
    config = glo.TrainConfig(batch_size=64, decoder=glo.DecoderConfig(norm_group=3))
    with pytest.raises(glo.UserError, match=r"`decoder.norm_group` \(=3\) must be whole lanes.*: 2, 4, 8, 16, 32, 64 "):
        resolve_defaults(config, 60_000, 32)


@pytest.mark.parametrize(("images", "seen"), [(100, 94_644), (60_000, 1_222_790), (10**8, 10**8)])
def test_more_images_are_seen_longer_but_fewer_times(images: int, seen: int) -> None:
    assert images_to_see(images) == seen


@pytest.mark.parametrize(
    ("kind", "resolution", "filters"),
    [
        ("seed", 8, (96,)),
        ("seed", 32, (384, 192, 96)),
        ("seed", 64, (512, 256, 128, 64)),
        ("seed", 256, (512, 256, 128, 64, 32, 16)),
        ("residual", 64, (256, 128, 64, 32)),
        ("dcgan", 32, (256, 128, 64)),
        ("dcgan", 64, (384, 192, 96, 48)),
        ("dcgan", 256, (384, 192, 96, 48, 24, 16)),
    ],
)
def test_widths_follow_the_resolution(kind: str, resolution: int, filters: tuple[int, ...]) -> None:
    assert glo.DecoderConfig(kind=kind).widths(resolution) == filters
