"""`compact_token`: autoregressive action tokens, one of `bins` per action dimension (as OpenVLA), chunk * 7 a chunk."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlco_common.contract import Contract
from rlco_policy.compact.base import CompactPolicy
from rlco_policy.compact.config import CompactTokenConfig
from rlco_policy.compact.encoder import Prefix
from rlco_policy.compact.layers import Block, KeyValue, value_head
from rlco_policy.interface import Evaluated, ModelInputs, PolicySpec, Sampled, draw, require_generator, uniform
from rlco_policy.statistics import Statistics

PLAN_SCALE = 0.06       # of normalised actions; about 8 of 256 bins
PLAN_FREEDOM = 4.0      # heavy tails: the transformer can place an action far from the plan
FREQUENCIES = 32        # of distances between a token and its plan: from a quarter of a cycle to eight over the bins' range


class CompactToken(CompactPolicy):
    config_class = CompactTokenConfig

    def __init__(self, config: CompactTokenConfig, contract: Contract, statistics: Statistics):
        super().__init__(config, contract, statistics)
        width, dim = config.encoder.width, contract.action.dim
        self.spec = PolicySpec(dim, config.chunk, config.chunk, len(statistics.names), self.cameras,
                               config.encoder.image_size, "tokens")
        self.decoder = TokenDecoder(width, config.encoder.heads, config.layers, config.bins, config.chunk * dim)
        self.value_head = value_head(width, config.value.hidden)
        self.eval()

    def tokens_of(self, actions: Tensor) -> Tensor:
        """Physical actions [B, chunk, A] -> bin indices int64 [B, chunk * A]."""
        unit = 0.5 * (self.normalizer.normalise(actions) + 1.0)
        return (unit * self.config.bins).floor().clamp(0, self.config.bins - 1).long().flatten(1)

    def actions_of(self, tokens: Tensor) -> Tensor:
        """Bin indices [B, chunk * A] -> physical actions [B, chunk, A] at the bins' centres."""
        centres = (tokens.float() + 0.5) * (2.0 / self.config.bins) - 1.0
        return self.normalizer.denormalise(centres.unflatten(1, (self.spec.chunk, self.spec.action_dim)))

    def sft_draws(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """shown [B, chunk * A]: which previous tokens teacher forcing shows; half of the samples, at token_dropout 1, see none.

        Of the others the hidden share is drawn. Without it the decoder learns to copy the previous action long before it
        looks at the picture; and what it decides without previous tokens is how it acts greedily.
        """
        hidden_share = self.config.token_dropout * (2 * uniform((batch, 1), generator, self.device)).clamp(max=1.0)
        length = self.spec.chunk * self.spec.action_dim
        return {"shown": uniform((batch, length), generator, self.device) >= hidden_share}

    def sft_errors(self, inputs: ModelInputs, actions: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the tokens, soft labels over neighbouring bins, and the plan's squared error, both weighted."""
        tokens = self.tokens_of(actions)
        state = self.decoder.begin(self.encode(inputs))
        logits, _ = self.decoder.teacher_forced(state, tokens, draws["shown"])
        log_probabilities = logits.log_softmax(-1)
        if self.config.label_std_bins > 0:
            error = -(self._soft_labels(tokens) * log_probabilities).sum(-1)
        else:
            error = -log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        plan = self.plan_error(state.planned, self.normalizer.normalise(actions))
        accuracy = float((logits.detach().argmax(-1) == tokens).float().mean())
        metrics = {"cross_entropy": float(error.detach().mean()), "plan_mse": float(plan.detach().mean()),
                   "token_accuracy": accuracy}
        return self.config.token_weight * self._by_step(error) + self.config.plan_weight * plan, metrics

    @torch.no_grad()
    def act(self, inputs: ModelInputs, *, temperature: float = 0.0, generator: torch.Generator | None = None,
            prev_chunk: Tensor | None = None, delay: int = 0, steps: int | None = None) -> Tensor:
        """Sampled tokens above temperature 0, one after the other; at 0 the most probable bin of every token by itself.

        Those are decided all at once, in one pass (parallel decoding, as in OpenVLA-OFT): a token then cannot follow an
        error of the ones before. A `prev_chunk` has no effect.
        """
        prefix = self.encode(inputs)
        if temperature > 0:
            tokens, _, _ = self.decoder.generate(prefix, temperature, require_generator(generator, "act(temperature > 0)"))
        else:
            tokens = self.decoder.unconditional(prefix).argmax(-1)
        return self.actions_of(tokens)[:, :steps]

    @torch.no_grad()
    def sample(self, inputs: ModelInputs, *, generator: torch.Generator) -> Sampled:
        prefix = self.encode(inputs)
        tokens, logprob, first = self.decoder.generate(prefix, self.config.temperature, generator)
        return Sampled(
            actions=self.actions_of(tokens),
            logprob=self._by_step(logprob),
            value=self._value(first),
            trace={"tokens": tokens.to(torch.int16)},
        )

    def evaluate(self, inputs: ModelInputs, trace: dict[str, Tensor]) -> Evaluated:
        """Teacher-forced scores of the stored tokens [B, chunk * A]."""
        tokens = trace["tokens"].long()
        logits, first = self.decoder.teacher_forced(self.decoder.begin(self.encode(inputs)), tokens)
        log_probabilities = (logits.float() / self.config.temperature).log_softmax(-1)
        logprob = log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean(-1)
        return Evaluated(self._by_step(logprob), entropy, self._value(first))

    def value(self, inputs: ModelInputs) -> Tensor:
        with torch.no_grad():
            first = self.decoder.next_hidden(self.decoder.begin(self.encode(inputs)), None)
        return self._value(first)

    def _value(self, first: Tensor) -> Tensor:
        return self.value_head(first.detach() if self.config.value.detach else first).squeeze(-1)

    def _by_step(self, per_token: Tensor) -> Tensor:
        return per_token.unflatten(1, (self.spec.chunk, self.spec.action_dim))

    def _soft_labels(self, tokens: Tensor) -> Tensor:
        """Gaussian over the bins around each token, normalised: [B, T, bins]."""
        distance = torch.arange(self.config.bins, device=tokens.device) - tokens.unsqueeze(-1)
        return (-0.5 * (distance / self.config.label_std_bins).square()).softmax(-1)


class TokenDecoder(nn.Module):
    """Causal adaRMS transformer over the action tokens; every token reads the whole prefix.

    The prefix plans an action for every position: one linear map per position, whose head learns by its own squared error.
    Tokens are read and scored by their distance from the plan. Input i is how far token i - 1 lay from its plan (at i = 0
    a start symbol) plus the plan's features of position i; the output's logits for token i are a Student's t around the
    plan plus a smooth function of the distance from it. A transformer that had to find the bins by itself preferred some
    of them, and aimed worse than its own plan (docs/explanation/stage2_learning.md). The gradient of the tokens' loss ends
    at the planned action; it would outweigh the head's own error and spoil it.
    """

    def __init__(self, width: int, heads: int, layers: int, bins: int, length: int):
        super().__init__()
        self.length = length
        self.start = nn.Parameter(torch.zeros(width))
        self.embedding = nn.Linear(2 * FREQUENCIES, width)
        self.plan = nn.Linear(width, length * width)
        self.plan_head = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.full((length,), math.log(PLAN_SCALE)))
        self.blocks = nn.ModuleList(Block(width, heads, memory=True, condition_width=width) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 2 * FREQUENCIES)
        nn.init.zeros_(self.head.weight)        # the policy starts out as its plan
        nn.init.zeros_(self.head.bias)
        self.register_buffer("centres", (torch.arange(bins) + 0.5) * (2.0 / bins) - 1.0, persistent=False)
        self.register_buffer("frequencies", torch.logspace(-2, 3, FREQUENCIES, base=2) * torch.pi, persistent=False)
        self.register_buffer("centre_waves", self._waves(self.centres).T.contiguous(), persistent=False)

    def teacher_forced(self, state: "DecoderState", tokens: Tensor,
                       shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [B, T], those not `shown` hidden -> logits [B, T, bins], hidden state [B, width] of the first token."""
        read = self._read(tokens[:, :-1], state.planned[:, :-1])
        previous = torch.cat([self.start.expand(len(tokens), 1, -1), read], 1)
        if shown is not None:
            previous = previous * shown.unsqueeze(-1)
        memory_length = state.caches[0][0].shape[2]
        mask = state.plan.new_ones(self.length, memory_length + self.length, dtype=torch.bool).tril(memory_length)
        x = previous + state.plan
        for block, memory in zip(self.blocks, state.caches, strict=True):
            x = block(x, memory, mask, state.condition)
        hidden = self.norm(x)
        return self._logits(hidden, state.planned, self.log_scale), hidden[:, 0]

    def unconditional(self, prefix: Prefix) -> Tensor:
        """Logits [B, T, bins] of every token without the ones before."""
        state = self.begin(prefix)
        nothing = torch.zeros_like(state.planned, dtype=torch.long)
        return self.teacher_forced(state, nothing, shown=nothing.bool())[0]

    def generate(self, prefix: Prefix, temperature: float,
                 generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled tokens [B, T], their log-probabilities [B, T] and the first hidden state."""
        state = self.begin(prefix)
        first = hidden = self.next_hidden(state, None)
        tokens, logprobs = [], []
        while True:
            i = len(tokens)
            logits = self._logits(hidden, state.planned[:, i], self.log_scale[i])
            log_probabilities = (logits / temperature).log_softmax(-1)
            token = draw(log_probabilities, generator)
            tokens.append(token)
            logprobs.append(log_probabilities.gather(-1, token.unsqueeze(-1)).squeeze(-1))
            if len(tokens) == self.length:
                return torch.stack(tokens, 1), torch.stack(logprobs, 1), first
            hidden = self.next_hidden(state, token)

    def begin(self, prefix: Prefix) -> "DecoderState":
        condition = F.silu(prefix.pooled)
        plan = self.plan(condition).unflatten(-1, (self.length, -1))
        planned = self.plan_head(plan).squeeze(-1)
        return DecoderState([block.memory(prefix.tokens) for block in self.blocks], condition, plan, planned)

    def _read(self, tokens: Tensor, planned: Tensor) -> Tensor:
        """What the decoder sees of tokens [...]: how far they lie from the planned actions [...]; [..., width]."""
        return self.embedding(self._waves(self.centres[tokens] - planned.detach()))

    def _logits(self, hidden: Tensor, planned: Tensor, log_scale: Tensor) -> Tensor:
        """Logits [..., bins] from hidden states [..., width], planned actions [...] and the log of their scale [...]."""
        planned = planned.detach().unsqueeze(-1)
        distance = (self.centres - planned) * (-log_scale).exp().unsqueeze(-1)
        around = -0.5 * (PLAN_FREEDOM + 1) * (distance.square() / PLAN_FREEDOM).log1p()
        # sums of waves in the distance centre - planned, by the angle sum: turn the weights instead of the bins
        cosine, sine = self.head(hidden).chunk(2, -1)
        turn_cosine, turn_sine = self._waves(planned.squeeze(-1)).chunk(2, -1)
        weights = torch.cat([cosine * turn_cosine - sine * turn_sine, cosine * turn_sine + sine * turn_cosine], -1)
        return around + weights @ self.centre_waves

    def _waves(self, x: Tensor) -> Tensor:
        """Cosines and sines [..., 2 * FREQUENCIES] of x [...]."""
        angles = x.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    def next_hidden(self, state: "DecoderState", token: Tensor | None) -> Tensor:
        """Hidden state [B, width] after `token` [B] (None: at the start); advances `state`."""
        previous = self.start if token is None else self._read(token, state.planned[:, state.position - 1])
        x = (previous + state.plan[:, state.position]).unsqueeze(1)
        for i, block in enumerate(self.blocks):
            x, state.caches[i] = block.step(x, state.caches[i], condition=state.condition)
        state.position += 1
        return self.norm(x).squeeze(1)


@dataclass
class DecoderState:
    """Decoding under way: keys and values per block of [prefix | tokens so far], and what the prefix gives them."""

    caches: list[KeyValue]
    condition: Tensor       # [B, width]
    plan: Tensor            # [B, T, width]
    planned: Tensor         # [B, T] the normalised action that a linear head reads from it
    position: int = 0
