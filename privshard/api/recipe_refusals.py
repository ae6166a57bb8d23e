"""Keys that ask for what would break the guarantee: refused with the reason, wherever in a recipe they stand."""

from __future__ import annotations

_POISSON = (
    "sampling is Poisson sampling at training.sample_rate: every unit takes part in every step independently. "
    "Shuffled, fixed or ordered batches are not what is accounted, and would spend more than is told."
)
_UNIFORM = (
    "every unit has the same public sampling rate and weight. Weights that depend on rows make those rows spend more, "
    "and their weights would be private."
)
_HASHED = (
    "the shard of a subject is a keyed hash of that subject alone. Balanced, clustered, stratified or positional "
    "splits depend on other subjects, so that the shards' budgets add up and parallel composition fails."
)
_CALIBRATED = (
    "noise is calibrated from privacy.epsilon and accounted as it runs. Give epsilon, steps and rate; "
    "`train --dry-run` shows the noise."
)
_CONSTANT = (
    "normalisers are public constants: training.sample_rate times the nominal number of units, never a true count or "
    "the size of a batch."
)

REFUSED: dict[str, str] = {
    **dict.fromkeys(("sampler", "sampling", "shuffle", "batch_size", "epochs", "drop_last", "batching"), _POISSON),
    **dict.fromkeys(
        ("sample_weights", "sample_weight", "example_weights", "class_weights", "class_weight", "weighted", "balanced"),
        _UNIFORM,
    ),
    **dict.fromkeys(
        ("partition", "partitioner", "partitioning", "sharding", "shard_by", "split_by", "stratify", "balance"), _HASHED
    ),
    **dict.fromkeys(("noise_multiplier", "noise", "sigma", "noise_scale"), _CALIBRATED),
    **dict.fromkeys(("expected_batch_size", "normalizer", "normaliser", "loss_reduction"), _CONSTANT),
    "adjacency": "adjacency is add/remove of one unit, the only one that is accounted; replace-one costs more.",
}
"""The last word of a key -> why there is no such key."""
