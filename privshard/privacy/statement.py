"""The statement: what a guarantee says and leaves unsaid, in plain English."""

from __future__ import annotations

from collections.abc import Mapping

from privshard.core.privacy import MechanismPlan, PrivacySpend


def statement(plan: MechanismPlan, spend: PrivacySpend, *, num_shards: int, limit: float | None) -> str:
    """The guarantee of a release of all components, for the people who rely on it.

    plan: the mechanism of one training. spend: of the whole composition (`composition_spend`). limit: on one shard.
    """
    if not plan.private or spend.epsilon is None:
        return _no_privacy(plan)
    return "\n".join(
        (
            _promise(plan, spend, num_shards, limit),
            _mechanism(plan, num_shards),
            _COVERED,
            _NOT_COVERED,
        )
    )


def group_sentence(epsilons: Mapping[int, float]) -> str:
    """What subjects with several examples are promised where the unit is an example: size -> epsilon of the group.

    >>> group_sentence({2: 3.0, 4: 9.5})
    'For a subject with 2 examples epsilon is 3, with 4 examples 9.5 (group privacy, at the same delta).'
    """
    first, *rest = (f"{size} examples {_upper(value)}" for size, value in sorted(epsilons.items()))
    named = first.replace("examples ", "examples epsilon is ", 1)
    return f"For a subject with {', with '.join([named, *rest])} (group privacy, at the same delta)."


def with_edits(text: str, *, num_edits: int) -> str:
    """The statement of a composition that holds edits, whose images nothing protects."""
    return (
        f"There is no differential privacy for the composition: it holds {num_edits} edit(s), each learnt without it "
        "from a few images, which the model may reveal; whoever may not see those images may not see the model either. "
        f"Taking the edits out restores what follows, which without them holds for the components alone.\n{text}"
    )


def with_public(text: str, *, num_rows: int, core: bool, head: bool) -> str:
    """The statement of a model that public rows taught too, which nothing protects and nothing removes."""
    what = " and ".join(
        [*(["a core component"] if core else []), *(["the head that training starts from"] if head else [])]
    )
    return (
        f"{text}\nPublic: {what} came from {num_rows} row(s) that are said to be public. Those rows are not protected "
        "and cost no budget, and what they taught is not removable: it is part of every model. A person in such a row "
        "who is in private rows too is covered for these alone."
    )


def _promise(plan: MechanismPlan, spend: PrivacySpend, num_shards: int, limit: float | None) -> str:
    who = "one subject with all of its examples" if spend.unit == "subject" else "one example"
    text = (
        f"Differential privacy with epsilon {_upper(spend.epsilon or 0.0)} and delta {spend.delta:g} for {who} "
        f"(adjacency: adding or removing one {spend.unit}), an upper bound by the {spend.accountant} accountant."
    )
    if spend.unit == "example":
        text += " A person with several examples is protected less, the less the more examples there are."
    if num_shards > 1:
        text += " It is the largest spend of any shard, because a unit can change one shard only."
    if limit is not None:
        text += f" Whatever is retrained in future, no shard will spend more than epsilon {_upper(limit)}."
    return text


def _mechanism(plan: MechanismPlan, num_shards: int) -> str:
    placing = {
        "subject": "the subject goes to the shard that a keyed hash of it names",
        "example": "every example is in one shard, named by a keyed hash of its subject (of itself where it has none)",
    }[plan.unit]
    text = (
        f"How: {num_shards} shard(s); {placing}. Training a shard takes {plan.steps} step(s). In each, every "
        f"{plan.unit} takes part independently with probability {plan.sample_rate:g} (Poisson sampling), its gradient "
        f"is clipped to norm {plan.max_grad_norm:g}, and the sum, plus Gaussian noise of standard deviation "
        f"{plan.noise_multiplier * plan.max_grad_norm:.4g}, is divided by the public constant "
        f"{plan.expected_units:g}."
    )
    if plan.hardening == "grid":
        text += (
            " Sums are rounded to a public grid and the noise is drawn exactly, as integers on it, so that its "
            "low-order bits tell nothing about the sum; it is larger by the little that rounding can move a sum."
        )
    if plan.mean_releases:
        text += (
            f" Before the first step the mean of all {plan.unit}s' features is released once, by the same mechanism "
            "with everyone included; that is accounted with the steps."
        )
    if plan.count_noise_multiplier is not None:
        text += (
            f" The number of {plan.unit}s was released once, with Gaussian noise of standard deviation "
            f"{plan.count_noise_multiplier:g}; that is included."
        )
    return text


def _no_privacy(plan: MechanismPlan) -> str:
    reason = (
        "at least one of its components was trained without it"
        if plan.private
        else "components were trained without noise"
    )
    return (
        f"There is no differential privacy: {reason}. The components, and every model composed of them, may reveal the "
        "examples that they learnt from. Whoever may not see the data may not see them either."
    )


def _upper(value: float) -> str:
    """Four significant digits, never below the value."""
    text = f"{value:.4g}"
    return text if float(text) >= value else f"{value + 10.0 ** _last_digit(text):.4g}"


def _last_digit(text: str) -> int:
    return int(f"{float(text):e}".split("e")[1]) - 3


_COVERED = (
    "Covered: the release of all components together and of each by itself, of those that were dropped or replaced "
    "since, of every model composed of them with public weights, and of whatever else is computed from them without "
    "the private rows."
)
_NOT_COVERED = (
    "Not covered: the choice of hyper-parameters, classes or other settings, where somebody looked at private rows for "
    "it; the partition key and the randomness, which must stay secret and independent of the data; metrics on held-out "
    "rows; influence and anything else that is computed on private rows; when and for how long something ran, removals "
    "included."
)
