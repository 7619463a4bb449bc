"""VAEs beside critics of their images: VAE/GAN and CVAE-GAN.

VAE/GAN is Larsen et al. 2016, arXiv:1512.09300. CVAE-GAN is Bao et al. 2017, arXiv:1703.10155.
Encoder, decoder, critic and classifier are players. Each loss is a function of the parameters of
all players, and its gradient reaches its own player alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import divergences
from jaxvae.contracts import Array, Loss, Params, Terms
from jaxvae.distributions import log_prob_of
from jaxvae.networks import Judgement, Network

Players = dict[str, Params]  # the parameters of all players
DECODER = ("decoder", "likelihood")  # parts of a VAE's parameters; the others are the encoder's


class Weights(NamedTuple):
    """The weights of a hybrid's terms. With 0 for ``similarity`` and ``critic`` it is a VAE."""

    kl: float = 1.0
    pixels: float = 1.0  # of -log p(x|z)
    similarity: float = 0.0  # of the distance in hidden layers
    critic: float = 0.0  # of what the critic says of decoded images, in the decoder's loss


class Judge(NamedTuple):
    """A critic or a classifier, and the hidden layer in which images are compared."""

    network: Network  # gives a ``networks.Judgement``
    layer: int = -1
    # (image, example) -> what the network takes, such as the image beside the example's condition
    sees: Callable[[Array, Any], Array] = lambda image, example: image


def parted(params: Params) -> Players:
    """The parameters of a VAE by player: its encoder and its decoder."""
    encoder = {name: part for name, part in params.items() if name not in DECODER}
    return {"encoder": encoder, "decoder": {name: params[name] for name in DECODER}}


def joined(params: Players) -> Params:
    """The parameters of the VAE whose encoder and decoder are players."""
    return params["encoder"] | params["decoder"]


def only(params: Players, player: str) -> Players:
    """The parameters of all players, of which one player's alone carry a gradient."""
    return lax.stop_gradient(params) | {player: params[player]}


def hybrid_init(model: Any, judges: dict[str, Judge]) -> Callable[[Array, Any], Players]:
    """``(key, example) -> {player: params}`` of a VAE or a CVAE and of its judges."""

    def init(key: Array, example: Any) -> Players:
        key_model, *keys = jax.random.split(key, 1 + len(judges))
        x = model.at(example)[1]
        pairs = zip(judges.items(), keys, strict=True)
        of_judges = {
            name: judge.network.init(key, judge.sees(x, example)) for (name, judge), key in pairs
        }
        return parted(model.init(key_model, example)) | of_judges

    return init


class Passes(NamedTuple):
    """What a VAE makes of an example."""

    example: Any
    images: tuple[Array, Array, Array]  # x, decoded from a draw of q(z|x), from one of the prior
    log_likelihood: Array  # log p(x|z) at the draw of q(z|x), in nats
    kl: Array  # KL(q(z|x) || p(z)), in nats


def mean_image(p: Any, key: Array) -> Array:
    """The mean of p(x|z), the image that judges see."""
    return p.mean


def passes(
    model: Any, params: Players, key: Array, example: Any, image: Callable = mean_image
) -> Passes:
    """The passes of one example. ``negative_elbo`` has the same draw of q(z|x) and KL.

    Args:
      model: a VAE or a CVAE.
      params: the parameters of all players.
      key: the key of all draws.
      example: the example.
      image: ``(p(x|z), key) -> x``, what is judged.
    """
    key_z, key_kl = jax.random.split(key)
    vae, x = model.at(example)
    vae, of_vae = vae.in_training(key), joined(params)
    q, prior = vae.encode(of_vae, x), vae.prior(of_vae)
    p = vae.decode(of_vae, q.sample(key_z, (1,))[0])
    drawn = vae.decode(of_vae, prior.sample(jax.random.fold_in(key, 1)))
    decoded = [image(each, jax.random.fold_in(key, 2 + i)) for i, each in enumerate((p, drawn))]
    log_likelihood, kl = log_prob_of(p, x), divergences.kl(q, prior, key_kl)
    return Passes(example, (x, decoded[0], decoded[1]), log_likelihood, kl)


def judged(judge: Judge, params: Params, images: Sequence[Array], example: Any) -> list[Judgement]:
    """What a judge says of each image, x itself or decoded for the example."""
    return [judge.network.apply(params, judge.sees(image, example)) for image in images]


