"""experiments/few_pictures.py: who is called learned by heart, and what the table is made of."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import evaluate
import train
from conftest import ROOT, refused
from workshop import UserError, figures, options
from workshop.features import Features
from workshop.painted_faces import paint_face

sys.path.append(str(ROOT / "experiments"))                     # last: it has a morph.py of its own
import few_pictures

CPU = torch.device("cpu")


def clouds(images):
    return torch.stack([images, images.flip(3)]).flatten(2)


def glyphs(count=45):
    """Discs of all colours on white, 136 x 128 pixels; every ninth is empty."""
    rng, found = np.random.default_rng(0), {}
    for code in range(0x1F300, 0x1F300 + count):
        found[code] = Image.new("RGB", (136, 128), "white")
        if code % 9:
            x, y, radius = rng.integers(40, 80, 3).tolist()
            ImageDraw.Draw(found[code]).ellipse(
                [x - radius // 2, y - radius // 2, x + radius // 2, y + radius // 2],
                fill=tuple(rng.integers(0, 200, 3).tolist()))
    return found


def codes_in(part):
    """The glyphs of a part in the order in which they are read."""
    return [path.stem.split("-")[1] for path in sorted(Path("pictures", part).iterdir())]


def test_each_picture_is_trained_on_or_held_out(tmp_path, monkeypatch):
    """Lesson: who judges by pictures that were trained on praises a network that repeats them."""
    parts = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        few_pictures.save_pictures(few_pictures.emoji(glyphs(), 10), 10)
        parts.append([codes_in("training"), codes_in("heldout")])
    (training, heldout), again = parts
    assert [training, heldout] == again                        # drawn by lot, the same each time
    assert len(training) == 10 and not set(training) & set(heldout)
    everything = [f"{code:x}" for code in glyphs() if code % 9]
    assert sorted(training + heldout) == everything
    # Control: neither the first 10 of the font are trained on, nor the next 10 compared with.
    assert set(training) != set(everything[:10])
    assert set(heldout[:10]) != set(sorted(heldout)[:10])
    with pytest.raises(UserError, match="has 26 pictures"):
        few_pictures.emoji(glyphs(29), 10)


def test_faces_are_held_out_too(tmp_path, monkeypatch):
    """Lesson: of the endless series some are trained on, and 1,000 others are not, by lot."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(few_pictures, "IMAGES", 20)
    few_pictures.save_pictures(few_pictures.faces(8), 8)
    training, heldout = codes_in("training"), codes_in("heldout")
    assert len(training) == 8 and sorted(map(int, training + heldout)) == list(range(28))
    assert max(map(int, training)) > 8                         # control: not simply the first ones
    for path in Path("pictures", "training").iterdir():
        number = int(path.stem.split("-")[1])
        assert Image.open(path).tobytes() == paint_face(number, 32).tobytes()


def test_a_disc_stays_round(tmp_path, monkeypatch):
    """Lesson: a glyph is padded to a square before it is made smaller, and not stretched."""
    monkeypatch.chdir(tmp_path)
    glyph = Image.new("RGB", (136, 128), "white")
    ImageDraw.Draw(glyph).ellipse([18, 14, 118, 114], fill="black")
    few_pictures.save_pictures(few_pictures.emoji({0x1F300 + k: glyph for k in range(3)}, 1), 1)
    dark = np.asarray(Image.open(next(Path("pictures/heldout").iterdir())).convert("L")) < 128
    extents = [np.ptp(np.flatnonzero(dark.any(axis=axis))) for axis in (0, 1)]
    assert dark.shape == (64, 64) and abs(extents[0] - extents[1]) <= 1
    stretched = np.asarray(glyph.convert("L").resize((64, 64))) < 128      # control
    assert abs(np.subtract(*[np.ptp(np.flatnonzero(stretched.any(axis=axis)))
                             for axis in (0, 1)])) > 1


def test_copies_are_found_and_new_pictures_are_not_called_so():
    """Lesson: a distance alone cannot tell a copy from a picture that is plain. A ratio of two can:
    to the training pictures, and to as many that nobody trained on."""
    def blurred(images):
        return F.avg_pool2d(F.pad(images, [2] * 4, mode="replicate"), 5, 1)

    # Soft coloured spots; 100 to train on, 300 held out, 300 new ones.
    everything = F.interpolate(torch.randn(700, 3, 4, 4), scale_factor=4, mode="bicubic")
    training, heldout, new = everything.split([100, 300, 300])
    found = {name: few_pictures.by_heart(images.flatten(1), clouds(training), clouds(heldout))
             for name, images in {
                 "darker": training - 0.1, "mirrored": 0.95 * training.flip(3), "new": new,
                 "blurred": blurred(training), "new, faint": 0.3 * new}.items()}
    for name in ("darker", "mirrored", "blurred"):
        (nearer, by_lot, copies), _, which = found[name]
        assert nearer == 1 and copies > 0.9 and torch.equal(which, torch.arange(100))
        assert 0.5 < by_lot < 0.9
    for name in ("new", "new, faint"):                         # (how far from a half: next test)
        (nearer, _, copies), *_ = found[name]
        assert nearer < 0.9 and copies < 0.05
    # Control: without mirror images the mirrored ones are not found.
    once = [images.flatten(1).expand(2, -1, -1) for images in (training, heldout)]
    assert few_pictures.by_heart(0.95 * training.flip(3).flatten(1), *once)[0][2] < 0.1
    # Control: by distance alone, faint new pictures are nearer than 99 % of held-out ones.
    usual, faint = (few_pictures.distances(images.flatten(1), clouds(training)).amin(dim=1)
                    for images in (heldout[100:], 0.3 * new))
    assert (faint < usual.quantile(0.01)).float().mean() > 0.9


