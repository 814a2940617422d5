"""augment.py: few pictures.

What can go wrong: a change that does what it should not (a hole of another size, colours that move
the picture), reals and fakes that are changed differently, a gradient that does not come back, a
strength that does not follow D, frozen layers that learn. Nothing of it is an error that one would
see; the pictures are only worse.
"""

import json
import shlex
import types

import numpy as np
import pytest
import torch

import augment
import stylegan_losses as losses
import tiny
import train
from conftest import ROOT, refused
from workshop import UserError, machine, options, variety


def pictures(n=64, r=32, seed=0):
    return torch.rand(n, 3, r, r, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_colour_moves_one_mean_at_a_time():
    """Lesson: brightness moves the mean of a picture, contrast stretches what is around it,
    saturation what is around the grey of each pixel. Judge: from the result and the original, by
    least squares, the three numbers that were drawn can be found again; they have their ranges, and
    nothing else happened."""
    torch.manual_seed(0)
    images = pictures(400, 8).double()
    changed = augment.colour(images)
    grey, mean = images.mean(1, keepdim=True), images.mean((1, 2, 3), keepdim=True)
    # changed = (mean + b) + c (grey - mean) + c s (image - grey)
    parts = torch.stack([torch.ones_like(images), (grey - mean).expand_as(images), images - grey])
    found = torch.linalg.lstsq(parts.flatten(2).permute(1, 2, 0),
                               changed.flatten(1)[..., None])
    level, contrast, both = found.solution[..., 0].T
    left = parts.permute(1, 0, 2, 3, 4) * found.solution[..., None, None]
    assert torch.allclose(left.sum(1), changed)
    for value, low, high in ((level - mean.flatten(), -0.5, 0.5), (contrast, 0.5, 1.5),
                             (both / contrast, 0, 2)):
        assert low <= value.min() < low + 0.05 and high - 0.05 < value.max() <= high
    assert not torch.allclose(changed, images)                         # control


def test_translation_moves_and_fills_with_grey():
    """Lesson: a picture that is moved keeps its pixels; what comes in is 0. Judge: for each image
    there is one offset of at most R/8 at which they agree, and all offsets occur."""
    torch.manual_seed(0)
    images = pictures(600, 16) + 2                                     # never 0
    moved, seen = augment.translation(images), set()
    padded = torch.nn.functional.pad(images, [2] * 4)
    for n in range(len(images)):
        fits = [(dy, dx) for dy in range(5) for dx in range(5)
                if torch.equal(moved[n], padded[n, :, dy:dy + 16, dx:dx + 16])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 25
    assert not torch.equal(moved, images)                              # control


def test_cutout_covers_one_square():
    """Lesson: the hole is a square with sides of R/2; at a border a part of it is outside. And
    it is somewhere else in each image."""
    torch.manual_seed(0)
    images = pictures(300, 16) + 2
    holes = augment.cutout(images) == 0
    assert torch.equal(holes.any(1), holes.all(1))                     # all three colours
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), rows * columns)        # a rectangle
    assert rows.max() == columns.max() == 8 and rows.min() >= 4        # its centre is inside
    assert (holes[:, 0].float().mean(0) > 0.05).all()                  # control: everywhere


