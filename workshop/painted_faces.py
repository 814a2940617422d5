"""painted_faces.py: the data set that `python train.py` has when it is given none.   (workshop)

Used by: workshop/pictures.py.
Needs:   Pillow. Importing this file reads no file, no argv, no clock.

Enough variety that a generator has something to learn (skin, hair, eyes, glasses, mood, a beard,
the wall behind), few enough shapes that 32x32 pixels show them. Only `random.Random.random`
draws the numbers: Python promises its sequence for a seed, on every machine and version ("Notes on
Reproducibility" in the documentation of `random`). It does not promise that of other methods.
Proved: tests/test_pictures.py::test_a_face_needs_only_what_python_promises,
        ::test_what_was_drawn_by_lot_is_seen_in_the_face
"""

import math
import random

from PIL import Image, ImageDraw

SKIN_COLOURS = ((255, 224, 196), (241, 194, 155), (224, 172, 125), (186, 126, 84), (141, 85, 54),
                (99, 60, 40))
HAIR_COLOURS = ((38, 28, 26), (84, 54, 36), (146, 88, 44), (226, 184, 96), (196, 74, 36),
                (178, 178, 184), (232, 108, 160), (72, 124, 204))
EYE_COLOURS = ((74, 48, 32), (52, 110, 172), (60, 128, 72), (120, 132, 140))
SHIRT_COLOURS = ((214, 64, 60), (52, 92, 168), (66, 142, 92), (240, 196, 66), (128, 82, 158),
                 (236, 236, 232), (60, 62, 70))
WALL_COLOURS = ((168, 208, 236), (250, 218, 168), (190, 224, 184), (244, 190, 190),
                (208, 196, 236), (120, 156, 176), (232, 228, 220))
FRAME_COLOURS = ((30, 28, 34), (150, 40, 44), (44, 70, 130), (206, 160, 60))
HAIRCUTS = ("short", "short", "long", "long", "bob", "curly", "curly", "bun", "spiky", "bald")
MOODS = ("smile", "smile", "smile", "laugh", "laugh", "calm", "oh")
WHITE, BLACK, RED = (252, 252, 250), (16, 12, 14), (196, 52, 64)
PAINTED_FACES = 10_000        # of them make the default data set