def test_what_is_more_than_luck_is_known():
    """Lesson: pictures that look alike are all nearest to the same few, and on which side these lie
    is luck. So a share far from a half need not be learned; drawing the lot again says how far."""
    above = []
    for _ in range(12):
        everything = F.interpolate(torch.randn(240, 3, 4, 4), scale_factor=2, mode="bicubic")
        training, heldout, new = everything.split([50, 140, 50])
        nearer, by_lot, _ = few_pictures.by_heart(
            0.3 * new.flatten(1), clouds(training), clouds(heldout))[0]
        # As if 50 coins were tossed: control.
        above.append((nearer > by_lot, abs(nearer - 0.5) > 0.98 / 50 ** 0.5))
    by_lot, by_coin = np.sum(above, axis=0)
    assert by_lot <= 2 and by_coin >= 4


@pytest.fixture
def reals(tmp_path, monkeypatch):
    """A folder with 10 training pictures, 30 held out, and features of both that need no package:
    every 29th pixel."""
    monkeypatch.setattr(few_pictures, "IMAGES", 20)
    monkeypatch.setattr(few_pictures, "load_features", lambda *_: Features(
        "Pixels", lambda images: images.flatten(1)[:, ::29], None, None, {}))
    monkeypatch.chdir(tmp_path)
    few_pictures.save_pictures(few_pictures.emoji(glyphs(), 10), 10)
    few_pictures.look_at_reals(CPU)


def test_a_generator_that_repeats_its_pictures_is_shown_beside_them(reals, monkeypatch):
    """Lesson: the whole way from a checkpoint to the figure, with a G that has learned by heart,
    and one that makes what was held out."""
    def look(part):
        images = few_pictures.images_of(part)[0]

        def G(z, **_):
            return images[torch.arange(len(z)) % len(images)].flip(3)

        def D(batch):                                          # knows what it was shown
            known = few_pictures.images_of("training")[0]
            return torch.cdist(batch.flatten(1), known.flatten(1)).amin(dim=1, keepdim=True).neg()

        G.latent_dim = 8
        monkeypatch.setattr(few_pictures.morph, "load_networks", lambda *_: types.SimpleNamespace(
            networks={"generator_ema": G, "discriminator": D}))
        few_pictures.look_for_copies(CPU, Path("checkpoint.pt"), Path("off-0", "neighbours.pt"))
        return torch.load(Path("off-0", "neighbours.pt"))

    repeated = look("training")
    assert repeated["shares"][::3] + repeated["shares"][2::3] == [1] * 4
    assert (repeated["ratios"] < 0.01).all() and max(repeated["shares"][1::3]) < 1
    assert torch.equal(repeated["closest"], repeated["training"].flip(3))
    training_score, others_score, _ = repeated["scores"]
    assert training_score > -0.1 and others_score < -1
    monkeypatch.setattr(figures, "draw_figure", lambda title, rows: rows)
    samples, closest, training = few_pictures.draw(["off", "0.8"], "0")  # no 0.8 was measured
    assert samples.label.startswith("off") and closest.captions[0] == "0.00"
    for above, below in zip(closest.tiles, training.tiles):
        assert torch.equal(above, below.flip(2))
    others = look("heldout")                                   # control
    assert others["shares"][2] < 1 and others["ratios"].max() > 0.5


