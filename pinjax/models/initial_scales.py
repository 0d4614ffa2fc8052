"""Two initial scales, which matter for short runs. Not in the paper.

Learned weights can undo both, so they do not change the functions that the model can represent.
"""

import flax.linen as nn

# `model.divided_time`: an action's time features are multiplied by this. Adam changes the weights
# of all features equally fast, so in the first thousand steps the many uninformative periods would
# dominate the item's content.
TIME = 1 / 4


def attention_out(length: int) -> nn.initializers.Initializer:
    """`model.scaled_attention`: the output map of attention over `length` positions.

    Initially attention is a mean over positions, and the mean of n independent vectors is shorter
    by 1 / sqrt(n): the last action would dominate the history. So the initial map is sqrt(length)
    times the usual `lecun_normal`.
    """
    return nn.initializers.variance_scaling(length, "fan_in", "truncated_normal")
