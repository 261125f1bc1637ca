"""Mean-field theory of signals in wide random networks, the oracle behind gains and depth.

In a network of wide layers ``z' = W·φ(z) + b`` with Var(W) = σ_w²/fan_in and Var(b) = σ_b², pre-activations are
Gaussian, and two maps tell what depth does: the length map for their variance q, the correlation map for the
correlation c of two inputs. Their fixed points and slopes say whether signals and gradients survive, and for how many
layers. Everything here works for any activation that `fanin.gains` understands.

>>> from fanin import meanfield
>>> meanfield.fixed_point("tanh", weight_variance=(5 / 3) ** 2).phase
'chaotic'
>>> round(meanfield.critical_point_at_bias("tanh", bias_variance=0.05).gain, 4)
1.327

Sources: Poole et al. 2016 (arXiv:1606.05340), Schoenholz et al. 2017 (arXiv:1611.01232), Pennington et al. 2017
(arXiv:1711.04735). It is the theory of the initialization of plain networks in the limit of infinite width: no
normalization, no residual branches, no training, depth well below width.
"""

from fanin.meanfield.criticality import CriticalPoint, critical_point, critical_point_at_bias
from fanin.meanfield.fixed_points import FixedPoint, Outcome, Phase, fixed_point
from fanin.meanfield.maps import correlation_map, depth_scale, length_map
from fanin.meanfield.profiles import Profile, profile

__all__ = [
    "CriticalPoint",
    "FixedPoint",
    "Outcome",
    "Phase",
    "Profile",
    "correlation_map",
    "critical_point",
    "critical_point_at_bias",
    "depth_scale",
    "fixed_point",
    "length_map",
    "profile",
]
