"""explore.py: the latent space in a browser.   (12th)

    pip install -r requirements-extra.txt
    python explore.py runs/00000-faces/checkpoint.pt

Read before: generate.py, project.py.     Read next: import_checkpoint.py
Paper:   that of each control stands beside it, on the page and in `SAYS`.
Needs:   torch, torchvision, numpy, Pillow, tqdm; for the page gradio >= 6.27. A CPU is enough.
Letters: N images in the batch; L style layers; S size of w; R pixels a side. Images lie in [-1, 1].

A figure of generate.py shows what somebody has chosen. Here one turns a control and sees what it
does (docs/explore.png). All that a picture depends on, but for the network, is a `Look`:

    face --> w --> psi, cutoff --> mixing --> directions --> ws --> G, with its noise --> picture

A `Network` makes the pictures of looks. What did not change is not computed again: noise leaves ws
alone, and psi leaves w alone. It also says which command makes the same picture again. What the
options of generate.py cannot say, mixing and directions, is in ws, and ws fits into a file that
generate.py takes.

Several tabs may look at once; what each shows lies in its own controls. The networks are shared
under one lock (`page.LOCK`), which long work, a film or a photograph, takes for a step at a time.

How the page is laid out, what gradio needs to be told, and how files come and go, is looked up in
workshop/page.py.
"""

import functools
import pathlib
import time
import zlib
from typing import NamedTuple

import numpy as np
import torch

import generate
import project
import stylegan_models as models
from stylegan_dataloader import to_pixels
from stylegan_layers import AdaIN, ModulatedConv2d
from workshop import UserError, faces, figures, machine, page
from workshop.options import OneLineParser, Table, number_from, show, start

DIRECTIONS = page.DIRECTIONS         # how many of a range of layers have a slider: the strongest

# ---- 1. All that a picture depends on --------------------------------------------------------


class Given(NamedTuple):
    """A face without a seed: float32 [1 or L, S] as bytes, and the name that its noise goes by."""
    name: str
    numbers: bytes


class Look(NamedTuple):
    """All that a picture depends on, but for the network. Looks can be compared, and be keys.

    face:      a seed, or a `Given`.
    psi, cutoff, noise, noise_seed: as in `generate.Model`.
    strengths: factors for the learned strength of each block's noise, from 4 px up; (): none.
    mixes:     ((face, first, last), ...): these layers obey another face; the last one wins.
    moves:     (((first, last), (s1, s2, ...)), ...): in these layers w is moved along their SeFa
               directions. 1 is as far as a face is from the average one, typically.
    """
    face: int | Given = 0
    psi: float = 1.0
    cutoff: int | None = None
    noise: str = "const"
    noise_seed: int = 0
    strengths: tuple = ()
    mixes: tuple = ()
    moves: tuple = ()

    @property
    def plain(self):
        """Can options of generate.py say it? Otherwise its ws must go into a file."""
        return isinstance(self.face, int) and not self.mixes and not self.moves


def as_bytes(image):
    """float [3, R, R] -> uint8 [R, R, 3], rounded as in all pictures of these programs."""
    return to_pixels(image[None])[0].numpy()


# ---- 2. From a look to its picture, and to its command ---------------------------------------


