"""What a system shows on Pictograms: its methods, how they are trained and what must come out.

`make demo SYSTEM=...` and the tables of `tools/benchmark.py` are made from showcases alone. A
system names the module of its own in :attr:`ovd_d2.systems.System.showcase`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ovd_d2.errors import SetupError
from ovd_d2.pictograms.steps import (
    Run,
    evaluate_step,
    train_step,
)
from ovd_d2.pipeline.step import CONFIG_OPTION, Step
from ovd_d2.systems import systems


@dataclass(frozen=True)
class Method:
    """A row of the tables: one config, trained and evaluated, or evaluated only.

    Attributes:
        config: yaml file, from the repository root on. Its name without suffix is the method's, in
            tables and as output folder; no other method may have it.
        title: for sentences, e.g. "ViLD-ensemble".
        about: a few words on what it does, for the demo.
        weights_of: the training whose weights it is evaluated with; empty: it is trained itself.
        options: run -> `KEY VALUE` pairs of its training, e.g. the weights it starts from.
        needs: run -> full names of the steps that come before its training.
        before: run -> steps that this method has beside those of :attr:`Showcase.prepare`.
    """

    config: str
    title: str
    about: str = ""
    weights_of: str = ""
    options: Callable[[Run], Sequence[str]] = lambda run: ()
    needs: Callable[[Run], Sequence[str]] = lambda run: ()
    before: Callable[[Run], Sequence[Step]] = lambda run: ()

    @property
    def name(self) -> str:
        return Path(self.config).stem

    def weights(self, run: Run) -> Path:
        """The checkpoint it is evaluated with."""
        return run.weights(self.weights_of or self.name)

    def step(
        self,
        run: Run,
        *,
        name: str = "",
        about: str = "",
        options: Sequence[str] = (),
        needs: Sequence[str] = (),
        weights_of: str = "",
    ) -> Step:
        """Makes its results, by training or by evaluation alone.

        Args:
            run: where, and with which seed.
            name, about: of a variation: its output folder, and how the purpose names it.
            options, needs: of a variation, beside those of the method.
            weights_of: as of the method: only evaluate, with the weights of this training.
        """
        weights_of = weights_of or self.weights_of
        about = about or (self.about and f": {self.about}")
        title = f"{self.title}{about}, seed {run.seed}"
        place = (run, name or self.name, self.config)
        if weights_of:
            return evaluate_step(
                *place, f"Evaluate {title}", weights_of=weights_of, options=options, needs=needs
            )
        return train_step(
            *place,
            f"Train {title}",
            options=(*self.options(run), *options),
            needs=(*self.needs(run), *needs),
        )


@dataclass(frozen=True)
class Expectation:
    """A bound that a faithful implementation keeps.

    Attributes:
        claim: the sentence of the table.
        metric: what of a row is compared: "box AP50_novel", "segm APr", ...
        method: whose mean over seeds is bounded.
        over: the method whose mean it is divided by; empty: it is not.
        least, most: the bounds.
    """

    claim: str
    metric: str
    method: str
    over: str = ""
    least: float = -float("inf")
    most: float = float("inf")


@dataclass(frozen=True)
class Gap:
    """How far a method stays below another one: the difference of their means over seeds.

    Attributes:
        lower, higher: methods.
    """

    lower: str
    higher: str


@dataclass(frozen=True)
class Ordering:
    """Which of two methods, or of two gaps between methods, the paper found larger.

    Attributes:
        claim: the sentence of the table.
        metric: as of :class:`Expectation`; "ms_per_image" for the time.
        left, right: methods, whose means over seeds are compared, or gaps; a number is itself.
        relation: "<", "<=" or "=" (the last two with a tolerance).
        reason: why Pictograms does not show it, printed as long as it does not.
    """

    claim: str
    metric: str
    left: str | Gap | float
    relation: str
    right: str | Gap | float
    reason: str = ""

    @property
    def methods(self) -> frozenset[str]:
        """All that it is about."""
        found: set[str] = set()
        for side in (self.left, self.right):
            if isinstance(side, Gap):
                found |= {side.lower, side.higher}
            elif isinstance(side, str):
                found.add(side)
        return frozenset(found)


@dataclass(frozen=True)
class Showcase:
    """One system on Pictograms.

    Attributes:
        prepare: run -> the steps before those of the methods. Steps without a seed, and those of
            other systems, may be among them: equal steps run once.
        methods: the rows of the paper's table, in its order; one whose weights another takes comes
            before it.
        demo: names of the methods that the demo trains. The first one is drawn, and looks for the
            user's names.
        quick: methods of the demo that are no rows: what takes longer there, trained for minutes.
        demo_table: names of the methods of the shorter table, which the expectations are about.
        expectations, orderings: what must come out.
    """

    prepare: Callable[[Run], Sequence[Step]]
    methods: tuple[Method, ...]
    demo: tuple[str, ...]
    quick: tuple[Method, ...] = ()
    demo_table: tuple[str, ...] = ()
    expectations: tuple[Expectation, ...] = ()
    orderings: tuple[Ordering, ...] = ()

    def method(self, name: str) -> Method:
        """
        Raises:
            KeyError: no method is called so.
        """
        known = {method.name: method for method in (*self.methods, *self.quick)}
        if name not in known:
            raise KeyError(f"no method '{name}'; there are {', '.join(known)}")
        return known[name]

    def select(self, names: Iterable[str]) -> list[Method]:
        return [self.method(name) for name in names]


def showcases(names: Sequence[str] = ()) -> dict[str, Showcase]:
    """Name of a system -> its showcase, of all systems that have one or of those named.

    Args:
        names: of systems, in any case.

    Raises:
        SetupError: there is no such system, or it has nothing to show.
    """
    modules = {system.name: system.showcase for system in systems() if system.showcase}
    by_name = {name.lower(): name for name in modules}
    if unknown := [name for name in names if name.lower() not in by_name]:
        raise SetupError(
            [
                f"no system '{name}' to show: name one of {', '.join(modules)} "
                "(System.showcase of ovd_d2/systems.py)"
                for name in unknown
            ]
        )
    chosen = [by_name[name.lower()] for name in names] or list(modules)
    return {name: import_module(modules[name]).SHOWCASE for name in chosen}


def steps_of(showcase: Showcase, runs: Iterable[Run], methods: Iterable[Method]) -> list[Step]:
    """Everything that these methods of one system need and do, in every run."""
    methods = list(methods)
    steps: list[Step] = []
    for run in runs:
        steps += showcase.prepare(run)
        for method in methods:
            steps += [*method.before(run), method.step(run)]
    return only_once(steps)


def only_once(steps: Iterable[Step]) -> list[Step]:
    """The steps without repetitions, each at its first place.

    Raises:
        ValueError: two different steps have one name.
    """
    by_name: dict[str, Step] = {}
    for step in steps:
        if by_name.setdefault(step.name, step) != step:
            raise ValueError(f"two different steps are called '{step.name}': rename one")
    return list(by_name.values())


def names_step(run: Run, method: Method, names: str, image: Path, output: Path) -> Step:
    """Looks for a user's own words in one scene with a trained method; `output` is a folder."""
    weights = method.weights(run)
    return Step(
        "names",
        f"Look for {names}",
        "tools/predict.py",
        (
            *(CONFIG_OPTION, str(weights.parent / "config.yaml")),  # with the options of the run
            *("--input", str(image), "--names", names, "--output", str(output)),
            *("MODEL.WEIGHTS", str(weights)),
        ),
        output / f"{image.stem}.png",
        folder=output,
    )
