"""The options of a verification run: one table, from which ``--set`` and its help are made.

There is no global configuration and no table of benchmarks: `onnxcert.search.auto` chooses how to
search by the structure of the problem, and these fields only bound or override it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from onnxcert.errors import UsageError

Splitting = Literal["auto", "input", "neuron", "none"]
Switch = Literal["auto", "off"]


def _option(
    default: Any, sentence: str, low: float | None = None, high: float | None = None
) -> Any:
    return field(default=default, metadata={"help": sentence, "low": low, "high": high})


@dataclass(frozen=True)
class Settings:
    """Everything a user may set; the defaults serve all models."""

    attack_restarts: int = _option(64, "points per round of the gradient attack", 0)
    attack_steps: int = _option(40, "gradient steps per round", 1)
    attack_share: float = _option(
        0.2, "share of the first ten seconds that the attack may take; a quarter of it later", 0, 1
    )
    splitting: Splitting = _option("auto", "what branch and bound splits")  # noqa: RUF009
    input_split_limit: int = _option(24, "free inputs up to which inputs are split", 0)
    slope_steps: int = _option(20, "optimisation steps of relaxation slopes at the root", 0)
    layer_steps: int = _option(12, "optimisation steps of each unstable neuron at the root", 0)
    branch_steps: int = _option(4, "optimisation steps per subproblem", 0)
    batch_limit: int = _option(4096, "most subproblems bounded at once", 1)
    watch: Switch = _option("auto", "check on an idle processor while the search runs")  # noqa: RUF009
    parallel: Switch = _option("auto", "split neurons on idle processors, too")  # noqa: RUF009
    mixing: Switch = _option("auto", "neuron splits in boxes that input splits have made")  # noqa: RUF009
    planes: Switch = _option("auto", "planes in place of chords above relus of inputs")  # noqa: RUF009
    narrowing: Switch = _option("auto", "bounds of layers where the case holds")  # noqa: RUF009
    constants: Switch = _option("auto", "whether global constants may refute cases")  # noqa: RUF009
    memory_gigabytes: float = _option(4.0, "memory that one batch may take", 0.01)
    replay_points: int = _option(4, "points on which the model as read is compared", 1)

    @classmethod
    def parse(cls, assignments: Iterable[str]) -> Settings:
        """Read ``KEY=VALUE`` strings.

        Raises:
            UsageError: an unknown key, or a value of the wrong type or out of range.
        """
        chosen: dict[str, Any] = {}
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise UsageError(f"--set needs KEY=VALUE, not {assignment!r}")
            chosen[key] = cls._parse_value(key, text)
        return cls(**chosen)

    @classmethod
    def _parse_value(cls, key: str, text: str) -> object:
        known = {option.name: option for option in fields(cls)}
        if key not in known:
            raise UsageError(f"there is no option {key!r}", help="one of " + ", ".join(known))
        hint = get_type_hints(cls)[key]
        if choices := get_args(hint):
            if text not in choices:
                raise UsageError(f"{key} is one of {', '.join(choices)}, not {text!r}")
            return text
        try:
            value = hint(text)
        except ValueError as error:
            raise UsageError(f"{key} is a number ({hint.__name__}), not {text!r}") from error
        low, high = known[key].metadata["low"], known[key].metadata["high"]
        in_range = (low is None or value >= low) and (high is None or value <= high)
        if not in_range:
            raise UsageError(f"{key} lies in [{low}, {'any' if high is None else high}]")
        return value
