"""experiments/table1.py: what a row of the table takes away, and what it leaves."""

import sys

import pytest
import torch

import stylegan_layers as layers
import stylegan_models as models
import tiny
from conftest import ROOT
from workshop import options

sys.path.append(str(ROOT / "experiments"))                     # last: it has a morph.py of its own
import table1


def generator(row):
    """G of a row, 16 px, with styles, noise strengths and inputs that are not what they start as;
    and what it makes of ws and a seed for the noise."""
    torch.manual_seed(0)
    with table1.without(row):
        G = models.make_generator(tiny.SETTINGS).requires_grad_(False)
        for name, parameter in G.named_parameters():
            if "strength" in name or "style" in name or "const" in name:
                parameter.normal_()

    def draw(ws, seed=0):
        torch.manual_seed(seed)
        with table1.without(row):
            return G.synthesis(ws)
    return G, draw


def test_each_row_is_the_one_before_and_one_idea_more():
    """Lesson: what an idea does can be seen in the picture. ProGAN's G (A, B) listens to w at its
    first layer only, the later rows at every layer. With a constant (from D on) the first layer
    hears w only through its style. From E on the noise counts. A blur makes B of A."""
    torch.manual_seed(1)
    ws, others = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    late = torch.cat([ws[:, :1], others[:, 1:]], dim=1)        # other styles behind the first
    for row in "ABCDEF":
        G, draw = generator(row)
        images = draw(ws)
        assert torch.equal(draw(ws, seed=1), images) == (row in "ABCD"), row
        assert torch.equal(draw(late), images) == (row in "AB"), row
        first = G.synthesis.blocks["4"].const
        assert isinstance(first, layers.LearnedConstant) == (row in "DEF"), row
        w, z = G.mapping(others[:, 0]), others[:, 0]
        assert torch.allclose(w, layers.PixelNorm()(z)) == (row in "AB"), row
    (_, a), (_, b) = generator("A"), generator("B")
    assert (a(ws) - b(ws)).abs().max() > 0.1
    x = torch.randn(1, 3, 8, 8)                                # A's resampling is ProGAN's
    weight = torch.randn(5, 3, 3, 3)
    with table1.without("A"):
        up, down = layers.upsample_conv_blur(x, weight), layers.blur_conv_downsample(x, weight)
    plain = torch.nn.functional.conv2d
    large = torch.nn.functional.interpolate(x, scale_factor=2)
    assert torch.allclose(up, plain(large, weight, padding=1), atol=1e-4)
    assert torch.allclose(down, torch.nn.functional.avg_pool2d(plain(x, weight, padding=1), 2),
                          atol=1e-4)
    assert not torch.allclose(layers.upsample_conv_blur(x, weight), up, atol=0.1)      # control
    assert models.SynthesisBlock(4, None, 4, 4).const.weight.shape == (1, 4, 4, 4)


@pytest.mark.slow
def test_a_run_is_judged_after_its_minutes_and_after_its_images(tmp_path, monkeypatch):
    """Lesson: equal images and equal minutes are two questions; one run answers both. Judge: the
    network of the first mark has seen fewer images and is another one; both are of the row."""
    tiny.no_rehearsal(monkeypatch)
    words = [*tiny.RUN, *map(str, table1.ROWS["D"][2]), "--total-kimg", "0.4", "--out",
             str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--data",
             str(tiny.save_pictures(tmp_path / "photos"))]
    kept, pictures = table1.run("D", words, 1e-9)
    assert [which for which, *_ in kept] == ["minutes", "images"]
    (_, early, young, *_, first), (_, late, old, r, alpha, last) = kept
    assert 0 < early < late and first == 8 and last >= 400
    assert not torch.equal(young.synthesis.to_rgb["4"].weight, old.synthesis.to_rgb["4"].weight)
    assert (r, alpha) == (8, 1.0) or r in (8, 16)
    assert not any(isinstance(module, layers.NoiseInput) for module in old.modules())
    assert len(pictures.dataset(8, "all")) == 70
    kept, _ = table1.run("F", words[:-4] + ["--out", str(tmp_path / "again"), *words[-4:]], 60.0)
    assert [which for which, *_ in kept] == ["images"]         # control: it never took an hour


def test_every_job_can_be_typed():
    """Lesson: an option that was renamed is found now, and not after an hour of training."""
    jobs = table1.plan(table1.ROWS, ("0", "1"), 0.5)
    assert len(jobs) == 20
    for command, _, result in jobs.values():
        script, job, row, seed, kimg, minutes, images, path = map(str, command)
        words = ["--total-kimg", kimg, "--seed", seed, *table1.ROWS[row][2],
                 *table1.shorter(kimg, row)]
        found = options.parse_args([str(word) for word in words])
        options.complete_options(found, torch.device("cpu"))
        assert float(kimg) == (30 if row.startswith("2") else 60) and images == "1024"
    with pytest.raises(SystemExit):                            # control
        options.parse_args(["--mixing-chance", "0"])
