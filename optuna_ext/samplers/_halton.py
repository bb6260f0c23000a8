from __future__ import annotations

from optuna_ext.samplers._design import SequenceSampler


class HaltonSampler(SequenceSampler):
    """Sampler that places trials by the scrambled Halton sequence.

    Column ``j`` is the van der Corput sequence in the ``j``-th prime base with randomly permuted
    digits. Good at any number of trials, not only at powers of two; from about ten parameters on
    :class:`~optuna_ext.SobolSampler` is the better choice.

    Trial ``i`` takes row ``i`` of the sequence; nothing is stored and workers need not talk.
    Every parameter has its own column from the first trial on, also in conditional and changing
    spaces. Enqueued and partially fixed parameters win over the design.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import HaltonSampler

            study = optuna.create_study(sampler=HaltonSampler(seed=0))
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)

    Args:
        search_space:
            Distributions by name, if known: they take the first columns in this order. The
            default, :obj:`None`, gives columns in order of first appearance in the study.
        seed:
            Seed of the digit permutations, a non-negative integer. The default, :obj:`None`,
            derives it from the study's name, so that all workers on a study agree.
        scramble:
            Whether to permute the digits. The unscrambled sequence starts with the lower bound
            of every parameter and is poor in large prime bases.
        first_trial:
            Number of the trial that takes row 0, for a study that began with something else.

    Raises:
        TypeError: If ``seed`` or ``first_trial`` is not an integer.
        ValueError: If ``seed`` or ``first_trial`` is negative.

    .. seealso::
        J. H. Halton (1960), Numer. Math. 2; A. B. Owen (2017), *A randomized Halton algorithm in
        R*, arXiv:1706.02808.
    """

    _kind = "halton"
