"""Run by hand: 300 pictures. What do --augment and transfer help, and is anything learned by heart?

    python experiments/few_pictures.py             all of it; Ctrl-C stops, the same command goes on
    python experiments/few_pictures.py --table --plot few.png     what has been measured so far
    python experiments/few_pictures.py --pictures 60              of fewer: each is shown more often
    python experiments/few_pictures.py --faces --pictures 100      painted faces instead

The pictures are emoji of 64 px: a real set, of many kinds, drawn by people. 300 of them are trained
on. The others are held out: no network ever sees one, and all judging is against them. Each arm
trains for --kimg; an arm of transfer goes on from a donor that learned painted faces for as long.
Three seeds: a difference smaller than that between the seeds of one row says nothing.

--faces: painted faces of 32 px, with the settings of the default run. A CPU shows them more often
in the same time. 1,000 more are held out. There is no transfer: its donor would have seen them.

FD-EffLite0 and KID-EffLite0 by evaluate.py, smaller is better; the last row is what the training
pictures themselves get. FD is biased, the more the fewer pictures. So that row has only its "FD of
300" (of as many as are trained on), to be compared with that of as many samples. KID has no such
bias.

"Nearer" is the share of samples that are nearer to one of the 300 training pictures than to all of
300 held-out ones: all if G repeats what it was shown, and a half, more or less, if it does not; "by
lot" says how much more can be luck. "Copies" are much nearer; of held-out pictures 1 % are (part
2). First by the features, then by the pixels: pixels see no copy that has moved, features none that
is blurred.

"D" is the mean score that D gives to the training pictures, to others, and to samples. It has seen
neither of the latter two. If it tells others from training pictures, it has learned these by heart.

Needs:    pip install -r requirements-extra.txt; for emoji: apt install fonts-noto-color-emoji
[MACHINE] 2 CPU cores: two hours (estimated from 17 images/s of one thread); --faces: an hour and a
          half (estimated; 70 kimg took 13 minutes of one). More cores: --jobs. A GPU: --device
          cuda, with the networks and rates of a CPU, and --jobs 15, a core for each.
"""

import argparse
import importlib.util
import math
import os
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import convert
import evaluate
import morph
import stylegan_dataloader as data
from workshop import UserError, curves, figures, machine, options
from workshop.features import compute_features, load_features
from workshop.measuring import on_its_own
from workshop.painted_faces import paint_face

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
IMAGES = 1000                                                  # samples that are judged
# Side in pixels, architecture, preset.
EMOJI = 64, "stylegan2", "your pictures on a CPU"
FACES = 32, "stylegan", "painted faces on a CPU"
FACES_KIMG = 50                                                # there its 32 px begin
ARMS = {"off": [], "0.8": ["--augment", "0.8"], "adaptive": ["--augment", "adaptive"],
        "transfer": ["--freeze-d", 16],
        "transfer-adaptive": ["--freeze-d", 16, "--augment", "adaptive"]}
SCRIPT, SHOWN = "experiments/few_pictures.py", 10
TRAIN = "experiments/architectures.py"                         # counts in CPU time

# ---- 1. The pictures -------------------------------------------------------------------------


def glyphs(path):
    """{code point: picture} of a colour font, U+1F300 to U+1FAFF; white where it has none."""
    if not path.is_file():
        raise UserError(f"--font {path}: no such file; apt install fonts-noto-color-emoji, or name "
                        f"another place of NotoColorEmoji.ttf")
    try:
        # The font holds pictures of one size, 136 x 128 pixels, and calls it 109.
        font = ImageFont.truetype(path, 109)
    except OSError as error:
        raise UserError(f"--font {path}: not a font with pictures of 109 px ({error})") from None
    found = {code: Image.new("RGB", (136, 128), "white") for code in range(0x1F300, 0x1FB00)}
    for code, picture in found.items():
        ImageDraw.Draw(picture).text((0, 0), chr(code), font=font, embedded_color=True)
    return found


