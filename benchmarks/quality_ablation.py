"""One change at a time from the defaults with the seed's decoder, narrow: what each choice is worth, three seeds each.

    python -m jobs.preprocess --input sign-digits --dataset DATASET --resolution 32 --holdout 0.1
    python -m benchmarks.quality_ablation --dataset DATASET --out docs/ablation [--images 30000] [--seeds 0 1 2]

Every variant sees the same number of images. Measured are the PSNR on the training images and on the held-out ones
(inverted as `jobs/evaluate.py` does), and the time of training over that of the base. Finished runs are kept in
OUT/results.jsonl, so that an interrupted command goes on: begin anew when the code of training has changed. At the end
OUT.md has the table and OUT/*.png the plots.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import glo_core as glo
from benchmarks.environment import describe, describe_config
from benchmarks.rounds import Spread, json_line
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.digests import digest_json, floats_as_text
from glo_core.common.runtime import SingleProcess
from glo_core.data.block_images import BlockImages
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import Inverter
from glo_core.evaluation.metrics import reconstruction_quality
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import ResolvedTrainConfig

FILTERS = (128, 64, 32)
BASE = glo.TrainConfig(decoder=glo.DecoderConfig(kind="seed", filters=FILTERS))
"""The defaults, but for the decoder"""

RESOLUTION = 32
"""That the decoders' widths are for"""

OF_BASE = {
    "loss": "mse",
    "init": "pca",
    "projection": "sphere",
    "code optimizer": "adam, 0.02",
    "decoder rate": "0.002",
    "batch": "16",
    "decoder": "seed",
    "code dimension": "32",
    "averaging": "half-life of 50,000 images",
}
"""The base's value of what is varied, at 32 px and fewer than 32,768 images"""

Variant = tuple[str, str, dict[str, Any]]
"""What is varied, its value, and the changes to the defaults by dotted key"""


def variants() -> Iterator[Variant]:
    """Every variant; of each group the value of the base is the variant without a change."""
    yield "base", "base", {}
    for loss in ("l1", "pairwise", "pyramid", "pyramid + mse", "mse + 0.1 ssim"):
        yield "loss", loss, {"loss": loss}
    yield "init", "random", {"code.init": "random"}
    yield "projection", "ball", {"code.projection": "ball"}
    for optimizer, rates in {"adam": (1e-3, 5e-3, 1e-1), "adagrad": (5e-2, 5e-1), "sgd": (1e-1, 1.0)}.items():
        for rate in rates:
            yield "code optimizer", f"{optimizer}, {rate:g}", {"code.optimizer": optimizer, "code.learning_rate": rate}
    for rate in (5e-4, 4e-3):
        yield "decoder rate", f"{rate:g}", {"learning_rate": rate}
    for size in (32, 64, 128):
        yield "batch", str(size), {"batch_size": size}
    decoders: dict[str, glo.DecoderConfig] = {
        "seed, kernel 5": dataclasses.replace(BASE.decoder, kernel_size=5),
        "seed, half as wide": glo.DecoderConfig(kind="seed", filters=(64, 32, 16)),
        "seed, twice as wide": glo.DecoderConfig(kind="seed", filters=(256, 128, 64)),
        "dcgan": glo.DecoderConfig(kind="dcgan", filters=(128, 64, 32)),
        "residual": glo.DecoderConfig(kind="residual", filters=(64, 32, 16)),
        "residual, modulated": glo.DecoderConfig(kind="residual", filters=(64, 32, 16), modulation=True),
    }
    for kind, decoder in decoders.items():
        yield "decoder", kind, {"decoder": decoder}
    for dim in (16, 64, 128, 256):
        yield "code dimension", str(dim), {"code.dim": dim}
    yield "averaging", "none", {"ema_half_life": None}


def changed(config: glo.TrainConfig, changes: dict[str, Any]) -> glo.TrainConfig:
    """`config` with other values at dotted keys."""
    for key, value in changes.items():
        owner, _, name = key.rpartition(".")
        inner = {owner: dataclasses.replace(getattr(config, owner), **{name: value})} if owner else {name: value}
        config = dataclasses.replace(config, **inner)
    return config


def timed_training(config: glo.TrainConfig, images: BlockImages, images_to_see: int) -> tuple[glo.TrainResult, float]:
    """Train once; and the seconds of its start and its steps, without the evaluation at its end."""
    ends: list[float] = []
    runtime = SingleProcess(on_report=lambda _, found: ends.append(time.perf_counter()) if "loss" in found else None)
    since = time.perf_counter()
    trained = glo.train_phase(config, images, glo.Phase(target=images_to_see), runtime=runtime)
    return trained, ends[-1] - since


def measure(dataset: glo.Dataset, config: ResolvedTrainConfig, images_to_see: int) -> dict[str, float]:
    """Train once; PSNR in dB on training and held-out images, PCA's beside them, and seconds of training."""
    images, unseen = dataset.images(), dataset.held_out()
    trained, seconds = timed_training(config, images, images_to_see)
    start = PcaInit.fit(images, config.code.dim, SingleProcess())
    regression = RidgeRegression(config.code.dim)
    rows = np.arange(len(images.ids))
    learned = trained.table.codes()
    regression.add(start.codes(config.code, images, rows, config.seed), learned)
    weights = regression.solve(SingleProcess())
    inverter = Inverter(trained.decoder, config.code.projection, start, weights, learned, InvertConfig())
    all_unseen = np.arange(len(unseen.ids))
    codes, _ = inverter.codes(unseen, all_unseen)
    pca = PcaBaseline.fit(images, config.code.dim, SingleProcess())
    ours, linear = reconstruction_quality(trained.decoder, codes, unseen.take(all_unseen), pca)
    return {
        "psnr": trained.metrics["psnr"],
        "pca_psnr": trained.metrics["pca_psnr"],
        "held_out_psnr": ours.as_metrics()["psnr"],
        "held_out_pca_psnr": linear.as_metrics()["psnr"],
        "seconds": seconds,
    }


