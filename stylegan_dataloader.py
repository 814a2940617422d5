"""stylegan_dataloader.py: the StyleMixer, and the pictures a StyleGAN learns from.   (2nd)

Read before: train.py, which asks for both.     Read next: stylegan_losses.py
Paper:   Karras et al. 2019, "StyleGAN" (arXiv 1812.04948), section 3.1 (style mixing); the fading
         of the pictures: Karras et al. 2018, "ProGAN" (arXiv 1710.10196), figure 2.
Needs:   torch, numpy. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; K styles mixed in one image; L style layers; R rows = columns of
         pixels. z: random numbers; w: the style that the mapping network makes of them.

  1. the StyleMixer     which layer takes its style from which z
  2. the pictures       bytes to numbers, and the blur of the real ones while a block fades in
  3. the loader         batches of pictures, shuffled and mirrored

One idea runs through 1 and 3: a loader keeps no state. What sample number 1,234,567 of a run is
(which picture, mirrored or not, which mix of styles) is computed from the seed and this number
alone, for a given list of pictures and a given shape of network. So a run that goes on after an
interruption needs to know only how many samples it has used, and gets the same ones that it would
have got: no worker's random state has to be saved, and none can be lost.

How pictures are found, read and packed is looked up in workshop/pictures.py.
"""

import functools
import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from workshop import machine, pictures

FOREVER = 2 ** 62             # samples in a run, as far as the loaders are concerned


def as_it_is(samples):
    """What a DataLoader shall do with a batch that is one already: nothing."""
    return samples


# ---- 1. The StyleMixer -----------------------------------------------------------------------
#
# The synthesis network has L layers, and each takes a style, a w. When pictures are made to be
# looked at, all layers of an image take the same w. If that were all that the network saw in
# training, it might come to rely on it: "layer 3 said brown hair, so layer 7 may assume dark
# brows". Style mixing forbids that. In nine training images of ten, the first layers take their
# style from one z and the rest from another. A layer can trust only what it is told itself.
#
# That is why one face can later be given the hair of another. In figure 3 the styles of the layers
# at 4 and 8 px ("coarse") bring pose, hair style and the shape of the face, those at 16 and 32 px
# ("middle") smaller features, those at 64 px and above ("fine") colours and fine structure. AdaIN
# keeps the layers apart (stylegan_layers.py); mixing keeps them from leaning on each other.
#
# How often? Table 2 gives the FID (smaller is better; evaluate.py) on FFHQ of images that take one
# style, and of images that mix 2, 3 or 4 of them:
#
#     mixed in training        1       2       3       4 styles at the end
#                   0 %     4.42    8.22   12.88   17.41
#                  50 %     4.41    6.10    8.71   11.61
#                  90 %     4.40    5.11    6.88    9.03     <- the paper's choice and the default
#                 100 %     4.83    5.17    6.63    8.40
#
# The mixer's output for an image is a row of L numbers: which of its K drawn z each layer uses,
# z and layers counted from 0. With L = 8 layers and K = 2:
#
#     0 0 0 1 1 1 1 1      the style was swapped in front of layer 3
#     0 1 1 1 1 1 1 1      ... in front of layer 1, the earliest place
#     0 0 0 0 0 0 0 0      not mixed: happens with probability 1 - 0.9
#
# and with K = 3, two places are drawn:
#
#     0 0 1 1 1 1 2 2
#
# So a row starts with 0, never falls, and rises by 1 at each place where styles are swapped. A
# place is one of 1..L-1, all equally likely; K-1 different ones are drawn. (If K-1 is more than
# there are, every place is a swap: at 4x4, with two layers and one place, no more than two styles.)


class StyleMixer(DataLoader):
    """A DataLoader of style rows: yields long tensors [batch_size, num_layers], without end.

    Why:    see above. Paper: section 3.1, probability 0.9, two styles.
    Use:    z = torch.randn(N, styles, latent_dim); G(z, style_index=rows) with rows from here.
    State:  none: row number i is a function of i and of the arguments num_layers, styles,
            probability and seed; `start` is the first one. Processes share as in `picture_loader`.
    Differs: any number of styles; and every image draws its own place, where the official code
            draws one for the whole batch.
    Errors: ValueError unless styles >= 1, num_layers >= 2 and 0 <= probability <= 1.
    Proved: tests/test_dataloader.py::test_style_mixer_rows_can_be_predicted,
            ::test_style_mixer_goes_on_where_it_is_told_to
    """

    def __init__(self, num_layers, batch_size, styles=2, probability=0.9, seed=0, start=0,
                 process=0, processes=1):
        rows = _StyleRows(num_layers, styles, probability, seed)
        super().__init__(rows, batch_size=batch_size,
                         sampler=range(start + process, FOREVER, processes),
                         collate_fn=as_it_is, generator=torch.Generator())


