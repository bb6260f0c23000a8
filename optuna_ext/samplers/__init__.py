from optuna_ext.samplers._approximate_gradient import ApproximateGradientSampler
from optuna_ext.samplers._evolutionary import EvolutionarySampler
from optuna_ext.samplers._halton import HaltonSampler
from optuna_ext.samplers._hammersley import HammersleySampler
from optuna_ext.samplers._latin_hypercube import LatinHypercubeSampler
from optuna_ext.samplers._nelder_mead import NelderMeadSampler
from optuna_ext.samplers._particle_swarm import ParticleSwarmSampler
from optuna_ext.samplers._poisson_disk import PoissonDiskSampler
from optuna_ext.samplers._population_based_training import PopulationBasedTrainingSampler
from optuna_ext.samplers._sobol import SobolSampler
from optuna_ext.samplers._warmup import WarmupSampler


__all__ = [
    "ApproximateGradientSampler",
    "EvolutionarySampler",
    "HaltonSampler",
    "HammersleySampler",
    "LatinHypercubeSampler",
    "NelderMeadSampler",
    "ParticleSwarmSampler",
    "PoissonDiskSampler",
    "PopulationBasedTrainingSampler",
    "SobolSampler",
    "WarmupSampler",
]
