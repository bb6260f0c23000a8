from __future__ import annotations

from optuna_ext.samplers._design import SequenceSampler


class SobolSampler(SequenceSampler):
    """Sampler that places trials by the scrambled Sobol' sequence.

    The first ``2**m`` trials are spread with exact balance: every half, quarter, ... of every
    parameter's range, and every elementary box of two neighboring parameters, holds its share of
    them. So a study can be stopped or extended at any time, and is best at powers of two.

    Trial ``i`` takes row ``i`` of the sequence; nothing is stored and workers need not talk.
    Every parameter has its own column from the first trial on, also in conditional and changing
    spaces. Enqueued and partially fixed parameters win over the design.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import SobolSampler


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
                depth = trial.suggest_int("depth", 1, 4)
                return (lr - 1e-3) ** 2 + depth


            study = optuna.create_study(sampler=SobolSampler(seed=0))
            study.optimize(objective, n_trials=16)

    Args:
        search_space:
            Distributions by name, if known: they take the first columns in this order, which is
            independent of the order in which workers happen to start. The default, :obj:`None`,
            gives columns in order of first appearance in the study.
        seed:
            Seed of the scramble, a non-negative integer. The default, :obj:`None`, derives it
            from the study's name, so that all workers on a study agree.
        scramble:
            Whether to randomize the sequence (matrix scramble and digital shift; Matoušek 1998).
            The unscrambled sequence starts with the lower bound of every parameter.
        first_trial:
            Number of the trial that takes row 0, for a study that began with something else.

    Raises:
        TypeError: If ``seed`` or ``first_trial`` is not an integer.
        ValueError: If ``seed`` or ``first_trial`` is negative.

    .. seealso::
        I. M. Sobol' (1967), USSR Comput. Math. Math. Phys. 7(4); A. B. Owen (2020), *On dropping
        the first Sobol' point*, arXiv:2008.08051.
    """

    _kind = "sobol"