def test_the_table_has_the_last_state_and_no_half_run(reals, capsys):
    """Lesson: minutes are those of the arm; what the donor took before is not its own."""
    def write(name, begin, metrics=True):
        Path(name).mkdir()
        lines = [{"nimg": begin + 1000 * (1 + k), "seconds_per_kimg": 60.0, "real_signs": 0.25 * k,
                  "augment_strength": 0.125 * k} for k in range(3)]
        Path(name, "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if metrics:
            Path(name, "metrics.jsonl").write_text(
                '{"metric": "FD-EffLite0", "value": 7}\n{"metric": "KID-EffLite0", "value": 9}\n')
            few_pictures.save(Path(name, "neighbours.pt"), {
                "FD": 11.0, "scores": [2.0, -1.0, -3.0], "shares": [0.5] * 6})

    write("donor", 0, metrics=False)
    write("off-0", 0)
    write("transfer-0", 3000)
    write("transfer-1", 3000, metrics=False)                   # trained, not measured
    few_pictures.print_table(["off", "transfer"], ["0", "1", "2"])
    off, transfer, floor = capsys.readouterr().out.splitlines()[2:]
    assert off == "| off | 3 (3) | 0.5 (0.5) | 0.25 (0.25) | 7 (7) | 9 (9) | 11 (11) |"\
        " 2 (2) | -1 (-1) | -3 (-3) |" + " 0.5 (0.5) |" * 6
    assert transfer == off.replace("off", "transfer")
    halves = [few_pictures.half_mirrored(cloud).double() for cloud in (
        torch.load("reals.pt")["training"], torch.load("reals.pt")["heldout"])]
    assert f"{evaluate.fid(*halves):.3g}" in floor


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_command_can_be_typed_and_waits_for_what_it_reads(device):
    """Lesson: an option that was renamed is found now, and not after an hour of training. And a GPU
    trains the networks of a CPU, at their rates, though its own preset has others."""
    jobs, typed = few_pictures.plan(few_pictures.ARMS, ["0", "1"], 8.0, device), []
    preset, _ = options.complete_options({"data": "x", "architecture": "stylegan2"}, CPU)
    results = {job[2] for job in jobs.values()}
    for name, (command, needed, _) in jobs.items():
        words = [str(word) for word in command]
        read = {word for word in command[2:] if isinstance(word, Path) and word in results}
        assert read - {jobs[name][2]} <= set(needed) <= results
        if words[:2] == [few_pictures.TRAIN, "train"]:
            wanted = options.parse_args(words[2:])
            typed.append(name)
            if "resume" in wanted:                             # the options are the donor's
                donor = options.parse_args([str(word) for word in jobs["donor"][0][2:]])
                resumed = options.complete_options(
                    {k: v for k, v in donor.items() if k not in ("out", "device")},
                    torch.device(device))
                given = {k: v for k, v in wanted.items() if k not in ("out", "device", "resume")}
                found, _ = options.complete_options(
                    given, torch.device(device), resumed[0])
                assert found["freeze_d"] == 16 and found["total_kimg"] == 16
            else:
                found, _ = options.complete_options(
                    {k: v for k, v in wanted.items() if k not in ("out", "device")},
                    torch.device(device))
                assert found["total_kimg"] == 8 and found["freeze_d"] is None
            assert device in words and found["precision"] == ("tf32" if device == "cuda" else (
                preset["precision"]))
            assert {name for name in preset if found[name] != preset[name]} <= {
                "data", "total_kimg", "augment", "freeze_d", "precision", "seed"}
        elif words[0] == "evaluate.py":
            assert evaluate.parse_args(words[1:]).data == "pictures/heldout"
    assert len(typed) == 11 and sum(name.startswith("measure") for name in jobs) == 10


def test_faces_learn_as_the_default_run_does():
    """Lesson: with --data alone another preset would be taken, for other pictures."""
    jobs = few_pictures.plan(["off", "adaptive"], ["0"], 80.0, "cpu", few_pictures.FACES)
    default, _ = options.complete_options({}, CPU)
    other, _ = options.complete_options({"data": "x"}, CPU)
    for name, augment in (("off-0", "off"), ("adaptive-0", "adaptive")):
        found = options.parse_args([str(word) for word in jobs[name][0][2:]])
        found, _ = options.complete_options(
            {k: v for k, v in found.items() if k not in ("out", "device")}, CPU)
        assert found["augment"] == augment
        assert {k for k in default if found[k] != default[k]} <= {"data", "total_kimg", "augment"}
        assert found["learning_rate"] != other["learning_rate"]            # control
    stages = train.plan_stages(4, 32, found["fade_kimg"], found["stabilize_kimg"])
    assert 1000 * few_pictures.FACES_KIMG == next(s.start for s in stages if s.resolution == 32)


def test_what_faces_cannot_do_is_one_sentence(capsys):
    """Lesson: a donor that learned painted faces would have seen those held out. And a run that
    ends at 16 px would fail only when it is over."""
    for words, said in ((["--arms", "off,transfer"], "'transfer' is none of off, 0.8, adaptive"),
                        (["--kimg", "50"], "more than 50, where 32 px begin")):
        code, error = refused(few_pictures.main, ["--faces", *words], capsys)
        assert code == 2 and said in error


@pytest.mark.parametrize("font", ["missing.ttf", "text.ttf"])
def test_a_font_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys, font):
    """Lesson: what is missing is said before anything is made."""
    monkeypatch.setattr(few_pictures.convert, "PACKAGES", ())
    monkeypatch.chdir(tmp_path)
    Path("text.ttf").write_text("no font")
    code, error = refused(few_pictures.main, ["--font", font], capsys)
    assert code == 2 and font in error
    assert ("apt install" in error) == (font == "missing.ttf")
    assert [path.name for path in tmp_path.iterdir()] == ["text.ttf"]