class _StyleRows(Dataset):
    """Sample numbers to style rows. Drawn 1024 at a time: one seed and a few numpy calls each."""

    BLOCK = 1024

    def __init__(self, num_layers, styles, probability, seed):
        if styles < 1 or num_layers < 2 or not 0 <= probability <= 1:
            raise ValueError(f"needs styles >= 1, num_layers >= 2 and a probability, got "
                             f"{styles}, {num_layers}, {probability}")
        self.draw = functools.lru_cache(maxsize=2)(functools.partial(
            _draw_rows, num_layers, styles, probability, seed))

    def __getitems__(self, samples):
        rows = [self.draw(i // self.BLOCK)[i % self.BLOCK] for i in samples]
        return torch.from_numpy(np.stack(rows))


def _draw_rows(num_layers, styles, probability, seed, block):
    """[BLOCK, L] rows of style numbers."""
    rng = np.random.default_rng([seed, num_layers, block])
    n, places = _StyleRows.BLOCK, num_layers - 1
    # Sorting random keys shuffles 1..L-1; the first K-1 of the shuffled places are the swaps.
    shuffled = 1 + rng.random((n, places)).argsort(axis=1)                 # [n, L-1]
    swaps = shuffled[:, :min(styles - 1, places)]                          # [n, K-1]
    begins = np.zeros((n, num_layers), dtype=np.int64)                     # 1: a new style begins
    np.put_along_axis(begins, swaps, 1, axis=1)
    mixed = rng.random((n, 1)) < probability                               # [n, 1]
    return np.cumsum(begins, axis=1) * mixed                               # [n, L]


# ---- 2. The pictures -------------------------------------------------------------------------


def to_images(pixels, device=torch.device("cpu")):
    """uint8 [N, R, R, 3] -> float [N, 3, R, R] in [-1, 1] on the device, in its memory format."""
    pixels = machine.send(pixels, device).permute(0, 3, 1, 2)      # bytes travel, not floats
    images = pixels.float() / 127.5 - 1
    return images.contiguous(memory_format=machine.memory_format(device))


def to_pixels(images):
    """float [N, 3, R, R] in [-1, 1] -> uint8 [N, R, R, 3]; what lies outside is clipped."""
    pixels = (images.clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1)


def fade_reals(images, alpha):
    """Show D real pictures of the sharpness that G can reach while its last block fades in.

    Why:    while alpha is small, G's picture is nearly an enlarged one of half the resolution. D
            begins to see with its new block then; were the real ones sharp, that block would only
            have to look for sharpness.
    Paper:  ProGAN, caption of figure 2. Averaged 2x2, enlarged by nearest neighbour (as G enlarges
            its old picture), blended: alpha * sharp + (1 - alpha) * coarse.
    Shapes: images [N, 3, R, R] -> the same.
    Proved: tests/test_dataloader.py::test_faded_reals_go_from_coarse_to_sharp
    """
    if alpha >= 1:
        return images
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")
    return torch.lerp(coarse, images, alpha)


# ---- 3. The loader ---------------------------------------------------------------------------


class PictureDataset(Dataset):
    """Sample numbers to pictures: shuffled anew in every epoch, half of them mirrored.

    Why:    mirroring doubles the data for free where left and right mean the same (faces: yes;
            text or city scenes: --no-flip).
    Shapes: a list of N sample numbers -> uint8 tensor [N, R, R, 3].
    How:    with n pictures, sample i is place i mod n of epoch i // n; an epoch's order and its
            flips are drawn from (seed, epoch). See the top of this file for why.
    only:   the places of the pictures to use, an array of `pictures.split_pictures`; None: all.
    Proved: tests/test_dataloader.py::test_an_epoch_shows_every_picture_once
    """

    def __init__(self, folder, source, resolution, seed=0, flip=True, only=None):
        self.folder, self.source, self.resolution = str(folder), source, resolution
        self.seed, self.flip = seed, flip
        index = json.loads((pathlib.Path(folder) / "index.json").read_text())
        only = slice(None) if only is None else only
        self.rows = np.array(index["rows"])[only]              # in the packed files
        self.numbers = np.array(index["numbers"])[only]        # in the source
        self.packed = resolution in index["levels"]

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, samples):
        n = len(self.rows)
        pixels = np.empty((len(samples), self.resolution, self.resolution, 3), np.uint8)
        for i, sample in enumerate(samples):
            order, flips = _epoch(self.seed, sample // n, n)
            picture = order[sample % n]
            if self.packed:
                one = pictures.open_level(self.folder, self.resolution)[self.rows[picture]]
            else:
                one = pictures.read_again(self.source, int(self.numbers[picture]), self.resolution)
            pixels[i] = one[:, ::-1] if self.flip and flips[sample % n] else one
        return torch.from_numpy(pixels)


@functools.lru_cache(maxsize=2)
def _epoch(seed, epoch, n):
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(n), rng.random(n) < 0.5


def picture_loader(dataset, batch_size, start=0, workers=0, pin_memory=False, process=0,
                   processes=1):
    """Batches of `dataset` without end, from sample number `start` on: uint8 [N, R, R, 3].

    Of P processes that train together, process p takes samples p, p + P, p + 2P, ...: of a batch
    of 8, process 0 of 2 sees samples 0, 2, 4, 6 and process 1 the others. N is the part of one.
    Proved: tests/test_dataloader.py::test_processes_share_a_batch_without_overlap

    [MACHINE] workers 0: the main process copies from the packed cache, which takes less than a
              hundredth of a step (rerun: python experiments/benchmark.py loader). On a GPU use 2 or
              more, and one per core if the originals are read at full resolution (not measured).
    """
    return DataLoader(
        dataset, batch_size=batch_size, sampler=range(start + process, FOREVER, processes),
        num_workers=workers, collate_fn=pictures.shared if workers else as_it_is,
        worker_init_fn=pictures.quiet_worker, pin_memory=pin_memory,
        # Of its own: a new loader draws a number, and torch's global generator shall not notice.
        # (train.py would not notice either: `draw_z` seeds the global one anew in every step.)
        generator=torch.Generator())


class Pictures:
    """The pictures of a run: packed once, then batches at any resolution.

    o, team: what train.py was asked for, and its processes. checkpoint: what it resumes, or None.
    split:   which pictures are held out, for measuring (workshop/pictures.py, part 3), or None.
    Errors:  UserError, one sentence, if the pictures cannot be used as they are.
    Proved:  tests/test_dataloader.py::test_the_pictures_of_a_run_are_batches_from_where_it_stands
    """

    def __init__(self, o, team, checkpoint=None):
        self.o, self.team, self.said = o, team, set()
        self.source = pictures.find_pictures(o.data)
        with team.first_here_first():                  # one process of each machine packs
            self.folder = pictures.pack_pictures(
                self.source, o.resolution, o.cache, machine.cores(), o.max_bad,
                o.allow_upsampling, team.say, machine.progress_bar)
        n = len(PictureDataset(self.folder, self.source, o.resolution))
        self.contents = pictures.contents_of(self.folder)      # which they are, for a checkpoint
        self.split = pictures.find_split(o, checkpoint, self.source, self.contents, n)
        self.parts = self.split and pictures.parts_of(self.split, self.contents)
        if o.workers:                                  # is there room for them at the end?
            self._workers(o.resolution, o.batch[o.resolution])

    def dataset(self, resolution, part="training"):
        """The training pictures as a dataset; or the held-out "adversary" or "test"; or "all"."""
        only = self.parts[part] if self.parts and part != "all" else None
        return PictureDataset(self.folder, self.source, resolution, self.o.seed,
                              flip=not self.o.no_flip, only=only)

    def batches(self, resolution, batch, nimg):
        """An iterator over this process's part of each batch, uint8, from sample nimg on.

        A loader keeps no state. So if a worker fails (killed, no room, no memory), the main process
        goes on with the sample that has been reached, and the run stays the same to the bit.
        Proved: tests/test_dataloader.py::test_a_run_outlives_the_processes_that_load_its_pictures
        """
        workers = self._workers(resolution, batch)
        while True:
            try:
                for pixels in machine.started(picture_loader(
                        self.dataset(resolution), batch // self.team.processes, nimg, workers,
                        self.team.device.type == "cuda", self.team.rank, self.team.processes)):
                    yield pixels
                    nimg += batch
            except (RuntimeError, OSError, ValueError, MemoryError) as error:
                if not workers:                        # not the fault of a worker
                    raise
                said = (str(error).strip() or type(error).__name__).splitlines()[-1]
                if not isinstance(error, pictures.DataError):  # which the main process will name
                    self._note(f"the processes that load pictures failed ({said}); the main "
                               f"process goes on without them, as with --workers 0")
                workers, error.__traceback__ = 0, None         # it would keep other workers alive

    def _workers(self, resolution, batch):
        """--workers, or as many as there is room for, which is said."""
        room = 3 * resolution ** 2 * batch // self.team.processes
        workers, why = machine.workers_that_fit(self.o.workers, room)
        if why and machine.first_here():
            self._note(f"--workers {workers} at {resolution} px and not {self.o.workers}: {why}")
        return workers

    def _note(self, text):
        if text not in self.said:                      # once each
            self.said.add(text)
            print(f"note: {text}", file=sys.stderr)
