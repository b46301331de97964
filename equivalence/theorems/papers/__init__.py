"""Each mixer as its paper has it: plain loops over time, with a module's weights, in float64.

Nothing here uses the core or the mixers' own code, so that agreement with a module means that the
module's reduction to the core is right.
"""

from .attention import ATTENTION
from .common import Paper
from .delta import DELTA
from .gated_attention import GATED_ATTENTION
from .gated_rnn import GATED_RNN
from .recurrent import RECURRENT
from .state_space import STATE_SPACE

PAPERS: dict[str, Paper] = {**ATTENTION, **GATED_ATTENTION, **DELTA, **RECURRENT, **STATE_SPACE, **GATED_RNN}
