"""augment.py: training on few pictures.   (8th in the reading order)

    python train.py --data photos/ --augment adaptive                    hundreds of pictures
    python train.py --resume other.pt --data photos/ --freeze-d 32 --out runs/mine --total-kimg 600
                                                       from a network of fewer kimg

Read before: train.py, whose two turns show D its pictures.     Read next: generate.py
Paper:   Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv
         2006.10738), section 3; the control: Karras et al. 2020, StyleGAN2-ADA (arXiv 2006.06676),
         section 3; frozen layers: Mo et al. 2020, "Freeze the Discriminator" (arXiv 2002.10964).
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; R rows = columns of pixels. Images lie in [-1, 1], and 0 is grey.

D is shown each of 300 pictures thousands of times, and learns them by heart. Then it calls these
300 real and all else made, however good it is, and G is told nothing that would help it. Other
networks that have few pictures are shown them turned, cut and recoloured, so that none comes twice.
With a GAN that goes wrong in two ways, and there is one that works:

    reals only:       D(T(real)), D(fake)      G is asked for pictures like T(real): with grey holes
                                               and odd colours. The change leaks into G.
    in D's turn only: D(T(real)), D(T(fake)),  D has never seen a picture that is not changed, and
                      but G's turn: D(fake)    is asked about such ones. What it says means nothing.
    everywhere:       D(T(real)), D(T(fake)),  D compares changed with changed, so G need not change
                      G's turn: D(T(fake))     anything. And G's gradient comes back through T.

So T must be differentiable: adding, multiplying, moving and covering pixels are. It is drawn anew
for each image and each time. R1 asks for the slope of D at the real image, before T.
Proved: tests/test_augment.py::test_gs_gradient_comes_back_through_the_change,
        ::test_r1_is_that_of_the_real_image

T must also leave a way back. If every image had a hole, a G that makes holes itself would fit as
well. Where many images come as they are, it would not: then two heaps of pictures can only be alike
after T if they were alike before it (StyleGAN2-ADA, section 2.2; there a probability below 0.8 is
said to be safe). So each change is made with a probability, the strength.
"""

import torch
import torch.nn.functional as F

# ---- 1. Three changes ------------------------------------------------------------------------
#
# Each takes images [N, 3, R, R] and gives as many; each image has its own random numbers. `gentle`
# is 1 from 16 px on and less below (`augment`).


def between(low, high, images):
    """A random number for each image: [N, 1, 1, 1], on its device."""
    return low + (high - low) * torch.rand(len(images), 1, 1, 1, device=images.device)


def colour(images, gentle=1.0):
    """Other brightness (up to 0.5 more or less), saturation (x 0 to 2) and contrast (x 0.5 to 1.5).

    Proved: tests/test_augment.py::test_colour_moves_one_mean_at_a_time
    """
    images = images + gentle * between(-0.5, 0.5, images)
    grey = images.mean(dim=1, keepdim=True)                            # [N, 1, R, R]
    images = grey + (images - grey) * (1 + gentle * between(-1, 1, images))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)                    # [N, 1, 1, 1]
    return mean + (images - mean) * (1 + gentle * between(-0.5, 0.5, images))