def emoji(found, training):
    """Glyphs -> [(name, picture)] of 64 px without those all white.

    Errors: UserError if these are too few.
    """
    some = [item for item in sorted(found.items()) if item[1].getextrema() != ((255, 255),) * 3]
    if len(some) < 3 * training:
        raise UserError(f"--pictures {training}: three times as many are needed, and the font has "
                        f"{len(some)} pictures")
    squares = []
    for code, picture in some:
        square = Image.new("RGB", (136, 136), "white")
        square.paste(picture, (0, 4))
        square = square.resize((EMOJI[0], EMOJI[0]), Image.Resampling.LANCZOS)
        squares.append((f"{code:x}", square))
    return squares


def faces(training):
    """[(name, picture)] of 32 px, IMAGES more than are trained on."""
    return [(str(number), paint_face(number, FACES[0])) for number in range(training + IMAGES)]


def save_pictures(some, training):
    """[(name, picture)] -> pictures/training and pictures/heldout, each picture in one of them.
    Their names begin with their place in the lot, so that the first held-out ones are of all kinds.

    Proved: tests/test_few_pictures.py::test_each_picture_is_trained_on_or_held_out
    """
    shutil.rmtree("pictures.tmp", ignore_errors=True)
    for part in ("training", "heldout"):
        Path("pictures.tmp", part).mkdir(parents=True)
    for place, number in enumerate(np.random.default_rng(0).permutation(len(some))):
        name, picture = some[number]
        part = "training" if place < training else "heldout"
        picture.save(Path("pictures.tmp", part, f"{place:05d}-{name}.png"))
    Path("pictures.tmp").rename("pictures")


def trained_on():
    """How many pictures are trained on."""
    return len(list(Path("pictures", "training").iterdir()))


def images_of(part):
    """The pictures of a part and their mirror images, float [2, n, 3, R, R]."""
    images = data.to_images(torch.from_numpy(np.stack([
        np.asarray(Image.open(path)) for path in sorted(Path("pictures", part).iterdir())])))
    return torch.stack([images, images.flip(3)])


# ---- 2. Learned by heart? --------------------------------------------------------------------
#
# A distance to the nearest training picture says nothing alone: a blurred sample is far from all
# pictures in features, and near to all in pixels. So it is divided by the distance to the nearest
# of as many held-out pictures. Training and held-out pictures were drawn by lot. For a picture that
# has nothing to do with either, the ratio is below 1 as often as above; and whatever moves a sample
# away from all pictures moves it away from both. With mirror images, since D was shown them, too.
#
# "Copies" have a ratio less than that of 99 % of the other held-out pictures. Some of these have a
# twin that was trained on (24 clock faces); a copy must be nearer than most twins are.
# Samples that look alike are nearest to the same few pictures, which by luck lie in one half or the
# other. So the lot is drawn 200 times more, and "by lot" is what 97.5 % of these remain below.


def distances(points, cloud):
    """Points [N, F], cloud [2, M, F] as it is and mirrored -> [N, M], of the nearer of the two."""
    return torch.minimum(torch.cdist(points, cloud[0]), torch.cdist(points, cloud[1]))


def by_heart(samples, training, heldout):
    """([share nearer to training pictures, that by lot, copies], ratios [N], nearest picture [N]).

    Shapes: samples [N, F]; training [2, M, F], heldout [2, M + K, F]: K say what is usual.
    Proved: tests/test_few_pictures.py::test_copies_are_found_and_new_pictures_are_not_called_so
    """
    m, generator = training.shape[1], torch.Generator().manual_seed(0)
    everything = torch.cat([training, heldout], dim=1)
    found = distances(samples, everything)                                 # [N, M + M + K]

    def ratios(d):
        return d[:, :m].amin(dim=1) / d[:, m:2 * m].amin(dim=1).clamp(min=1e-9)

    usual = ratios(distances(heldout[0, m:], everything[:, :2 * m]))       # [K]
    lots = [torch.randperm(everything.shape[1], generator=generator)[:2 * m] for _ in range(200)]
    by_lot = torch.stack([(ratios(found[:, lot]) < 1).float().mean() for lot in lots])
    ratio = ratios(found)
    shares = (ratio < 1).float().mean(), by_lot.quantile(0.975), (
        ratio < usual.quantile(0.01)).float().mean()
    return [share.item() for share in shares], ratio, found[:, :m].argmin(dim=1)


