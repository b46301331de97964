"""RG-LRU: a linear recurrence per channel whose gates look at the input alone, in Griffin's block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, cast, head_count, head_size
from .parts import ShortConvolution, block_linear, ones


class RGLRU(RecurrentMixer):
    """Griffin's recurrent block around the real-gated linear recurrent unit (RG-LRU).

        u = conv(W_x x)        r = σ(W_a u + b_a)        i = σ(W_i u + b_i)        log a = -8 r softplus(Λ)
        h_t = a_t ∘ h_{t-1} + √(1 - a_t²) ∘ (i_t ∘ u_t)        y = W_o (gelu(W_y x) ∘ h)

    W_a and W_i are block-diagonal. At the first token of a sequence √(1 - a²) is 1.

    Reduction: K = 1, q = k = 1, V = channels; log_decay_v = log a; v = √(1 - a²) i u, by way of log r, so
    that the derivative of the root stays finite as a → 1.

    Args:
        d_model: width of x and y.
        width: channels of the recurrence, d_model by default.
        num_heads: blocks of W_a and W_i, a divisor of width; by default the most up to max(4, width / 64).
        conv_width: of the causal convolution.

    Parameters have the names and shapes of `RecurrentGemmaRecurrentBlock` in transformers, whose state_dict
    loads.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1; num_heads does not divide width.

    Paper: De et al. 2024, "Griffin" (arXiv:2402.19427), section 2.4. Its a = σ(Λ)^{8r} is here with -Λ
        for Λ. The block-diagonal gates, the tanh form of gelu and the first token are those of the released
        code, whose gradient of the root is cut off at 1000. Initialisation as released: a^{1/8} at r = 1 in
        [0.9, 0.999], its square uniform; weights normal with deviation fan_in^{-1/2}, biases 0.
    """

    def __init__(
        self, d_model: int, width: int | None = None, num_heads: int | None = None, conv_width: int = 4
    ) -> None:
        super().__init__(d_model)
        width = d_model if width is None else whole("width", width, ", or None")
        self.linear_y = nn.Linear(d_model, width)
        self.linear_x = nn.Linear(d_model, width)
        self.conv_1d = ShortConvolution(width, whole("conv_width", conv_width))
        heads = head_count(width, num_heads)
        self.rg_lru = Gates(heads, head_size(width, heads, written="width"))
        self.linear_out = nn.Linear(width, d_model)
        self.state_shape = (1, 1, width)
        self.window_shape = (conv_width - 1, width)
        for m in (self.linear_y, self.linear_x, self.conv_1d, self.linear_out):
            nn.init.normal_(m.weight, std=m.weight[0].numel() ** -0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        u, window = self.conv_1d(self.linear_x(x), state.window, tokens)
        log_decay, root, i = self.rg_lru(u)
        root = root.masked_fill((tokens.position == 0).unsqueeze(-1), 1.0)
        v = cast(root * i * u, u.dtype).unsqueeze(2)
        one = ones(v)
        return Core(one, one, v, log_decay_v=log_decay.unsqueeze(2), window=window)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.linear_out(o.select(2, 0) * F.gelu(self.linear_y(x), approximate="tanh"))


class Gates(nn.Module):
    """log a = -8 r softplus(Λ), √(1 - a²), and the input gate i."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.recurrent_param = nn.Parameter(torch.empty(heads * width))
        self.input_gate_weight = nn.Parameter(torch.empty(heads, width, width))
        self.input_gate_bias = nn.Parameter(torch.zeros(heads, width))
        self.recurrent_gate_weight = nn.Parameter(torch.empty(heads, width, width))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(heads, width))
        nn.init.normal_(self.input_gate_weight, std=width**-0.5)
        nn.init.normal_(self.recurrent_gate_weight, std=width**-0.5)
        with torch.no_grad():
            square = self.recurrent_param.uniform_(0.9**2, 0.999**2)
            square.log_().mul_(-0.5).expm1_().log_()  # softplus of it is -log a^{1/8}

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        acc = accumulation(u.dtype)
        i = torch.sigmoid(cast(block_linear(u, self.input_gate_weight, self.input_gate_bias), acc))
        r = cast(block_linear(u, self.recurrent_gate_weight, self.recurrent_gate_bias), acc)
        param = cast(self.recurrent_param, acc)
        if not torch.is_grad_enabled():
            log_decay = torch.sigmoid(r) * (-8 * F.softplus(param, threshold=40))
            return log_decay, torch.sqrt(-torch.expm1(2 * log_decay)), i
        # With gradients by way of the logarithm of the rate, of which everything is a smooth function.
        low = param.clamp(min=-40)  # below, softplus(x) is e^x
        log_softplus = torch.where(param > -40, F.softplus(low, threshold=40).log(), param)
        log_rate = math.log(8) + F.logsigmoid(r) + log_softplus
        return -torch.exp(log_rate), root_one_minus_square(log_rate), i


def root_one_minus_square(log_rate: Tensor) -> Tensor:
    """√(1 - a²) of log(-log a), as √(-2 log a) times a smooth factor: the root of a difference has no finite
    derivative at a = 1, where the function of log_rate is flat."""
    y = -2 * torch.exp(log_rate)  # log a²
    small = y > -1e-5
    far = torch.where(small, -1.0, y)
    ratio = torch.where(small, 1 + y / 2 + y * y / 6, torch.expm1(far) / far)
    return torch.exp(0.5 * (log_rate + math.log(2))) * ratio.sqrt()