def translation(images, gentle=1.0):
    """Moved by up to R/8 pixels in each direction; what comes in from outside is grey.

    How:    each image takes its rows, and then its columns, from a wider one at its own offset.
    Proved: tests/test_augment.py::test_translation_moves_and_fills_with_grey
    """
    n, _, r, _ = images.shape
    most = int(gentle * r / 8)
    if most == 0:
        return images
    wide = F.pad(images, [most] * 4).permute(0, 2, 3, 1)              # [N, R+2m, R+2m, 3]
    first = torch.randint(0, 2 * most + 1, (2, n, 1), device=images.device)
    rows, columns = first + torch.arange(r, device=images.device)     # [N, R] each
    image = torch.arange(n, device=images.device)[:, None, None]
    return wide[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images, gentle=1.0):
    """A grey square with sides of R/2, anywhere, also partly outside.

    Proved: tests/test_augment.py::test_cutout_covers_one_square
    """
    n, _, r, _ = images.shape
    side = int(gentle * r / 2)
    centre = torch.randint(0, r + 1, (2, n, 1), device=images.device)
    place = torch.arange(r, device=images.device)
    rows, columns = (centre - side // 2 <= place) & (place < centre + side - side // 2)   # [N, R]
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


CHANGES = (colour, translation, cutout)


def gentleness(resolution):
    """How large the changes are: 1 from 16 px on, 1/2 at 8, 1/4 at 4 (`augment` says why)."""
    return min(1.0, resolution / 16)


def augment(images, strength):
    """T: each of the changes, with the probability `strength`, for each image alone.

    Paper:  Zhao et al. 2020, section 3.2; the numbers above are those of its code.
    Differs: there every image gets every change (the top of this file says why not here). And a
            hole of 2x2 in a face of 4x4 pixels takes an eye and more. So below 16 px all are R/16
            times as large, rounded down to whole pixels: nothing moves at 8 px, and at 4 only
            colours change.
    Shapes: images [N, 3, R, R]; strength a number or a tensor [] from 0 to 1 -> [N, 3, R, R].
    Proved: tests/test_augment.py::test_strength_is_the_probability_of_each_change,
            ::test_small_pictures_are_changed_gently
    """
    gentle = gentleness(images.shape[-1])
    for change in CHANGES:
        chosen = between(0, 1, images) < strength
        images = torch.where(chosen, change(images, gentle), images)
    return images


# ---- 2. Where D looks ------------------------------------------------------------------------


class Augmented(torch.nn.Module):
    """D behind T: in train.py it stands in D's place, so all that D is shown has gone through T.

    strength: a tensor [] on the device. Whoever moves it (`adapt`) need not ask the GPU for it.
    Proved: tests/test_augment.py::test_all_that_d_sees_has_been_changed
    """

    def __init__(self, D, strength):
        super().__init__()
        self.D, self.strength = D, strength

    def forward(self, images, alpha=1.0):
        return self.D(augment(images, self.strength), alpha)


def in_front_of(D, asked, device):
    """(what D is asked through, strength) for --augment "off", "adaptive" or a number."""
    strength = torch.tensor(asked if isinstance(asked, float) else 0.0, device=device)
    return (D if asked == "off" else Augmented(D, strength)), strength


# ---- 3. How strong? --------------------------------------------------------------------------
#
# Too weak, and D learns the pictures by heart. Too strong, and G learns less than it could, and may
# leak; with 70,000 faces T does harm (Zhao et al., FFHQ at 256 px: FID 3.8 without, 4.2 with; with
# 1,000 faces 62 and 26). How many pictures are few? D itself says it. While it learns what a face
# is, it gives some real ones a score below 0. The better it knows them by heart, the fewer.

TARGET = 0.6                  # of the mean of sign D(real), as StyleGAN2-ADA has it
ADAPT_KIMG = 20               # from 0 to 1, if D knows all pictures by heart (theirs: 500)
MOST = 0.8                    # above it changes may leak (top of this file)


def adapt(strength, sign, batch):
    """Move the strength, in place: up if D is too sure of the real pictures, else down.

    Paper:  StyleGAN2-ADA, section 3: r_t = E[sign(D(real))], to be held at 0.6.
    Units:  sign: r_t of this batch, a tensor [] from -1 to 1.
    Differs: there a fixed step up or down, as the mean of four batches lies above the target or
            below; here a step as large as the difference. Steps add up, so no mean is kept; and
            since they are small near the target, they may be larger far from it.
    Proved: tests/test_augment.py::test_the_strength_rises_while_d_is_too_sure
    """
    step = (sign - TARGET) / (1 - TARGET) * batch / (1000 * ADAPT_KIMG)
    strength.add_(step).clamp_(0, MOST)


# ---- 4. From a trained network ---------------------------------------------------------------


def freeze(D, resolution):
    """D's layers of `resolution` and more stay as they are: they have learned to see already.

    Why:    with few pictures one goes on from a network that has seen many others (--resume
            other.pt --data photos/). Edges and eyes are the same in both, and the layers that find
            them are those next to the image. Only the rest is left to learn by heart with.
    Paper:  Mo et al. 2020. They number the layers; here they go by their resolution.
    Errors: ValueError if nothing is left to learn, or nothing is frozen.
    Proved: tests/test_augment.py::test_frozen_layers_stay_as_they_are
    """
    frozen = [parameter for name, parameter in D.named_parameters()
              for part in name.split(".") if part.isdigit() and int(part) >= resolution]
    if not frozen or resolution <= 4:
        raise ValueError(f"freezing D from {resolution} px on: must be above 4, or nothing learns, "
                         f"and no larger than its largest block")
    for parameter in frozen:
        parameter.requires_grad_(False)


# ---- 5. Has it leaked? -----------------------------------------------------------------------


def leaked(fakes, reals, changed):
    """What share of the fakes shows each of the changes: `evaluate.py --metrics leaks`.

    Why:    at too high a strength G makes holes and odd colours itself, now and then. In a sheet of
            samples one does not see whether 5 or 10 % have them.
    How:    a heap of pictures of which a share s is changed has its mean feature s of the way from
            that of the reals to that of the changed reals. So from where the fakes' mean lies, the
            three shares can be read, by least squares.
    Known:  what else is wrong with the fakes also moves their mean. Four networks that never saw a
            change got -0.13 to 0.21, a younger one up to 0.42 (docs/results.md). Compare with one
            that never saw a change.
    Shapes: features: fakes [N, F], reals [M, F], changed: a list of [M, F] -> a tensor of shares.
    Proved: tests/test_augment.py::test_a_leak_is_found_by_name_and_size
    """
    ways = torch.stack([other.mean(0) - reals.mean(0) for other in changed], dim=1)    # [F, 3]
    way = fakes.mean(0) - reals.mean(0)                                                # [F]
    return torch.linalg.lstsq(ways, way[:, None]).solution[:, 0]
