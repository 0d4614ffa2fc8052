"""Windows that end at a user's last action (`objective.last_action_share`). Not the paper's.

SASRec trains on such windows alone (Kang & McAuley, ICDM 2018), since each of its positions
predicts. Where little is known of each user, a share of them is worth more than ends drawn from all
actions.
"""

import numpy as np


def favour(uniform: np.ndarray, share: float) -> np.ndarray:
    """Numbers in [0, 1], of which a share is 1 and the rest is uniform.

    Args:
      uniform: (n,), random numbers in [0, 1).
      share: in [0, 1].
    """
    return np.where(uniform < share, 1.0, (uniform - share) / max(1 - share, 1e-9))
