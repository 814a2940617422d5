"""workshop/features.py: feature networks, with random weights where the real ones cannot be had."""

import math
import pathlib
import warnings

import pytest
import torch

from tiny import needs_efficientnet, needs_fidelity
from workshop import UserError, features

CPU = torch.device("cpu")


def save_script(path, network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)         # as in features.torchscript
        torch.jit.script(network).save(str(path))
    return path


class Linear(torch.nn.Module):
    """Pixels to 5 features, with weights."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(48, 5)

    def forward(self, images):
        return self.layer(images.flatten(1))


class Several(torch.nn.Module):
    """Two tensors of different sizes, as the layers of a VGG are."""

    def forward(self, images):
        return [images * 2, images.mean(dim=(2, 3))]


class Wrong(torch.nn.Module):
    def forward(self, images):
        return images.sum()


# ---- 1. networks ----


@pytest.mark.parametrize("which", [
    "script", pytest.param("efficientnet-lite0", marks=needs_efficientnet)])
def test_gradients_reach_the_images_and_not_the_weights(tmp_path, which):
    """Lesson: project.py follows a gradient through the network; were the weights to take gradients
    too, each step would compute and add up those of all layers for nothing."""
    if which == "script":
        which = save_script(tmp_path / "linear.pt", Linear())
    network = features.load_features(str(which), CPU)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    found = network.compute(images)
    assert found.dim() == 2 and len(found) == 2
    assert images.grad is None
    found.square().sum().backward()
    assert images.grad.abs().sum() > 0
    reached, waiting = set(), [found.grad_fn]
    while waiting:                                             # whom does the gradient reach?
        node = waiting.pop()
        if node is not None and node not in reached:
            reached.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    leaves = [node.variable for node in reached if hasattr(node, "variable")]
    assert len(leaves) == 1 and leaves[0] is images
    assert network.distance(images, images).abs().max() < 1e-12
    assert network.distance(images, images.flip(0)).min() > 0              # control


def test_several_tensors_count_alike(tmp_path):
    """Lesson: the mean squared difference of the joined features is the mean of those of the
    layers; the large ones do not drown the small ones."""
    network = features.load_features(str(save_script(tmp_path / "two.pt", Several())), CPU)
    a, b = torch.rand(2, 2, 3, 4, 4)
    joined = (network.compute(a) - network.compute(b)).square().mean()
    parts = [(2 * (a - b)).square().mean(), (a - b).mean(dim=(2, 3)).square().mean()]
    assert joined == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert network.compute(a).shape == (2, 48 + 3)
    assert network.tag == "two" and network.classes is None


@pytest.mark.parametrize("which, message", [
    ("no/such.pt", "no/such.pt: no such file; it is inception, efficientnet-lite0"),
    (pathlib.Path(__file__), "not a TorchScript file"),
])
def test_what_is_no_feature_network_gets_one_sentence(which, message):
    with pytest.raises(UserError, match=message):
        features.load_features(str(which), CPU)


def test_a_network_that_gives_no_features_is_refused(tmp_path):
    network = features.load_features(str(save_script(tmp_path / "wrong.pt", Wrong())), CPU)
    with pytest.raises(UserError, match=r"must give a tensor \[N, F\]"):
        network.compute(torch.rand(2, 3, 4, 4))
    network = features.load_features(str(save_script(tmp_path / "small.pt", Linear())), CPU)
    with pytest.raises(UserError, match="fails on images .2, 3, 8, 8."):
        network.compute(torch.rand(2, 3, 8, 8))


def test_unit_distance_is_that_of_unit_vectors():
    """Lesson: |a/|a| - b/|b||^2 = 2 - 2 cos(angle), in float64 also for a tiny angle."""
    angle = 1e-6
    a = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    b = 5 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    ours = features.unit_distance(lambda points: points, a, b)
    assert ours.item() == pytest.approx(angle ** 2, rel=1e-6)
    assert features.unit_distance(lambda points: points, a, -a).item() == pytest.approx(4)


class OnMPS(torch.Tensor):
    """A tensor as on a Mac's GPU: it refuses float64. Only .cpu() makes it an ordinary one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        if function is torch.Tensor.double or any(
                value is torch.float64 for value in [*args, *(kwargs or {}).values()]):
            raise TypeError("MPS has no float64")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_no_float64_on_a_device_that_has_none():
    """Lesson: tensors go to the CPU before they are widened (evaluate.py likewise:
    tests/test_evaluate.py)."""
    images = torch.rand(2, 3).as_subclass(OnMPS)
    found = features.unit_distance(lambda images: images * 2, images, images.flip(0))
    assert found.dtype == torch.float64
    with pytest.raises(TypeError, match="no float64"):                     # control
        (images * 2).double()


# ---- 2. many pictures ----


def test_numbers_come_from_finite_pictures_or_are_refused(tmp_path):
    """Lesson: rounded to a byte, NaN is a colour; so pictures are looked at before."""
    network = features.load_features(str(save_script(tmp_path / "linear.pt", Linear())), CPU)
    images = torch.rand(4, 3, 4, 4)
    assert features.compute_features(network, [images, images], 2, "").shape == (8, 5)
    for bad in (math.nan, math.inf):
        broken = images.clone()
        broken[1, 0, 2, 2] = bad
        with pytest.raises(UserError, match="not finite"):
            features.compute_features(network, [images, broken], 2, "")
        rounded = features.data.to_images(features.data.to_pixels(broken))
        assert rounded.isfinite().all()                                    # control