def paint_face(number, resolution, seed=0, notes=None):
    """Face `number` of the endless series `seed`, as an RGB picture of resolution x resolution.

    The face is painted at twice the size or more (256 px or more) and averaged down, which is what
    smooths its edges. notes: a dict that is to be told what there is to count (details.py in
    experiments/ looks for it in generated faces).
    Proved: tests/test_pictures.py::test_painted_faces_are_repeatable_and_no_two_alike
    """
    draw_number = random.Random(f"face {seed} {number}").random

    def between(low, high):
        return low + (high - low) * draw_number()

    def pick(choices):
        return choices[int(draw_number() * len(choices))]

    def mix(a, b, t):
        return tuple(round(x + (y - x) * t) for x, y in zip(a, b))

    # Who is it? Every property is drawn here, in a fixed order; below there is only painting.
    tone = between(0, len(SKIN_COLOURS) - 1.001)                # between two neighbouring tones
    skin = mix(SKIN_COLOURS[int(tone)], SKIN_COLOURS[int(tone) + 1], tone % 1)
    hair = mix(pick(HAIR_COLOURS), pick(HAIR_COLOURS), between(0, 0.15))
    wall = mix(pick(WALL_COLOURS), pick(WALL_COLOURS), between(0, 0.5))
    shirt = mix(pick(SHIRT_COLOURS), pick(SHIRT_COLOURS), between(0, 0.3))
    iris, frame = pick(EYE_COLOURS), pick(FRAME_COLOURS)
    lips = mix(RED, mix(skin, BLACK, 0.45), between(0, 0.6))
    haircut, mood = pick(HAIRCUTS), pick(MOODS)
    cx, cy = between(0.46, 0.54), between(0.49, 0.53)           # centre of the head, in pictures
    rx, ry = between(0.24, 0.285), between(0.295, 0.34)         # half its width and height
    eye_gap, eye_size, eye_open = between(0.115, 0.138), between(0.068, 0.08), between(0.85, 1.12)
    eye_y, gaze = cy - between(0, 0.035), between(-0.014, 0.014)
    brow_lift, brow_tilt = between(0.110, 0.130), between(-0.022, 0.022)
    mouth_y, mouth_width = cy + between(0.175, 0.2), between(0.075, 0.115)
    parting, flush = between(-0.6, 0.6), between(0.1, 0.4)
    bearded = draw_number() < 0.16 and haircut != "long"
    glasses, collar = draw_number() < 0.26, draw_number() < 0.5
    if notes is not None:
        notes.update(glasses=glasses, beard=bearded, collar=collar, long=haircut == "long",
                     dark=tone > 0.5 * (len(SKIN_COLOURS) - 1))

    # A small brush set in units of the picture, y downwards.
    size = resolution * max(2, math.ceil(256 / resolution))
    image = Image.new("RGB", (1, 2), mix(wall, WHITE, 0.25))
    image.putpixel((0, 1), mix(wall, BLACK, 0.12))
    image = image.resize((size, size), Image.Resampling.BILINEAR)          # light from above
    draw = ImageDraw.Draw(image)

    def box(x, y, half_width, half_height):
        return [round(v * size) for v in
                (x - half_width, y - half_height, x + half_width, y + half_height)]

    def oval(x, y, half_width, half_height, colour):
        draw.ellipse(box(x, y, half_width, half_height), fill=colour)

    def polygon(points, colour):
        # Row by row, between the edges that cross it: how to fill a polygon is left to Pillow's
        # version. (So is a wide line, `stroke`; 12.3 and 13.0 draw both alike.)
        edges, rows = list(zip(points, points[1:] + points[:1])), [y for _, y in points]
        for row in range(round(min(rows) * size), round(max(rows) * size)):
            y = (row + 0.5) / size
            crossings = sorted(x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                               for (x0, y0), (x1, y1) in edges if (y0 <= y) != (y1 <= y))
            for left, right in zip(crossings[::2], crossings[1::2]):
                left, right = round(left * size), round(right * size) - 1
                if left <= right:
                    draw.rectangle([left, row, right, row], fill=colour)

    def stroke(points, width, colour):
        draw.line([(round(x * size), round(y * size)) for x, y in points],
                  fill=colour, width=round(width * size), joint="curve")
        for x, y in (points[0], points[-1]):
            oval(x, y, width / 2, width / 2, colour)

    # From back to front. First the hair behind the head ...
    top = cy - ry
    if haircut == "long":
        oval(cx, cy - 0.02, rx + 0.085, ry + 0.07, hair)
        draw.rectangle(box(cx, cy + 0.2, rx + 0.085, 0.22), fill=hair)
    elif haircut == "bob":
        oval(cx, cy, rx + 0.095, ry + 0.06, hair)
    elif haircut == "bun":
        oval(cx, top - 0.03, 0.1, 0.09, hair)
    elif haircut == "curly":
        for t in (k / 5 for k in range(-5, 6)):
            oval(cx + t * (rx + 0.045), top + 0.03 + 0.26 * t * t, 0.095, 0.095, hair)

    # ... shoulders, neck, ears, head, cheeks, beard ...
    oval(cx, 1.06, 0.40, 0.20, shirt)
    neck = mix(skin, BLACK, 0.18)
    draw.rectangle(box(cx, cy + ry, 0.085, 0.09), fill=neck)
    oval(cx, cy + ry + 0.085, 0.085, 0.035, neck)
    if collar:
        stroke([(cx - 0.1, 0.88), (cx, 0.97), (cx + 0.1, 0.88)], 0.03, mix(shirt, WHITE, 0.5))
    for side in (-1, 1):
        oval(cx + side * rx, cy + 0.03, 0.048, 0.065, mix(skin, BLACK, 0.1))
    oval(cx, cy, rx, ry, skin)
    for side in (-1, 1):
        oval(cx + side * (eye_gap + 0.04), cy + 0.118, 0.05, 0.034, mix(skin, (236, 92, 92), flush))
    if bearded:
        draw.pieslice(box(cx, cy, rx, ry + 0.012), 12, 168, fill=mix(hair, BLACK, 0.1))
        oval(cx, cy + 0.055, rx * 0.78, 0.11, skin)
        oval(cx, cy + ry * 0.6, 0.13, 0.06, skin)

    # ... the hair in front ...
    if haircut in ("short", "long", "bob", "bun"):
        draw.chord(box(cx, cy - 0.012, rx + 0.018, ry + 0.022), 202, 338, fill=hair)
        polygon([(cx - rx * 0.93, top + ry * 0.62), (cx + parting * rx, top + ry * 0.25),
                 (cx + rx * 0.93, top + ry * 0.62), (cx + rx * 0.6, top + 0.02),
                 (cx - rx * 0.6, top + 0.02)], hair)
    elif haircut == "spiky":
        draw.chord(box(cx, cy - 0.012, rx + 0.018, ry + 0.022), 208, 332, fill=hair)
        for t in (k / 2.8 for k in range(-2, 3)):
            x, y = cx + t * rx, top + 0.1 * t * t
            polygon([(x - 0.075, y + 0.1), (x + 0.04 * t, y - 0.085), (x + 0.075, y + 0.1)], hair)
    elif haircut == "curly":
        for t in (k / 3 for k in range(-3, 4)):
            oval(cx + 0.88 * t * rx, top + 0.045 + 0.14 * t * t, 0.082, 0.08, hair)

    # ... and the face itself.
    brow = mix(HAIR_COLOURS[1] if haircut == "bald" else hair, BLACK, 0.35)
    for side in (-1, 1):
        x = cx + side * eye_gap
        oval(x, eye_y, eye_size, eye_size * eye_open, WHITE)
        oval(x + gaze, eye_y + 0.004, eye_size * 0.66, eye_size * 0.66, iris)
        oval(x + gaze, eye_y + 0.004, eye_size * 0.36, eye_size * 0.36, BLACK)
        oval(x + gaze - 0.018, eye_y - 0.018, 0.013, 0.013, WHITE)
        stroke([(x - side * 0.055, eye_y - brow_lift - 0.3 * brow_tilt),
                (x, eye_y - brow_lift - 0.012),
                (x + side * 0.055, eye_y - brow_lift + brow_tilt)], 0.026, brow)
    stroke([(cx + 0.004, cy + 0.035), (cx + 0.022, cy + 0.092), (cx - 0.008, cy + 0.098)],
           0.02, mix(skin, BLACK, 0.28))
    if mood == "smile":
        draw.arc(box(cx, mouth_y + 0.016, mouth_width, 0.046), 20, 160, fill=lips,
                 width=round(0.034 * size))
    elif mood == "laugh":
        draw.chord(box(cx, mouth_y + 0.028, mouth_width, 0.05), 0, 180, fill=mix(lips, BLACK, 0.35))
        draw.chord(box(cx, mouth_y + 0.009, mouth_width * 0.86, 0.031), 0, 180, fill=WHITE)
    elif mood == "calm":
        stroke([(cx - 0.8 * mouth_width, mouth_y + 0.01), (cx, mouth_y + 0.016),
                (cx + 0.8 * mouth_width, mouth_y + 0.01)], 0.034, lips)
    else:
        oval(cx, mouth_y + 0.012, 0.042, 0.048, mix(lips, BLACK, 0.4))
    if glasses:
        for side in (-1, 1):
            draw.ellipse(box(cx + side * eye_gap, eye_y + 0.004, 0.104, 0.104), outline=frame,
                         width=round(0.021 * size))
            stroke([(cx + side * (eye_gap + 0.098), eye_y - 0.01),
                    (cx + side * (rx + 0.015), eye_y - 0.02)], 0.02, frame)
        stroke([(cx - eye_gap + 0.095, eye_y), (cx + eye_gap - 0.095, eye_y)], 0.021, frame)
    return image.reduce(size // resolution)
