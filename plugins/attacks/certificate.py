"""The certificate of randomised smoothing."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from scipy.stats import beta, norm
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Setting, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register


class Certificate(Attack):
    """No attack: counts the queries proved right within ε (L2), of learners with randomised smoothing."""

    name: ClassVar[str] = "certificate"
    source: ClassVar[str] = "Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918, algorithm CERTIFY"
    method: ClassVar[Method] = "black-box"
    certifies: ClassVar[bool] = True

    guesses: int = Field(100, ge=1, description="noisy copies of an image from which its class is guessed (n0)")
    draws: int = Field(1000, ge=1, description="noisy copies by which the guess is proved (n)")
    alpha: float = Field(0.001, gt=0, lt=1, description="probability with which a proof may be wrong")

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"

    def obstacle(self, setting: Setting) -> str | None:
        """The proof is of a change of one image alone."""
        if setting.transductive:
            return (
                "it proves predictions of single images, and here they depend on the other queries, too (transductive)"
            )
        return None

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Give x back."""
        return x

    def certified_radius(self, model: Victim, sigma: float, x: Tensor, y: Tensor, random: Random) -> Tensor:
        """σ·Φ⁻¹(p) where the guess is right and p > ½; −1 elsewhere.

        p is the lower bound of Clopper and Pearson, at confidence 1 − α, on the probability that the classifier under
        noise of σ gives the guessed class.
        """
        guess = self._votes(model, sigma, x, random, self.guesses).argmax(-1, keepdim=True)
        votes = self._votes(model, sigma, x, random, self.draws).gather(-1, guess)[..., 0].cpu().numpy()
        bound = beta.ppf(self.alpha, votes, self.draws - votes + 1)  # NaN for no vote at all
        radius = torch.from_numpy(sigma * norm.ppf(bound)).to(x.device)
        return torch.where((guess[..., 0] == y) & (radius > 0), radius, -1.0)

    def _votes(self, model: Victim, sigma: float, x: Tensor, random: Random, draws: int) -> Tensor:
        """How often each class is the answer to x under noise [tasks, n, way]."""
        votes = x.new_zeros(*x.shape[: -model.event_ndim], model.way, dtype=torch.long)
        with torch.no_grad():
            for _ in range(draws):
                answer = model(x + sigma * random.normal(x)).argmax(-1, keepdim=True)
                votes.scatter_add_(-1, answer, torch.ones_like(answer))
        return votes


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `certificate`."""
    register(Certificate)
