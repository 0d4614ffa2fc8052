"""Two scales at the start of training, which decide what a short run reaches. Not the paper's.

Learned weights could undo either, so neither changes what the model can express.
"""

import flax.linen as nn

# `model.divided_time`: an action's time features are multiplied by this. Adam changes the weights
# of all features alike, so the many periods that say nothing would drown the item's content for
# the first thousand steps.
TIME = 1 / 4


def attention_out(length: int) -> nn.initializers.Initializer:
    """`model.scaled_attention`: the output map of attention over `length` positions.

    At first attention is a mean over positions, and the mean of n unrelated vectors is shorter than
    they are by 1 / sqrt(n): what a user did would drown in the last action. So the map starts
    sqrt(length) times as large as the usual `lecun_normal`.
    """
    return nn.initializers.variance_scaling(length, "fan_in", "truncated_normal")