def test_strength_is_the_probability_of_each_change(monkeypatch):
    """Lesson: at strength p an image is left as it is with (1 - p)^3, and each change is drawn by
    itself. Judge: changes that add 1, 10 and 100 say which of them were made."""
    def adds(amount):
        return lambda images, gentle: images + amount
    monkeypatch.setattr(augment, "CHANGES", (adds(1), adds(10), adds(100)))
    torch.manual_seed(0)
    blank = torch.zeros(20_000, 3, 16, 16)[:, :, :1, :1].expand(-1, -1, 16, 16)
    for p in (0.0, 0.3, 1.0):
        made = augment.augment(blank[:, :1], torch.tensor(p))[:, 0, 0, 0]
        for k, digit in enumerate((made % 10, made // 10 % 10, made // 100)):
            assert digit.mean().item() == pytest.approx(p, abs=0.015), k
        assert (made == 0).float().mean().item() == pytest.approx((1 - p) ** 3, abs=0.015)


def test_small_pictures_are_changed_gently():
    """Lesson: a hole of half the side in a face of 4 px takes an eye and more. Below 16 px all
    changes are R/16 times as large; at 4 px nothing moves, and nothing is covered."""
    torch.manual_seed(0)
    largest = {}
    for r in (4, 8, 16, 64):
        images = pictures(500, r) + 2
        gentle = min(1.0, r / 16)
        covered = (augment.cutout(images, gentle) == 0).float().mean((1, 2, 3)).max().item()
        moved = int((augment.translation(images, gentle) == 0)[:, 0].all(2).sum(1).max())
        lighter = (augment.augment(images, 1.0) - images).mean((1, 2, 3)).abs()
        largest[r] = covered, moved, lighter.median().item()
    assert largest[4][:2] == (0, 0) and largest[8][:2] == (1 / 16, 0)
    assert largest[16][:2] == (1 / 4, 2) and largest[64][:2] == (1 / 4, 8)
    assert largest[4][2] < largest[8][2] < largest[16][2]


def test_gs_gradient_comes_back_through_the_change():
    """Lesson: G learns from what D says of changed pictures; so its gradient has to pass the
    change. R1, too, asks for the slope at the real image and not at the changed one, and is derived
    once more. Judges: finite differences, of the first and of the second derivative."""
    images = pictures(2, 16).double().requires_grad_()

    def changed(x):
        torch.manual_seed(3)                           # the same change each time
        return augment.augment(x, 1.0).square().mean(dim=(1, 2, 3)) ** 2

    assert torch.autograd.gradcheck(changed, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(changed, images, fast_mode=True)
    holes = augment.cutout(images)                     # control: what is covered has no slope
    slope, = torch.autograd.grad(holes.sum(), images)
    assert torch.equal(slope == 0, holes == 0) and (slope == 0).any() and (slope == 1).any()


def test_all_that_d_sees_has_been_changed(monkeypatch):
    """Lesson: if reals were changed and fakes were not, D could tell them by that. The two turns of
    a step show D three batches: the reals, the fakes of D's turn and those of G's."""
    G, D = tiny.networks()
    judge, strength = augment.in_front_of(D, 1.0, torch.device("cpu"))
    seen, real = [], augment.augment
    monkeypatch.setattr(augment, "augment", lambda x, s: seen.append((len(x), s)) or real(x, s))
    z, mixes = torch.randn(4, 2, 8), torch.zeros(4, 6, dtype=torch.long)
    train.discriminator_turn(G, judge, pictures(4, 16), z, mixes, 1.0, 3.0)
    train.generator_turn(G, judge, z, mixes, 16, 1.0)
    assert [n for n, _ in seen] == [4, 4, 4] and all(s is strength for _, s in seen)
    assert augment.in_front_of(D, "off", torch.device("cpu"))[0] is D          # control


def test_r1_is_that_of_the_real_image(monkeypatch):
    """Lesson: the slope that R1 squares is that at the real image, before T. Where a hole is, D
    sees nothing of the real one, so the slope there is 0; D itself has one everywhere."""
    monkeypatch.setattr(augment, "CHANGES", (augment.cutout,))
    _, D = tiny.networks()
    judge, reals = augment.Augmented(D, torch.tensor(1.0)), pictures(8, 16).requires_grad_()
    torch.manual_seed(1)
    penalty = losses.r1_penalty(judge(reals, 1.0), reals)
    torch.manual_seed(1)
    holes = augment.augment(reals, 1.0) == 0
    torch.manual_seed(1)
    slope, = torch.autograd.grad(judge(reals, 1.0).sum(), reals)
    assert holes.any() and (slope[holes] == 0).all()
    assert penalty.item() == pytest.approx(slope.square().sum((1, 2, 3)).mean().item(), rel=1e-5)
    plain, = torch.autograd.grad(D(reals, 1.0).sum(), reals)
    assert (plain[holes] != 0).any()                                   # control


def test_the_strength_rises_while_d_is_too_sure():
    """Lesson: r = E[sign D(real)] is held at 0.6. If D is sure of all of them, the strength rises
    by 1 in 20 kimg; it never leaves 0 to 0.8, above which changes leak."""
    strength, batch, steps = torch.zeros(()), 50, 0
    while strength < 0.8:
        augment.adapt(strength, torch.tensor(1.0), batch)
        steps += 1
        assert steps < 10_000
    assert steps * batch == pytest.approx(0.8 * 20_000, rel=0.005)
    augment.adapt(strength, torch.tensor(1.0), batch)
    assert strength.item() == pytest.approx(0.8)
    for sign, wanted in ((0.7, 0.625), (0.6, 0.5), (-1.0, 0.0)):
        strength = torch.tensor(0.5)
        augment.adapt(strength, torch.tensor(sign), 10_000)
        assert strength.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("architecture", ["stylegan", "stylegan2"])
def test_frozen_layers_stay_as_they_are(architecture):
    """Lesson: after --freeze-d 8, D's layers next to the image keep their weights; the others
    learn; and G's turn, which holds D still, does not wake them."""
    G, D = tiny.networks(architecture=architecture)
    augment.freeze(D, 8)
    before = {name: p.clone() for name, p in D.named_parameters()}
    G_opt, D_opt = train.new_adam(G), train.new_adam(D)
    z, mixes = torch.randn(2, 4, 2, 8), torch.zeros(2, 4, 6, dtype=torch.long)
    for _ in range(2):
        train.training_step(G, D, G_opt, D_opt, pictures(4, 16), z, mixes, 1.0, 3.0, None, 1,
                            tiny.ALONE)
    same = {name for name, p in D.named_parameters() if torch.equal(p, before[name])}
    wanted = {name for name in before if any(f".{r}." in name for r in (8, 16))}
    unused = {name for name in before if name.startswith("from_rgb.4")}        # of growing only
    assert same - unused == wanted and wanted and len(same) < len(before)
    with pytest.raises(ValueError, match="freezing D from 32 px on"):
        augment.freeze(D, 32)
    with pytest.raises(ValueError):
        augment.freeze(D, 4)


def test_by_heart_takes_both_surety_and_repetition():
    """Lesson: a D that is sure of itself may only have a bad opponent; this alone accuses none."""
    assert variety.is_by_heart(0.85, 400)
    assert not variety.is_by_heart(0.85, 150) and not variety.is_by_heart(0.6, 400)


@pytest.mark.parametrize("asked, said", [
    ("off", "pictures, or --augment adaptive; or"), ("adaptive", "pictures; or"),
    (0.5, "pictures, or --augment above 0.5; or"), (0.8, "pictures; or"), (1.0, "pictures; or")])
def test_what_is_advised_can_be_typed_and_does_not_leak(asked, said):
    o = types.SimpleNamespace(augment=asked, resolution=64)
    assert f"To try: more {said} go on" in variety.by_heart(0.9, 400, o)


@pytest.mark.parametrize("words, message", [
    (["--augment", "2"], "is none of off, adaptive, and a number from 0 to 1"),
    (["--augment", "strong"], "is none of off, adaptive, and a number from 0 to 1"),
    (["--freeze-d", "8"], "--freeze-d is for a D that has learned to see; --resume names it")])
def test_bad_use_gets_one_sentence(words, message, capsys):
    with pytest.raises((SystemExit, UserError)) as caught:
        options.complete_options(options.parse_args(words), torch.device("cpu"))
    assert message in capsys.readouterr().err + str(caught.value)


def test_layers_that_have_not_learned_yet_are_not_frozen(tmp_path, monkeypatch):
    """Lesson: a run that is still small has its last layers already, as they were drawn."""
    monkeypatch.chdir(tmp_path)
    photos = tiny.save_pictures(tmp_path / "photos", 8)
    kept = torch.load(ROOT / "tests" / "data" / "format1.pt", weights_only=True)
    words = ["--resume", "young.pt", "--data", str(photos), "--total-kimg", "9", "--freeze-d", "8"]
    torch.save(kept, "young.pt")
    with pytest.raises(UserError, match="D has not grown to 8 px yet"):
        options.read(words)
    kept["progress"].update(resolution=8, phase="fade")
    torch.save(kept, "young.pt")
    with pytest.raises(UserError, match="D has not grown to 8 px yet"):
        options.read(words)
    kept["progress"].update(phase="stabilize")                 # control
    torch.save(kept, "young.pt")
    assert options.read(words)[0].freeze_d == 8


@pytest.mark.slow
def test_a_run_on_few_pictures_says_when_d_knows_them_by_heart(tmp_path, monkeypatch, capsys):
    """Lesson: a run that goes on with 8 other pictures is told, once, when these have been shown
    often (without counting what was shown before), and what it can do."""
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(variety, "BY_HEART", -1.1)     # whatever D says
    monkeypatch.setattr(variety, "OFTEN", 9)
    photos = tiny.save_pictures(tmp_path / "photos", 8)
    words = ["--data", str(tiny.save_pictures(tmp_path / "others")), "--initial-resolution", "16",
             *tiny.RUN, "--total-kimg", "0.1"]
    assert train.main([*words, "--out", "donor"]) == 0                     # 70 pictures
    assert "by heart" not in capsys.readouterr().out                       # control
    # In the donor's own folder the new run would be written over it.
    code, said = refused(train.main, ["--resume", "donor/checkpoint.pt", "--data", photos,
                                      "--freeze-d", "8", "--total-kimg", "0.25"], capsys)
    assert code == 2 and "name a new folder with --out" in said
    assert train.main(["--resume", "donor/checkpoint.pt", "--data", str(photos), "--out", "moved",
                       "--freeze-d", "8", "--total-kimg", "0.25", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("by heart: D has seen each picture") == 1
    seen = int(out.split("by heart: D has seen each picture ")[1].split()[0])
    assert 9 < seen < 20 and "--augment adaptive" in out and "--freeze-d 8" in out
    donor, moved = (torch.load(f"{run}/checkpoint.pt", weights_only=True)["discriminator"]
                    for run in ("donor", "moved"))
    assert {name for name in donor if torch.equal(donor[name], moved[name])} >= {
        name for name in donor if ".16." in name or ".8." in name}
    assert not torch.equal(donor["blocks.4.conv.weight"], moved["blocks.4.conv.weight"])
    repeat = json.loads((tmp_path / "moved" / "settings.json").read_text("utf-8"))["repeat"]
    words = shlex.split(repeat)[2:]                            # it begins from the same network,
    o, kept = options.read(words)                              # and not in that one's folder
    assert o.freeze_d == 8 and o.out.name == "moved-again"
    assert kept["progress"]["nimg"] == 100 and not (tmp_path / "moved-again").exists()
    # An imported network has seen many pictures, but not one of these.
    kept = torch.load("donor/checkpoint.pt", weights_only=True)
    for name in ("pictures", "contents", "pictures_since"):
        kept["progress"].pop(name, None)
    torch.save(kept, "imported.pt")
    assert train.main(["--resume", "imported.pt", "--data", str(photos), "--out", "third",
                       "--total-kimg", "0.15", "--device", "cpu"]) == 0
    assert "by heart" not in capsys.readouterr().out


def test_an_adaptive_run_is_resumed_to_the_bit(tmp_path, monkeypatch):
    """Lesson: the strength is a part of the run. Stopped and resumed, it ends with the same bits;
    and reals as D saw them last lie beside the samples."""
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.setattr(augment, "ADAPT_KIMG", 0.2)
    monkeypatch.setattr(augment, "TARGET", -0.9)
    monkeypatch.chdir(tmp_path)
    photos = tiny.save_pictures(tmp_path / "photos", 8)
    words = ["--data", photos, *tiny.RUN, "--augment", "adaptive"]
    assert train.main([str(w) for w in (*words, "--out", "quiet", "--total-kimg", 0.2)]) == 0
    assert train.main([str(w) for w in (*words, "--out", "halves", "--total-kimg", 0.1)]) == 0
    assert train.main(["--resume", "halves/checkpoint.pt", "--total-kimg", "0.2",
                       "--device", "cpu"]) == 0
    quiet, halves = (torch.load(f"{run}/checkpoint.pt", weights_only=True)
                     for run in ("quiet", "halves"))
    assert 0 < quiet["progress"]["augment_strength"] < 1
    for part in ("generator", "discriminator", "optimizer_d", "progress"):
        assert tiny.differences(quiet[part], halves[part]) == [], part
    strengths = [line["augment_strength"] for line in tiny.log_of(tmp_path / "quiet")]
    assert strengths == [line["augment_strength"] for line in tiny.log_of(tmp_path / "halves")]
    assert len(set(strengths)) > 3                                     # control: it moved
    assert (tmp_path / "quiet" / "samples" / "augmented.png").is_file()


@pytest.mark.slow
def test_the_rehearsal_makes_the_changes_too(tmp_path, monkeypatch):
    """Lesson: changes take time and memory. The steps that foretell both are asked through the
    same door as those of the run, on a copy of D."""
    monkeypatch.chdir(tmp_path)
    step, asked = train.training_step, []
    monkeypatch.setattr(train, "training_step", lambda *words: asked.append(words[1]) or step(
        *words))

    def judges_of(run, *words):
        asked.clear()
        assert train.main([*tiny.RUN, "--total-kimg", "0.02", "--initial-resolution", "16",
                           "--data", str(photos), "--out", run, *words]) == 0
        return asked[0], asked[-1]                     # of the rehearsal, of the run
    photos = tiny.save_pictures(tmp_path / "photos", 8)
    rehearsed, trained = judges_of("changed", "--augment", "0.5")
    assert isinstance(rehearsed, augment.Augmented) and isinstance(trained, augment.Augmented)
    assert rehearsed.D is not trained.D and rehearsed.strength == 0.5
    assert not any(isinstance(D, augment.Augmented) for D in judges_of("plain"))       # control


def test_the_strength_follows_the_mean_of_all_processes(tmp_path, monkeypatch):
    """Lesson: each process of torchrun sees its own part of the reals. The strength must be the
    same in all, so it follows the mean over them, whatever this one sees. Judge: a team whose mean
    is always 1, where the strength is images / (1000 ADAPT_KIMG)."""
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(augment, "ADAPT_KIMG", 0.2)
    words = ["--data", str(tiny.save_pictures(tmp_path / "photos", 8)), *tiny.RUN, "--augment",
             "adaptive", "--total-kimg", "0.1"]

    def strength_of(run):
        assert train.main([*words, "--out", run]) == 0
        return torch.load(f"{run}/checkpoint.pt", weights_only=True)["progress"]
    alone = strength_of("alone")
    monkeypatch.setattr(machine.Team, "mean", lambda team, tensor: (
        tensor.fill_(1.0) if tensor.dim() == 0 else tensor))
    sure = strength_of("sure")
    assert sure["augment_strength"] == pytest.approx(sure["nimg"] / 200, rel=1e-4)
    assert alone["augment_strength"] < sure["augment_strength"]        # control


def test_a_leak_is_found_by_name_and_size():
    """Lesson: of 400 faces 20 % were given holes (or other colours, or were moved). From means of
    features alone, the right change is named, and its share is found to a few per cent. The judge
    is who spoiled them."""
    from workshop.painted_faces import paint_face
    faces = torch.stack([torch.from_numpy(np.array(paint_face(n, 16))) for n in range(800)])
    faces = faces.permute(0, 3, 1, 2) / 127.5 - 1
    layer = torch.randn(60, 3, 5, 5, generator=torch.Generator().manual_seed(1)) / 75 ** 0.5

    def features(images):                              # a layer of a random network, and its mean
        return torch.nn.functional.conv2d(images, layer, stride=2).relu().mean((2, 3)).double()
    torch.manual_seed(0)
    reals, others = faces[:400], faces[400:]
    changed = [features(change(reals.repeat(5, 1, 1, 1))) for change in augment.CHANGES]
    for k, change in enumerate(augment.CHANGES):
        spoiled = torch.cat([others[:320], change(others[320:])])
        shares = augment.leaked(features(spoiled), features(reals), changed)
        assert shares.argmax() == k and shares[k].item() == pytest.approx(0.2, abs=0.1), change
    clean = augment.leaked(features(others), features(reals), changed)
    assert clean.abs().max() < 0.1                                     # control