class Network:
    """A checkpoint, the pictures of its looks, and the commands that make them again.

    Why:    a slider moves many times a second. A new picture needs the synthesis network once, and
            of all that comes before it only what changed.
    How:    the latest results of four methods are kept, by their arguments.
    Proved: tests/test_explore.py::test_what_did_not_change_is_not_computed_again
    """
    look = Look                      # for page.py, which makes looks of its controls

    def __init__(self, path, model):
        self.path, self.model, self.layers = path, model, model.layers
        self.spread = project.spread_of_w(model.G)
        for name, count in (("w", 256), ("directions", 64), ("ws", 64), ("picture", 16)):
            setattr(self, name, functools.lru_cache(count)(page.alone(getattr(self, name))))

    def w(self, face):
        """A face -> [1, 1 or L, S], not truncated.

        Each seed goes through the mapping network alone, as when generate.py is given one seed. In
        a batch sums may be rounded otherwise, and some pixel could become another.
        """
        if isinstance(face, int):
            return generate.w_of(self.model, [face])
        w = torch.from_numpy(np.frombuffer(face.numbers, np.float32).copy())
        return w.reshape(1, -1, len(self.model.G.w_avg)).to(self.model.G.w_avg.device)

    def directions(self, first, last):
        """The strongest directions of layers first..last, [DIRECTIONS, S] (`generate.sefa`)."""
        strongest = generate.sefa(generate.style_matrix(self.model, first, last))[0][:DIRECTIONS]
        return strongest.float().to(self.model.G.w_avg.device)

    @torch.no_grad()
    def ws(self, face, psi, cutoff, mixes, moves):
        """What the synthesis network is given, [1, L, S]: truncated, then mixed, then moved.

        Why:    in this order a strength is the same way for every psi. (Mixing could come first as
                well: truncation acts on each layer for itself.)
        Paper:  truncation: StyleGAN, appendix B. Mixing: section 3.1, there in training, so that
                no layer relies on its neighbours having the same w. Directions: SeFa (arXiv
                2007.06600).
        Proved: tests/test_explore.py::test_moves_and_mixes_act_in_their_layers_only,
                ::test_a_strength_is_the_same_way_for_every_psi
        """
        model = self.model._replace(psi=psi, cutoff=cutoff)
        ws = generate.truncated(model, self.w(face)).clone()
        for other, first, last in mixes:
            ws = generate.mix(ws, generate.truncated(model, self.w(other)), first, last)
        for (first, last), strengths in moves:
            directions = self.directions(first, last)[:len(strengths)]                 # [k, S]
            steps = self.spread * torch.tensor(strengths).to(directions)               # [k]
            ws[:, first:last + 1] += steps @ directions
        return ws

    def ws_of(self, look):
        return self.ws(look.face, look.psi, look.cutoff, look.mixes, look.moves)

    @page.alone
    def numbers_of(self, look):
        return self.ws_of(look).cpu()

    def model_of(self, look, psi=1.0, cutoff=None):
        """The `generate.Model` with the look's noise, and with a truncation that is still to do."""
        return self.model._replace(noise=look.noise, seed=look.noise_seed, psi=psi, cutoff=cutoff,
                                   strengths=self.strengths_of(look))

    def strengths_of(self, look):
        """{resolution: factor} for --noise-strength: each holds up to the next. Or None."""
        table = Table()
        for r, factor in zip(models.resolutions_up_to(self.model.resolution), look.strengths):
            if factor != (table[r] if table else 1.0):
                table = table or Table({4: 1.0})
                table[r] = factor
        return table if table and look.noise != "none" else None

    def file_of(self, look):
        """The name of the look's file: its face, and a checksum of its ws: seed0005-1a2b3c4d."""
        name = f"seed{look.face:04d}" if isinstance(look.face, int) else look.face.name
        return f"{name}-{zlib.crc32(self.numbers_of(look).numpy().tobytes()):08x}"

    def render(self, look, **how):
        """One image, float [3, R, R]; `how`: of a smaller resolution.

        Noise:  random maps are drawn from the number of the face, which an edited face keeps
                (`faces.key_of`). Else each move of a slider would draw others, and one could not
                tell what the slider did from what chance did.
        Proved: tests/test_explore.py::test_an_edited_face_keeps_its_noise
        """
        key = faces.key_of(look.face if look.plain else pathlib.Path(self.file_of(look)))
        with page.LOCK:
            return next(generate.render(self.model_of(look), self.ws_of(look), [key], **how))

    def picture(self, look):
        """The look as bytes [R, R, 3]."""
        return as_bytes(self.render(look))

    def command(self, look, what="samples"):
        """The words of the command that makes the picture again, bit for bit on the same machine.

        Proved: tests/test_explore.py::test_the_printed_command_makes_the_same_picture
        """
        who = (["--seeds", str(look.face), *self.truncation_words(look)] if look.plain else
               ["--w", f"{self.file_of(look)}.npz"])
        return ["python", "generate.py", self.path, what, *who, *self.noise_words(look)]

    def truncation_words(self, look):
        """psi and cutoff as options of generate.py; psi 1 needs no cutoff."""
        cutoff = [] if look.cutoff is None else ["--cutoff", str(look.cutoff)]
        return ["--psi", show(look.psi), *cutoff] if look.psi != 1 else []

    def noise_words(self, look):
        """The noise as options of generate.py."""
        words = [] if look.noise == "const" else ["--noise", look.noise]
        words += ["--seed", str(look.noise_seed)] if look.noise == "random" else []
        strengths = self.strengths_of(look)
        return words + (["--noise-strength", show(strengths)] if strengths else [])

    def save_w(self, look):
        """The look's ws as a file for `generate.py --w`, at a place that page.py has chosen."""
        path = page.place_for(f"{self.file_of(look)}.npz")
        project.save_w(path, self.numbers_of(look)[0], [], self.layers)
        return path

    # ---- 3. More than one picture ----

    @torch.no_grad()
    def wall(self, who, look):
        """Yield pictures of many faces with the look's psi and noise.

        Paper:  StyleGAN, figure 2. Look for variety first, then for errors.
        How:    in batches, as `generate.py samples --seeds 0-11` makes them. So a tile is the
                picture of that command, and may differ from the large one, made alone, by a
                rounding.
        Proved: tests/test_explore.py::test_a_wall_is_what_its_command_draws
        """
        model = self.model_of(look, look.psi, look.cutoff)
        for part in figures.in_rows(who, model.batch):
            with page.LOCK:
                w = (generate.w_of(model, part) if isinstance(part[0], int) else
                     torch.cat([self.w(face).expand(-1, self.layers, -1) for face in part]))
                keys = [faces.key_of(face if isinstance(face, int) else pathlib.Path(face.name))
                        for face in part]
                images = list(generate.render(model, generate.truncated(model, w), keys))
            yield from map(as_bytes, images)

    def wall_command(self, seeds, look):
        return ["python", "generate.py", self.path, "samples", "--seeds", faces.spelled(seeds),
                *self.truncation_words(look), *self.noise_words(look)]

    def children(self, look, size, count):
        """Faces near a look: its ws, and for each child a random step of w, the same in all layers.

        Why:    nobody knows beforehand which way of w leads to the hair that one has in mind. Steps
                at random, and an eye that chooses, find it in some generations.
        Units:  size 1 is as far as a face is from the average one, typically.
        Proved: tests/test_explore.py::test_children_are_near_their_parent_and_keep_its_noise
        """
        ws = self.numbers_of(look)[0]                                                  # [L, S]
        stream = np.random.RandomState(zlib.crc32(ws.numpy().tobytes()))
        steps = torch.from_numpy(stream.standard_normal((count, 1, ws.shape[1]))).float()
        steps *= size * self.spread / steps.norm(dim=2, keepdim=True)
        return [Given(page.base_name(self.file_of(look)), (ws + step).numpy().tobytes())
                for step in steps]

    def ladder(self, look):
        """The picture at 4, 8, 16, ... px, each through its own to_rgb: [(bytes, caption), ...].

        Compare: in StyleGAN each to_rgb was last trained while its resolution was the newest, or
                was fading out. Later the block before it went on to change, so colours may be wrong
                below the top. In StyleGAN2 a picture is the sum of all to_rgb so far, and all of
                them are trained to the end (`generate.skips_figure`).
        """
        return [(as_bytes(self.render(look, resolution=r)), f"{r} px")
                for r in models.resolutions_up_to(self.model.resolution)]

    def places(self):
        """{"8 px, first": module, ...}: where a style acts. What comes out there can be looked at.

        In StyleGAN it is an AdaIN, in StyleGAN2 the convolution that the style modulates.
        """
        named = {}
        for r in models.resolutions_up_to(self.model.resolution):
            parts = [part for part in self.model.G.synthesis.blocks[str(r)].modules()
                     if isinstance(part, (AdaIN, ModulatedConv2d))]
            for part, which in zip(parts, (", first", ", second") if len(parts) > 1 else ("",)):
                named[f"{r} px{which}"] = part
        return named

    def activations(self, look, place, count=24):
        """The channels of one place that vary most over the picture: [(bytes [r, r], caption)].

        Why:    a style scales whole channels, the same at all pixels: such maps as are shown here.
                (In StyleGAN2 those shown are scaled by the next layer's style, not by this one's.)
        Units:  each goes from black, its own smallest value, to white, its largest.
        Proved: tests/test_explore.py::test_activations_are_what_the_next_layer_gets
        """
        kept = []
        if place not in list(self.places()):
            raise UserError(f"{place}: this network has {', '.join(self.places())}")
        with page.LOCK:
            hook = self.places()[place].register_forward_hook(
                lambda module, inputs, x: kept.append(x[0].float().cpu()))
            try:
                self.render(look)
            finally:
                hook.remove()
        maps = kept[0]                                                                 # [C, r, r]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        shown = (255 * (maps - low) / (high - low).clamp(min=1e-8)).round().byte().numpy()
        strongest = maps.flatten(1).std(dim=1).argsort(descending=True)[:count].tolist()
        return [(shown[channel], f"channel {channel}") for channel in strongest]

    def film(self, looks, count, one_way):
        """(frames, words of the command, files that it needs) of a video through the looks.

        How:    looks that options can say keep their seeds; otherwise all of them become files.
        Noise:  that of the first look. Random noise would flicker; the stored one is taken for it.
        Proved: tests/test_explore.py::test_the_command_of_a_video_makes_the_same_video
        """
        first = looks[0]._replace(noise=looks[0].noise.replace("random", "const"))
        if all(look.plain and look[1:3] == first[1:3] for look in looks):    # same psi and cutoff
            files, who = [], [look.face for look in looks]
            model = self.model_of(first, first.psi, first.cutoff)
            words = ["--seeds", ",".join(map(str, who)), *self.truncation_words(first)]
        else:
            files = who = [self.save_w(look) for look in looks]
            model, words = self.model_of(first), ["--w", *(path.name for path in who)]
        words = ["python", "generate.py", self.path, "interpolate", *words,
                 *self.noise_words(first), *["--one-way"] * one_way, "--frames", str(count)]
        return page.in_turns(generate.loop_frames(model, who, count, "w", one_way)), words, files

    @functools.cached_property
    def typical(self):
        """How far two faces of the network are apart: the RMS over 16, in levels of 255."""
        pictures = np.stack(list(self.wall(list(range(16)), Look()))).astype(float)
        return np.sqrt(2 * pictures.var(axis=0, ddof=1).mean())

    def find(self, path, steps, per_layer):
        """A photograph becomes a face (project.py), every ten steps seen on the way.

        Yields (what the network is to make, what it makes, what to say about it, the face).
        Proved: tests/test_explore.py::test_a_photo_becomes_a_face_and_is_judged
        """
        with page.without_path(path):
            target = project.read_target(path, self.model.resolution)
        with page.LOCK:
            device = self.model.G.w_avg.device
            distance = project.find_distance(None, device, self.model.resolution)
            found = project.search(
                self.model.G, self.model.resolution, self.model.alpha, target.to(device), steps,
                per_layer=per_layer, distance=distance)
        target = as_bytes(target[0])
        for step, w in enumerate(page.in_turns(w.cpu() for w, _ in found)):
            if step % 10 == 0 or step == steps:
                face = Given(page.base_name(pathlib.Path(path).stem), w.numpy().tobytes())
                picture = self.picture(Look(face))
                away = np.sqrt(np.square(picture - target.astype(float)).mean())
                yield target, picture, (
                    f"Step {step} of {steps}: {away:.0f} of 255 levels from the photograph (RMS); "
                    f"two faces of this network are {self.typical:.0f} apart." + (
                        self.verdict(away, per_layer) if step == steps else "")), face

    def verdict(self, away, per_layer):
        """What a distance says, in plain words.

        Differs: papers give LPIPS here, and no bound. Poor is more than half of what lies between
                two faces: a convention of this page, so that a poor fit is called one.
        """
        if away > self.typical / 2:
            return ("\n\n**A poor fit.** The photograph lies outside of what was learned, or is "
                    "framed otherwise than the training pictures" + (
                        "." if per_layer else "; a w for each layer comes nearer."))
        return "\n\n**A near fit.**" + (" With a w for each layer that proves little: pictures of "
                                        "anything come near." if per_layer else "")

    # ---- 4. From what comes from the page to a look ----

    def given(self, name, w):
        """w [1 or more, S] as a face.   Errors: UserError if it is none of this network."""
        page.check_w(name, w, self.layers, len(self.model.G.w_avg))
        return Given(page.base_name(name), w[:self.layers].astype(np.float32).tobytes())

    def given_from_text(self, text):
        """What the page has written with `page.text_of_w`, as a face."""
        return self.given("pasted", page.w_from_text(text))

    def given_from_file(self, path):
        if not path:
            raise UserError("choose a file first")
        with page.without_path(path):
            w = project.read_w(path, self.layers, len(self.model.G.w_avg))
        return self.given(pathlib.Path(path).stem, w.numpy())

    def ranges(self):
        """{"all": (first, last), "coarse": ...}: all layers, and the groups of figure 3."""
        return {"all": (0, self.layers - 1), **generate.mixing_ranges(self.layers)}

    def layers_from(self, text, what):
        layers = page.typed(faces.layers_from, text, what)
        generate.check_layers(what, layers, self.model)
        return layers


