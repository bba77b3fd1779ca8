"""``onnxcert train``: a classifier with small global constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.lipschitz import METHODS

if TYPE_CHECKING:
    from onnxcert.training.loop import Epoch

_DESCRIPTION = """\
Train a classifier for certified accuracy at a Euclidean radius and write it as an ONNX model, which
lipschitz, certify and gloro take like any other. What is printed is what certify proves of that
model on data it was not trained on. Needs the extra train (PyTorch).
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Train, write the model and print what is proved of it."""
    parser = arguments.Parser("train", _DESCRIPTION)
    _add_run(parser)
    chosen = _add_settings(parser)
    parser.add_verbosity()
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    from onnxcert.files import check_outputs, write_file

    inputs = [path for path in (options.data, options.test) if path is not None]
    check_outputs((options.out, options.state), inputs)
    from onnxcert.cli.certify import certification_page
    from onnxcert.continuity.certified import read_data
    from onnxcert.errors import InputError
    from onnxcert.training.api import train

    sets = []
    for path in inputs:
        x, labels = read_data(path)
        if labels is None:
            raise InputError("there is no array y", place=path, help="y holds the labels")
        sets.append((x, labels))
    trained = train(
        *sets[0],
        eps=options.eps,
        test=sets[1] if len(sets) > 1 else None,
        device=options.device,
        state=options.state,
        method=options.method,
        progress=lambda epoch: console.status(_line(epoch)),
        **{name: getattr(options, name) for name in chosen},
    )
    write_file(options.out, trained.model.SerializeToString())
    console.answer(certification_page(trained.certification))
    return 0


def _add_run(parser: arguments.Parser) -> None:
    """What is read and written, the claim, and where it is worked out."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="FILE",
        help=".npz file with the array x (inputs, numbers as the model wants them; images channels "
        "first) and y (labels)",
    )
    add("--test", metavar="FILE", help="the same to judge by (default: a tenth of the data)")
    add("--eps", type=arguments.radius, required=True, metavar="E", help="the radius")
    add("-o", "--out", required=True, metavar="FILE", help="where to write the model")
    add("--state", metavar="FILE", help="kept after each epoch; where it exists, training goes on")
    add("--device", type=arguments.device, default="auto", metavar="DEVICE", help="as for verify")
    add(
        "--method",
        choices=METHODS,
        default="auto",
        help="of the constants that the result is proved with, as for lipschitz",
    )


def _add_settings(parser: arguments.Parser) -> list[str]:
    """Those that describe the training, fields of `Options`; returns their names."""
    from onnxcert.training.options import ACTIVATIONS, DECAYS, LOSSES, Options

    chosen: list[str] = []

    def setting(
        name: str, read: Callable[[str], Any] = str, *, sentence: str = "", **more: Any
    ) -> None:
        default = getattr(Options, name)
        if default is not None and "choices" not in more:
            sentence += f" (default: {default})"
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=read, default=default, help=sentence, **more)
        chosen.append(name)

    setting(
        "net",
        metavar="NET",
        sentence="2C2F, 4C3F, 6C2F, 8C2F, mlp:WIDTH,... or liresnet:BLOCKSxWIDTH",
    )
    setting("activation", choices=ACTIVATIONS, sentence="sorted pairs (default), or rectifiers")
    setting("loss", choices=LOSSES, sentence="cross-entropy with the bottom logit by default")
    setting("weight", arguments.from_zero, metavar="W", sentence="of the second term of trades")
    setting(
        "train_eps",
        arguments.radius,
        metavar="E",
        sentence="the radius in the loss (default: 1.5 times --eps)",
    )
    setting("ramp", arguments.from_zero, metavar="R", sentence="share of the run in which it grows")
    setting("epochs", arguments.positive, metavar="N", sentence="passes over the data")
    setting("batch", arguments.positive, metavar="N", sentence="inputs in a step")
    setting("learning_rate", arguments.from_zero, metavar="R", sentence="of Adam")
    setting("decay", choices=DECAYS, sentence="of the learning rate")
    setting("steps", arguments.positive, metavar="N", sentence="of power iteration in a batch")
    setting(
        "shift",
        arguments.natural,
        metavar="N",
        sentence="move training images by up to so many pixels",
    )
    setting(
        "warp",
        arguments.from_zero,
        metavar="W",
        sentence="turn, scale and shear them by up to this share",
    )
    parser.add_argument("--flip", action="store_true", help="mirror half of them")
    chosen.append("flip")
    setting("seed", arguments.natural, metavar="N", sentence="of weights and order")
    return chosen


def _line(epoch: Epoch) -> str:
    """One line; the shares are estimates from batches in training."""
    return (
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.4f}  "
        f"correct {100.0 * epoch.accuracy:.1f} %  robust about {100.0 * epoch.robust:.1f} %"
    )