def mean_score(D, images):
    """What D says of images [N, 3, R, R], in batches as in training, of whole groups of 4: it looks
    at how much the pictures of a group differ."""
    batches = images[:len(images) // 4 * 4].split(16)
    return torch.cat([D(batch) for batch in batches]).mean().item()


def save(path, state):
    with figures.written(path) as temporary:                   # whole or not at all
        torch.save(state, temporary)


def look_at_reals(device):
    """reals.pt: features [2, n, F] of all pictures and mirror images, computed once."""
    network = load_features("efficientnet-lite0", device)
    save("reals.pt", {part: torch.stack([
        compute_features(network, images.to(device).split(32), None, part)
        for images in images_of(part)]).cpu() for part in ("training", "heldout")})


@torch.no_grad()
def look_for_copies(device, checkpoint, result):
    """neighbours.pt of a run: the shares, pictures for the figure, FD of as few samples as there
    are training pictures, and D's mean scores of training pictures, others and samples."""
    network, reals = load_features("efficientnet-lite0", device), torch.load("reals.pt")
    training, heldout = images_of("training"), images_of("heldout")
    G, D = morph.load_networks(checkpoint, device,
                               ("generator_ema", "discriminator")).networks.values()
    with on_its_own(0, device):
        samples = torch.cat(list(evaluate.generated_images(
            G, evaluate.Settings(training.shape[-1], images=IMAGES)))).clamp(-1, 1)
    scores = [mean_score(D, images.to(device)) for images in (training[0], heldout[0], samples)]
    points = compute_features(network, samples.split(32), None, "samples").cpu()
    samples = samples.cpu()
    shares, ratios, which = by_heart(points, reals["training"], reals["heldout"])
    in_pixels, *_ = by_heart(samples.flatten(1), training.flatten(2), heldout.flatten(2))
    closest = ratios.argsort()[:SHOWN]
    save(result, {
        "shares": shares + in_pixels, "scores": scores,
        "FD": evaluate.fid(points[:training.shape[1]].double(),
                           half_mirrored(reals["heldout"]).double()),
        "samples": samples[:SHOWN].clone(), "ratios": ratios[closest],
        "closest": samples[closest], "training": training[0, which[closest]]})


# ---- 3. The jobs, the table, the figure ------------------------------------------------------


def preset(resolution, architecture, situation):
    """The options of train.py for a situation on a CPU, spelled out for any device."""
    found = {**options.PRESETS[situation], "workers": 0, "accumulate": 1}
    if architecture == "stylegan2":
        found |= {**options.STYLEGAN2, **options.STYLEGAN2_PRESETS[situation]}
    found |= {"architecture": architecture, "resolution": resolution}
    del found["total_kimg"]
    return [word for name, value in found.items()
            for word in (f"--{name.replace('_', '-')}", value)]


def plan(arms, seeds, kimg, device="cpu", kind=EMOJI):
    """The jobs, as `convert.plan`. Seed by seed: who stops early has whole rounds."""
    last, reals, jobs = f"checkpoint-{kind[0]}.pt", Path("reals.pt"), {}
    donor = Path("donor", last)
    precision = [] if device == "cpu" else ["--precision", "tf32"]         # also from a CPU's donor
    device = ["--device", device]
    jobs["reals"] = [SCRIPT, "reals", *device], [], reals
    if any(arm.startswith("transfer") for arm in arms):
        jobs["donor"] = ([TRAIN, "train", *preset(*kind), *device, *precision, "--seed",
                          0, "--total-kimg", f"{kimg:.12g}", "--out", "donor"], [], donor)
    for seed in seeds:
        for arm in arms:
            name = f"{arm}-{seed}"
            kept, transfer = Path(name, last), arm.startswith("transfer")
            begin = ["--resume", donor] if transfer else preset(*kind)
            jobs[name] = (
                [TRAIN, "train", *begin, *device, *precision, *ARMS[arm],
                 "--data", "pictures/training", "--seed", seed,
                 "--total-kimg", f"{(1 + transfer) * kimg:.12g}", "--out", name],
                [donor] * transfer, kept)
            jobs[f"measure-{name}"] = (
                ["evaluate.py", kept, "--data", "pictures/heldout", "--metrics", "fid,kid",
                 "--features", "efficientnet-lite0", "--images", IMAGES, *device],
                [kept, reals], Path(name, "metrics.jsonl"))
            near = Path(name, "neighbours.pt")
            jobs[f"neighbours-{name}"] = ([SCRIPT, "neighbours", *device, kept, near],
                                          [kept, reals], near)
    return jobs


def row_of(name):
    """A run's numbers in the order of the table, or None if they are not all there."""
    found, near = convert.measured(Path(name, "metrics.jsonl")), Path(name, "neighbours.pt")
    if not set(convert.METRICS) <= set(found) or not near.is_file():
        return None
    near, log = torch.load(near), curves.read_lines(Path(name, "log.jsonl"))
    donor = curves.read_lines(Path("donor", "log.jsonl")) if name.startswith("transfer") else []
    nimg = [donor[-1]["nimg"] if donor else 0, *(line["nimg"] for line in log)]
    seconds = sum(line["seconds_per_kimg"] * (after - before) / 1000
                  for line, before, after in zip(log, nimg, nimg[1:]))
    return [seconds / 60, log[-1]["real_signs"], log[-1].get("augment_strength", 0.0),
            *(found[metric] for metric in convert.METRICS), near["FD"],
            *near.get("scores", [math.nan] * 3),               # earlier versions' have none
            *near["shares"]]


def half_mirrored(cloud):
    """[2, n, F] -> [n, F]: every second one mirrored, as evaluate.py shows about half of them."""
    return torch.where(torch.arange(cloud.shape[1])[:, None] % 2 == 0, cloud[0], cloud[1])


def print_table(arms, seeds):
    titles = ("minutes", "sign D(real)", "strength", *convert.METRICS, f"FD of {trained_on()}",
              "D: training", "others", "samples", *("nearer", "by lot", "copies") * 2)
    print(f"| | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
    for arm in arms:
        rows = [row for seed in seeds if (row := row_of(f"{arm}-{seed}"))]
        print(f"| {arm} |", *(
            f"{statistics.mean(values):.3g} ({', '.join(f'{value:.3g}' for value in values)}) |"
            for values in zip(*rows)))
    if Path("reals.pt").is_file():
        reals = [half_mirrored(torch.load("reals.pt")[part]) for part in ("training", "heldout")]
        found = evaluate.compare(("fid", "kid"), *reals, None)
        print(f"| the training pictures | | | | | {found['KID'][0]:.3g} | {found['FID'][0]:.3g} "
              "| | | | 1 | | 1 | 1 | | 1 |")


def draw(arms, seed):
    """For each arm: samples; those that are nearest to training pictures; and these."""
    rows = []
    for arm in arms:
        if (path := Path(f"{arm}-{seed}", "neighbours.pt")).is_file():
            found = torch.load(path)
            side = figures.tile_side(found["samples"].shape[-1])
            captions = [f"{ratio:.2f}" for ratio in found["ratios"].tolist()]
            for key, label in (("samples", f"{arm}\nsamples"),
                               ("closest", f"the nearest\nof {IMAGES}"), ("training", "to these")):
                rows.append(figures.Row([figures.to_tile(image, side) for image in found[key]],
                                        label, captions * (key == "closest"), key == "samples"))
    if not rows:
        raise UserError("--plot: nothing has been measured yet")
    return figures.draw_figure(
        "Samples; those that are nearest to a training picture, with their distance to it in parts "
        f"of that to the nearest of {trained_on()} held-out pictures; and the training picture",
        rows)


def main(argv=None):
    parser = options.OneLineParser(prog="few_pictures.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("experiment_few_pictures"),
                        help="for all that is made (default experiment_few_pictures)")
    parser.add_argument("--jobs", metavar="N", type=options.number_from(1), default=2,
                        help="side by side, one thread each (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default cpu)")
    parser.add_argument("--font", metavar="FILE", type=Path, default=FONT, help=f"(default {FONT})")
    parser.add_argument("--faces", action="store_true", help="painted faces instead of emoji")
    parser.add_argument("--pictures", metavar="N", type=options.number_from(4), default=300,
                        help="to train on (default 300)")
    parser.add_argument("--kimg", type=options.number_from(0.1, float),
                        help="each run (default 12, with --faces 80)")
    parser.add_argument("--arms", metavar="LIST", help=f"of {','.join(ARMS)} (default all; with "
                        "--faces the first three)")
    parser.add_argument("--seeds", metavar="LIST", default="0,1,2", help="(default 0,1,2)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--plot", metavar="FILE", type=lambda text: Path(text).resolve(),
                        help="a .png of samples and neighbours")
    o = parser.parse_args(argv)
    possible = [arm for arm in ARMS if not (o.faces and arm.startswith("transfer"))]
    arms, seeds = o.arms.split(",") if o.arms else possible, o.seeds.split(",")
    if unknown := set(arms) - set(possible):
        parser.error(f"--arms: {sorted(unknown)[0]!r} is none of {', '.join(possible)}")
    o.kimg = o.kimg or (80.0 if o.faces else 12.0)
    if o.faces and o.kimg <= FACES_KIMG:
        parser.error(f"--kimg {o.kimg:g}: with --faces more than {FACES_KIMG}, where 32 px begin")
    if o.plot and o.plot.suffix.lower() not in figures.FIGURES:
        parser.error(f"--plot {o.plot}: is drawn as {', '.join(figures.FIGURES)}")
    if o.plot:
        figures.check_free(o.plot, "--plot")
    missing = [name for name in convert.PACKAGES if importlib.util.find_spec(name) is None]
    if missing and not o.table:                                # better now than after an hour
        raise UserError(f"needs {', '.join(missing)}: pip install -r requirements-extra.txt")
    if not o.table:
        machine.pick_device(o.device)
    # A folder in it for each length, so that no number of a rehearsal gets into the table.
    folder = o.folder / (f"kimg-{o.kimg:g}" + f"-pictures-{o.pictures}" * (o.pictures != 300)
                         + "-faces" * o.faces)
    new = not (folder / "pictures").is_dir()
    if o.table and new:
        raise UserError(f"{folder}: nothing has been measured yet")
    if new:                                                    # may fail: before a folder is made
        some = faces(o.pictures) if o.faces else emoji(glyphs(o.font), o.pictures)
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if new:
        save_pictures(some, o.pictures)
    if not o.table:
        convert.work(plan(arms, seeds, o.kimg, o.device, FACES if o.faces else EMOJI), o.jobs)
    print_table(arms, seeds)
    if o.plot:
        figures.save_picture(o.plot, draw(arms, seeds[0]))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] in (["reals"], ["neighbours"]):           # one of the jobs
        machine.keep_freed_memory()
        job = look_at_reals if sys.argv[1] == "reals" else look_for_copies
        options.start(lambda words: job(torch.device(words[0]), *map(Path, words[1:])),
                      "few_pictures.py", argv=sys.argv[3:])
    options.start(main, "few_pictures.py", "stopped; the same command goes on")
