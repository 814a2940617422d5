"""The workshop: what the scripts upstairs need and the papers do not speak of.

One looks things up here; nobody has to read it in order. Beside each call that comes down here, one
sentence says enough to read on. Of the scripts only the networks and the loader are imported here,
and evaluate.py, by the one function in run.py that needs it.
"""


class UserError(ValueError):
    """What was asked for cannot be done. The message is one sentence: what is wrong, what to type.

    `options.start` prints it and ends the program with exit code 2, without a traceback.
    """