def test_all_pictures_are_rounded_as_a_file_would(tmp_path):
    """Lesson: a network could tell fakes from reals by what lies between two bytes."""
    seen = []
    network = features.Features("", lambda images: seen.append(images) or images.flatten(1), None,
                                None, {})
    features.compute_features(network, [torch.rand(2, 3, 4, 4) * 3 - 1.5], 1, "")
    steps = (seen[0] + 1) * 127.5
    assert (steps - steps.round()).abs().max() < 1e-4
    assert seen[0].min() >= -1 and seen[0].max() <= 1


# ---- 3. Inception and LPIPS, with random weights ----


@needs_fidelity
def test_inception_weights_may_lie_anywhere(tmp_path, monkeypatch):
    """Lesson: here random ones of the right shapes, since the real ones cannot be had everywhere;
    they show that the file is read, that images arrive as bytes, and that logits are those of the
    package. Other weights are refused."""
    import torch_fidelity.feature_extractor_inceptionv3 as module
    Inception = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:                       # its constructor wants weights
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(Inception, "load_state_dict", lambda self, state: None)
        judge = Inception("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(judge.state_dict(), tmp_path / "some.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    network = features.load_features("inception", CPU, tmp_path / "some.pth")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    bytes_ = features.data.to_pixels(images).permute(0, 3, 1, 2)
    points, logits = judge(bytes_)
    assert torch.equal(network.compute(images), points) and points.shape == (2, 2048)
    assert torch.allclose(network.classes(points), logits) and logits.shape == (2, 1008)
    assert network.tag == "" and network.describe["features_fingerprint"] == (
        features.fingerprint_of(tmp_path / "some.pth"))
    with pytest.raises(UserError, match="other.pth: holds other weights"):
        features.load_features("inception", CPU, tmp_path / "other.pth")
    with pytest.raises(UserError, match="only --features inception takes a file of weights"):
        features.load_features("efficientnet-lite0", CPU, tmp_path / "some.pth")


@pytest.fixture
def lpips(monkeypatch):
    """LPIPS with random weights, in place of the real one."""
    import torch_fidelity.sample_similarity_lpips as module
    import torchvision
    vgg = torchvision.models.vgg
    whole = torch.nn.Module()
    whole.features = vgg.make_layers(vgg.cfgs["D"])            # without its large dense layers
    monkeypatch.setattr(module, "torchvision_load_pretrained_vgg16", lambda: whole)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    monkeypatch.setattr(module.SampleSimilarityLPIPS, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(features, "find_weights", lambda *a: "")
    features.lpips_network.cache_clear()
    yield features.lpips_network(CPU)
    features.lpips_network.cache_clear()


@needs_fidelity
def test_lpips_gets_bytes_ranges_and_gives_one_number_an_image(lpips):
    """Lesson: the network wants 0..255, and normalizes that to ImageNet's mean and deviation: grey
    of ImageNet's mean becomes about 0. Two images that hardly differ have a distance above 0."""
    seen = []
    lpips.net.slice1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]              # of pixels in 0..1
    first = (2 * mean - 1).expand(3, 3, 16, 16)
    second = first + 1e-3 * torch.randn(3, 3, 16, 16)
    found = features.lpips_distance(first, second)
    assert found.shape == (3,) and (found != 0).all()
    assert seen[0].abs().max() < 0.02                          # black is about -2
    for end, red in ((-1.0, 0), (1.0, 1)):                     # red of black, of white
        features.lpips_distance(torch.full_like(first, end), second)
        assert seen[-2][0, 0].mean() == pytest.approx((red - 0.485) / 0.229, abs=0.01)
    assert features.lpips_distance(first, first).abs().max() == 0
    images = second.clone().requires_grad_()
    features.lpips_distance(first, images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


@needs_fidelity
def test_without_weights_one_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments):
        raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    features.lpips_network.cache_clear()
    for load, name in ((lambda: features.load_features("inception", CPU), features.INCEPTION),
                       (lambda: features.lpips_network(CPU), features.LPIPS[0])):
        with pytest.raises(UserError) as caught:
            load()
        for word in (name, str(tmp_path), "no route to host", "https://", "efficientnet-lite0"):
            assert word in str(caught.value), word
        assert "\n" not in str(caught.value)
    # For its distance alone Inception itself need not be there.
    assert features.load_features("inception", CPU, distance_only=True).compute is None


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_weights_are_never_run(tmp_path):
    """Lesson: a file of weights may be a program. It is refused before anything opens it that would
    run it."""
    good, bad, sprung = (tmp_path / name for name in ("good.pth", "bad.pth", "sprung"))
    torch.save({"a": torch.zeros(2)}, good)
    torch.save({"a": torch.zeros(2), "b": Trap(sprung)}, bad)
    assert features.checked_weights(good) == str(good)
    with pytest.raises(UserError, match="bad.pth: not a file of weights"):
        features.checked_weights(bad)
    assert not sprung.exists()
    torch.load(bad, weights_only=False)                                    # control
    assert sprung.exists()