# ---- 5. What each control is -----------------------------------------------------------------

# By the control's name in workshop/page.py, which shows the sentence beside it. "In the paper" is
# FFHQ at 1024 px; what it says of pose or hair need not hold for other pictures or a young network.
# Proved: tests/test_explore.py::test_every_sentence_is_on_the_page
SAYS = {
    "seed": "A number that stands for one z. The mapping network makes w of it, and w is the face.",
    "wall": "Faces as the network draws them, none picked out (StyleGAN, figure 2). Choose one.",
    "size": "Children differ from their parent by a small random step in w. 1 is as far as a face "
            "is from the average one.",
    "psi": "Truncation, w_avg + psi (w - w_avg). 0 is the average face, below 0 lie the opposites. "
           "Less than 1 trades variety for quality (StyleGAN, figure 8).",
    "cutoff": "How many style layers are truncated, from the first. The official pictures take 8 "
              "of 18: fine detail rarely fails.",
    "noise": "Random maps, added after each convolution. They leave to chance where a hair lies "
             "(StyleGAN, figure 4).",
    "noise-seed": "Another seed draws other maps for the same face.",
    "strengths": "How strong is the noise of each block, times what was learned? In the paper "
                 "coarse noise makes large curls, fine noise single hairs (StyleGAN, figure 5).",
    "mixing": "Each style layer can obey the w of another face (StyleGAN, figure 3). Type its "
              "seed. Where nothing is typed, the layers obey the face itself.",
    "coarse": "In the paper: pose, hair style, shape of the face, glasses.",
    "middle": "In the paper: smaller features, eyes open or closed.",
    "fine": "In the paper: the colours and the microstructure.",
    "own-layers": "A range of your own, 4-7 for instance. Two layers a block, counted from 0.",
    "own-seed": "It comes last, and wins over the three above.",
    "layers": "Where w is moved: coarse layers change shapes, fine ones colours. Each range keeps "
              "its own sliders.",
    "directions": "The directions of w that change the styles of these layers most (SeFa): "
                  "eigenvectors of the style weights. No picture was labelled for them, so find "
                  "out what they do. 1 is as far as a face is from the average one.",
    "ladder": "What each to_rgb draws. In StyleGAN it was last trained while its resolution was "
              "the newest, or faded out. In StyleGAN2 it is the sum so far (StyleGAN2, figure 8).",
    "place": "The features where a style has acted: the channels that vary most over the picture, "
             "each from its smallest value (black) to its largest (white).",
    "video": "From face to face through w, along a smooth curve. If faces stay faces on the way, w "
             "is well laid out, which path length measures (StyleGAN, section 4.1). Noise is that "
             "of the first face; random noise would flicker.",
    "way": "One way ends at the last face. A loop goes back to the first.",
    "frames": "Of the whole video, 25 a second.",
    "photo": "No network here turns a picture into a w. But w can be learned like a weight: Adam "
             "moves it until the picture is like the photograph (project.py).",
    "steps": "Of Adam. Each runs the network forwards and backwards.",
    "per-layer": "A w for each layer (W+) comes nearer, also to pictures that are no faces.",
    "w": "The styles of the picture, after truncation, mixing and directions: all but its noise.",
}