def half_square(a: Array, b: Array) -> Array:
    """|a - b|^2 / 2, which is -log N(a; b, I) up to a constant."""
    return jnp.sum((a - b) ** 2) / 2


def weighted(weight: float, value: Array) -> Array:
    """``weight * value``, and 0 for a weight of 0 whatever the value is."""
    return weight * value if weight else jnp.zeros(())


def hybrid_losses(
    model: Any, judges: dict[str, Judge], weights: Weights, image: Callable = mean_image
) -> dict[str, Loss]:
    """The losses of encoder, decoder and critic for one example.

    Let x' be decoded from a draw of q(z|x), x_p from a draw of p(z), c the critic's log-odds, and
    D_j a judge's hidden layer. The losses are

        encoder: kl KL + L,   L = similarity sum_j |D_j(x) - D_j(x')|^2 / 2 - pixels log p(x|z)
        decoder: L - critic (log s(c(x')) + log s(c(x_p))) / 2
        critic:  -log s(c(x)) - (log s(-c(x')) + log s(-c(x_p))) / 2.

    With one judge, the critic, it is VAE/GAN (arXiv:1512.09300, alg. 1), where 1 / gamma is the
    weight ``critic``. The paper's decoder ascends log s(-c), whose gradient vanishes if the critic
    is certain. With a classifier as second judge it is CVAE-GAN (arXiv:1703.10155), whose decoder
    also descends ``MeanMatching``.

    Args:
      model: a VAE or a CVAE.
      judges: networks by the names of their players; ``critic`` gives one number.
      weights: the weights of the terms.
      image: ``(p(x|z), key) -> x``, what is judged: its mean, or a draw.
    """

    def likeness(made: Passes, params: Players) -> tuple[Array, Terms]:
        distance = jnp.zeros(())
        for name, judge in judges.items():
            pair = judged(judge, params[name], made.images[:2], made.example)
            distance += half_square(*(each.layers[judge.layer] for each in pair))
        value = weighted(weights.similarity, distance)
        value -= weighted(weights.pixels, made.log_likelihood)
        return value, {"reconstruction": made.log_likelihood, "distance": distance}

    def log_odds(params: Players, made: Passes) -> list[Array]:
        said = judged(judges["critic"], params["critic"], made.images, made.example)
        return [each.output[0] for each in said]

    def encoder(params: Players, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        params = only(params, "encoder")
        made = passes(model, params, key, x, image)
        value, terms = likeness(made, params)
        return value + weighted(weights.kl, made.kl), terms | {"kl": made.kl}

    def decoder(params: Players, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        params = only(params, "decoder")
        made = passes(model, params, key, x, image)
        fakes = log_odds(params, made)[1:]
        fooling = jax.nn.softplus(-jnp.stack(fakes)).mean()
        return likeness(made, params)[0] + weighted(weights.critic, fooling), {}

    def critic(params: Players, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        params = only(params, "critic")
        return discernment(*log_odds(params, passes(model, params, key, x, image)))

    return {"encoder": encoder, "decoder": decoder, "critic": critic}


def discernment(real: Array, *fakes: Array) -> tuple[Array, Terms]:
    """-log s(c(x)) - mean_i log s(-c(x_i)) of a critic's log-odds for a real and decoded images.

    Decoded images together weigh as much as the real one, as in the code of Larsen et al. Where all
    have one distribution the least expectation is 2 log 2. The terms are the probabilities of being
    real that the critic gives.
    """
    decoded = jnp.stack(fakes)
    terms = {"real": jax.nn.sigmoid(real), "decoded": jax.nn.sigmoid(decoded).mean()}
    return jax.nn.softplus(-real) + jax.nn.softplus(decoded).mean(), terms


def classification(model: Any, judge: Judge, name: str = "classifier") -> Loss:
    """-log p(y|x) of a classifier's player, for an example whose y is one-hot."""

    def loss(params: Players, key: Array, example: Any, step: Array) -> tuple[Array, Terms]:
        logits = judge.network.apply(params[name], model.at(example)[1]).output
        right = logits.argmax() == example.y.argmax()
        cost = optax.softmax_cross_entropy(logits, example.y)
        return cost, {"accuracy": right.astype(cost.dtype)}

    return lambda params, *rest: loss(only(params, name), *rest)


# Matching of means, over the global batch


class Centres(NamedTuple):
    """Means of a judge's last hidden layer, over all examples or over each class: [groups, F]."""

    real: Array
    decoded: Array


class MeanMatching(NamedTuple):
    """sum_j weight_j sum_g |E f_j(x) - E f_j(x_p)|^2 / 2, with f_j a judge's last hidden layer.

    Bao et al. 2017, arXiv:1703.10155, sec. 3. The means are over all examples for the critic, and
    over each class g for the classifier. x_p is decoded from a draw of the prior. Means of a batch
    scatter: between two batches of one distribution the expectation is tr Cov f / B. So the means
    are moving averages, which are the parameters of a player ``centres``. The gradient is the
    gradient of the batch's mean of f(x_p).
    """

    model: Any  # a CVAE, whose examples have one-hot y
    judges: dict[str, Judge]  # by the names of their players
    weights: dict[str, float]  # by judge
    groups: dict[str, int]  # by judge: 1, or the number of classes
    decay: float  # of the moving averages; 0 takes the means of the batch

    def init(self, params: Players, x: Array) -> dict[str, Centres]:
        """The parameters of ``centres``, which are zeros, for the judges' parameters."""

        def of_judge(name: str, judge: Judge) -> Centres:
            last = jax.eval_shape(judge.network.apply, params[name], x).layers[-1]
            zeros = jnp.zeros((self.groups[name], *last.shape))
            return Centres(zeros, zeros)

        return {name: of_judge(name, judge) for name, judge in self.judges.items()}

    def of_batch(
        self, params: Players, keys: Array, examples: Any, weight: Array, axis_name: str | None
    ) -> dict[str, tuple[Centres, Array]]:
        """The means of the global batch by judge, and which groups are in it, [groups, 1].

        Args:
          params: the parameters of all players.
          keys: one for each example, [B].
          examples: x with one-hot y, [B, ...].
          weight: the weights of the examples, [B].
          axis_name: the axis of the devices, or None.
        """

        def one(key: Array, example: Any) -> dict[str, list[Array]]:
            x, _, drawn = passes(self.model, params, key, example).images
            pairs = {
                n: judged(judge, params[n], (x, drawn), example) for n, judge in self.judges.items()
            }
            return {name: [each.layers[-1] for each in pair] for name, pair in pairs.items()}

        means = {}
        for name, pair in jax.vmap(one)(keys, examples).items():
            members = examples.y if self.groups[name] > 1 else jnp.ones((len(weight), 1))
            shares = members * weight[:, None]  # [B, groups]
            totals = [jnp.tensordot(shares, f, (0, 0), precision="float32") for f in pair]
            sums = (totals, shares.sum(0)[:, None])
            totals, count = sums if axis_name is None else lax.psum(sums, axis_name)
            present = count > 0
            means[name] = Centres(*(t / jnp.where(present, count, 1.0) for t in totals)), present
        return means

    def loss(
        self, params: Players, keys: Array, x: Any, weight: Array, step: Array, axis_name: Any
    ) -> tuple[Array, Terms]:
        """The decoder's loss, a ``BatchLoss``."""
        params = only(params, "decoder")
        terms = {}
        for name, (mean, present) in self.of_batch(params, keys, x, weight, axis_name).items():
            moved = lambda old, new: self.decay * old + (1 - self.decay) * new
            centre = jax.tree.map(moved, params["centres"][name], lax.stop_gradient(mean))
            decoded = centre.decoded + mean.decoded - lax.stop_gradient(mean.decoded)
            terms[f"{name}_means"] = half_square(present * centre.real, present * decoded)
        costs = [self.weights[name] * terms[f"{name}_means"] for name in self.judges]
        return jnp.stack(costs).sum(), terms

    def centring(
        self, params: Players, keys: Array, x: Any, weight: Array, step: Array, axis_name: Any
    ) -> tuple[Array, Terms]:
        """The loss of ``centres``, whose averages move where ``sgd(1 - decay)`` descends it."""
        params = only(params, "centres")
        total = jnp.zeros(())
        for name, (mean, present) in self.of_batch(params, keys, x, weight, axis_name).items():
            for old, new in zip(params["centres"][name], mean, strict=True):
                total += half_square(present * old, present * new)
        return total, {}
