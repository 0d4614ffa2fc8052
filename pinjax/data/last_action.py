"""Windows that end at a user's last action (`objective.last_action_share`). Not in the paper.

SASRec trains only on such windows (Kang & McAuley, ICDM 2018), since each of its positions
predicts. If users have few actions, a share of such windows is better than random ends alone.
"""

import numpy as np


def favour(uniform: np.ndarray, share: float) -> np.ndarray:
    """Numbers in [0, 1]: a share of them is 1, the others are uniform.

    Args:
      uniform: (n,), random numbers in [0, 1).
      share: in [0, 1].
    """
    return np.where(uniform < share, 1.0, (uniform - share) / max(1 - share, 1e-9))