# ---- 6. The program --------------------------------------------------------------------------


def parse_args(argv=None):
    """The options."""
    parser = OneLineParser(prog="explore.py", description="Play with the latent space of trained "
                           "networks in a browser. The page asks no other machine.")
    parser.add_argument("models", metavar="MODEL", nargs="+",
                        help="checkpoints of train.py, finished or not; no others can be opened")
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="whom to listen to: "
                        "127.0.0.1, this machine (default); 0.0.0.0, all who can reach it")
    parser.add_argument("--port", metavar="N", type=number_from(1, int, 65535),
                        help="(default: the first free one from 7860)")
    parser.add_argument("--password", metavar="TEXT", help=f"ask for it, and for the name "
                        f"{page.USER}; -: typed in when the program starts; '': let everyone in")
    parser.add_argument("--device", metavar="NAME",
                        help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--no-open", action="store_true", help="do not open the browser")
    return parser.parse_args(argv)


def main(argv=None):
    """Open the first network, start the server, and wait for Ctrl-C."""
    o = parse_args(argv)
    # On this machine alone nobody has to be asked. Elsewhere one has to decide who may come in.
    if o.host not in page.LOCAL and o.password is None:
        raise UserError(f"--host {o.host}: whoever reaches this machine could make it compute, "
                        f"upload photographs, and see what the networks make and how their files "
                        f"are called. Give a --password, or --password '' to let everyone in")
    password = page.password_of(o.password)
    for path in o.models:
        if not pathlib.Path(path).is_file():
            raise UserError(f"{path}: no such checkpoint file")
    # A heap for each of the server's threads would grow for hours.
    machine.share_heaps()
    page.import_gradio()
    device = machine.pick_device(o.device)
    if device.type == "cuda":                  # as in generate.py: the same bits each time
        torch.backends.cudnn.deterministic = True

    # The others are opened when they are chosen: a broken one is a sentence on the page then.
    # [MACHINE] The four that were used last stay in memory: 4 x 100 MB at 1024 px (computed).
    @functools.lru_cache(4)
    def open_network(path):
        with page.LOCK:
            return Network(path, generate.load_model(path, device))

    try:
        with machine.in_float32():
            open_network(o.models[0])
            demo = page.make_page({path: functools.partial(open_network, path)
                                   for path in dict.fromkeys(o.models)}, SAYS, o.device)
            print(page.launch(demo, o.host, o.port, password, not o.no_open), flush=True)
            while True:
                time.sleep(3600)
    finally:
        page.clean()


if __name__ == "__main__":
    start(main, "explore.py", "stopped")