# ---------------------------------------------------------------- the page

Results = dict[tuple[str, str], list[dict[str, float]]]


def groups(results: Results) -> dict[str, str]:
    """What was varied, and the name of its plot."""
    found = dict.fromkeys(group for group, _ in results if group != "base")
    return {group: f"{group.replace(' ', '-')}.png" for group in found}


def page(results: Results, conditions: str, plots: str) -> str:
    """The page in Markdown: a row for each variant."""
    base = results["base", "base"]
    lines = [
        "# What each choice is worth",
        "",
        "One change at a time, `python -m benchmarks.quality_ablation`. Mean and range over seeds. "
        f"The base: the defaults, but the seed's decoder of {' '.join(map(str, FILTERS))} channels; "
        "held-out images are inverted.",
        "",
        conditions,
        "",
        "| changed | from | to | PSNR, dB | over the base | held out, dB | over the base | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (group, value), found in results.items():
        cells = [group, OF_BASE.get(group, ""), value]
        for key in ("psnr", "held_out_psnr"):
            numbers = [result[key] for result in found]
            mean, ours = statistics.mean(numbers), statistics.mean(result[key] for result in base)
            cells += [f"{mean:.2f} ({min(numbers):.2f} to {max(numbers):.2f})", f"{mean - ours:+.2f}"]
        ratio = statistics.median(result["seconds"] for result in found) / statistics.median(r["seconds"] for r in base)
        lines.append(f"| {' | '.join([*cells, f'{ratio:.2f}'])} |")
    for group, name in groups(results).items():
        lines += ["", f"![{group}]({plots}/{name})"]
    return "\n".join(lines) + "\n"


def plot(results: Results, out: Path) -> None:
    """A picture of each group: training and held-out PSNR of every value, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base = results["base", "base"]
    for group, name in groups(results).items():
        others = {value: found for (of, value), found in results.items() if of == group}
        shown = {f"{OF_BASE[group]} (base)": base} | others
        figure, axis = pyplot.subplots(figsize=(7, 0.9 + 0.35 * len(shown)), layout="constrained")
        for place, found in enumerate(shown.values()):
            for key, color in (("psnr", "tab:blue"), ("held_out_psnr", "tab:orange")):
                label = {"psnr": "training", "held_out_psnr": "held out"}[key] if not place else None
                axis.scatter([result[key] for result in found], [place] * len(found), c=color, s=18, label=label)
        axis.set_yticks(range(len(shown)), list(shown))
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel("PSNR, dB")
        axis.set_title(group)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        figure.savefig(out / name, dpi=110)
        pyplot.close(figure)


def main() -> None:
    """Train every variant that has no result yet, then write the page and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of results and plots; its page is OUT.md")
    parser.add_argument("--images", type=int, default=30_000, help="that each run sees (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=OF_BASE, default=list(OF_BASE), help="default: all groups")
    options = parser.parse_args()
    dataset = glo.Dataset.open(options.dataset)
    if dataset.config.resolution != RESOLUTION or not len(dataset.held_out().ids):
        parser.error(
            f"--dataset {options.dataset}: of {dataset.config.resolution} px with {len(dataset.held_out().ids)} images "
            f"held out; make one by jobs/preprocess.py --resolution {RESOLUTION} --holdout 0.1"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "results.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {line["key"]: line for line in lines}
    # The first steps of a process choose kernels and allocate: they are no variant's.
    warm = resolve_defaults(BASE, dataset.num_train, dataset.config.resolution)
    glo.train_phase(warm, dataset.images(), glo.Phase(target=10 * warm.batch_size))
    results: Results = {}
    for seed in options.seeds:
        for group, value, changes in variants():
            if group not in ("base", *options.only):
                continue
            config = changed(dataclasses.replace(BASE, seed=seed), changes)
            config = resolve_defaults(config, dataset.num_train, dataset.config.resolution)
            key = digest_json(floats_as_text([dataset.digest, options.images, dataclasses.asdict(config)]))
            if key not in known:
                found = measure(dataset, config, options.images)
                known[key] = {"key": key, "group": group, "value": value, "seed": seed, **found}
                with kept.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
                print(f"{group}: {value}, seed {seed}: {found['psnr']:.2f} dB, {found['held_out_psnr']:.2f} held out")
            results.setdefault((group, value), []).append(known[key])
    base = results["base", "base"][0]
    shape = f"{dataset.config.resolution} px, {dataset.config.channels} channel(s)"
    seeds = " ".join(map(str, options.seeds))
    conditions = (
        f"{dataset.num_train:,} images of {shape}, {options.images:,} seen by each run, seeds {seeds}. PCA with as "
        f"many components as the base has dimensions: {base['pca_psnr']:.2f} dB on the training images, "
        f"{base['held_out_pca_psnr']:.2f} dB on the held-out ones. {describe()}. {describe_config(options)}."
    )
    options.out.with_suffix(".md").write_text(page(results, conditions, options.out.name))
    plot(results, options.out)
    psnr = {f"{group}: {value}": Spread.of([run["psnr"] for run in runs]) for (group, value), runs in results.items()}
    print(json_line(psnr, images=options.images, page=str(options.out.with_suffix(".md"))))


if __name__ == "__main__":
    main()
