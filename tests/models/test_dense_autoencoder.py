"""The DCASE baseline against plain numpy, clip by clip, and its ways with odd clips."""

import librosa
import numpy as np
import pytest
import torch
from torch import nn

from offkey.audio.mel import LogMel, MelConfig
from offkey.models.config import BaselineConfig
from offkey.models.dense_autoencoder import FLOOR_DB, DenseAutoencoder, SelectiveMahalanobis
from offkey.models.error_pooling import pool_errors
from offkey.models.windows import window_samples
from offkey.types import Batch, Labels, OffkeyError

RATE, HOP, BANDS = 8000, 128, 12
MEL = LogMel(RATE, MelConfig(n_fft=256, hop=HOP, n_mels=BANDS, floor_db=FLOOR_DB))
SMALL = BaselineConfig(width=16, layers=2, latent=3)


def make_batch(*lengths: int, domain: tuple[int, ...] | None = None, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    waves = [
        torch.from_numpy((rng.standard_normal(n) * 0.1 * (1 + i)).astype(np.float32)) for i, n in enumerate(lengths)
    ]
    labels = None
    if domain is not None:
        count = len(lengths)
        labels = Labels(
            torch.zeros(count, dtype=torch.int64), torch.zeros(count, 0, dtype=torch.int64), torch.tensor(domain)
        )
    waveform = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return Batch(waveform, torch.tensor(lengths), labels, torch.arange(len(lengths)))


def one(batch: Batch, row: int) -> Batch:
    return Batch(
        batch.waveform[row : row + 1, : batch.lengths[row]], batch.lengths[row : row + 1], None, batch.place[:1]
    )


def random_network(config: BaselineConfig = SMALL, seed: int = 0) -> DenseAutoencoder:
    """Weights and normalisations that are not those of the start, so that a mix-up shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DenseAutoencoder(MEL, config)
        for name, tensor in network.state_dict().items():
            if "running_mean" in name:
                tensor.normal_()
            if "running_var" in name:
                tensor.uniform_(0.5, 2.0)
            if name.startswith("encoder.0.weight"):
                tensor.mul_(0.02)  # levels are tens of dB
    return network.eval()


def stacks_of(wave: np.ndarray) -> np.ndarray:
    """The official features by librosa: frame after frame of neighbouring log-mel columns."""
    power = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=256, hop_length=HOP, n_mels=BANDS, power=2.0)
    levels = 10.0 * np.log10(np.maximum(power, np.finfo(np.float64).eps))
    return np.stack([levels[:, v : v + 5].T.ravel() for v in range(levels.shape[1] - 4)])


def rebuilt(network: DenseAutoencoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network in numpy: linear, batch normalisation (1e-3), ReLU; the last layer alone has neither."""
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    hidden = x
    latent = x
    for part, blocks in (("encoder", 3), ("decoder", 2)):
        for block in range(blocks):
            linear, norm = f"{part}.{3 * block}", f"{part}.{3 * block + 1}"
            hidden = hidden @ state[f"{linear}.weight"].T + state[f"{linear}.bias"]
            hidden = (hidden - state[f"{norm}.running_mean"]) / np.sqrt(state[f"{norm}.running_var"] + 1e-3)
            hidden = np.maximum(hidden * state[f"{norm}.weight"] + state[f"{norm}.bias"], 0.0)
        latent = hidden if part == "encoder" else latent
    return hidden @ state["decoder.6.weight"].T + state["decoder.6.bias"], latent


def test_the_published_net_has_the_published_size() -> None:
    network = DenseAutoencoder(LogMel(16000))
    sizes = [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [(640, 128), *[(128, 128)] * 3, (128, 8), (8, 128), *[(128, 128)] * 3, (128, 640)]
    assert sum(weights.numel() for weights in network.parameters()) == 267_928
    assert isinstance(network.decoder[-1], nn.Linear)


def test_errors_and_latents_are_those_of_librosa_and_numpy() -> None:
    batch, network = make_batch(4000, 900, 2500), random_network()
    heard = network(batch)
    assert heard.frame_error is not None
    assert heard.embedding.shape == (3, 3)
    assert heard.frame_error.shape == (3, 4000 // HOP + 1 - 4)
    for row, length in enumerate(batch.lengths.tolist()):
        x = stacks_of(batch.waveform[row, :length].numpy())
        output, latent = rebuilt(network, x)
        np.testing.assert_allclose(heard.frame_error[row, : len(x)].detach(), np.square(output - x).mean(1), rtol=1e-4)
        np.testing.assert_allclose(heard.embedding[row].detach(), latent.mean(0), rtol=1e-3, atol=1e-4)
        assert not heard.frame_error[row, len(x) :].any()
        assert int(network.error_frames(batch.lengths)[row]) == len(x)


@pytest.mark.parametrize("mahalanobis", ["residual", "distance"])
def test_the_selective_score_is_that_of_all_pairs_or_of_every_frame(mahalanobis: str) -> None:
    network = random_network(SMALL.model_copy(update={"mahalanobis": mahalanobis}))
    network.fit_residuals([make_batch(9000, 8000, 7000, domain=(0, 1, 0), seed=4)])
    batch = make_batch(4000, 900, 2500)
    scores = SelectiveMahalanobis(network)(batch).embedding
    assert scores.shape == (3, 1)
    inverse = np.linalg.inv(network.covariance.numpy())
    for row, length in enumerate(batch.lengths.tolist()):
        x = stacks_of(batch.waveform[row, :length].numpy())
        residual = (rebuilt(network, x)[0] - x).reshape(-1, BANDS)
        pairs = [residual @ precision @ residual.T for precision in inverse]
        expected = min(p.mean() if mahalanobis == "residual" else np.diag(p).mean() for p in pairs)
        assert scores[row, 0].item() == pytest.approx(expected, rel=1e-4)


def test_residuals_are_learnt_a_domain_each_about_the_mean_of_a_batch() -> None:
    network = random_network()
    batches = [make_batch(5000, 700, 3000, domain=(0, 1, -1), seed=1), make_batch(2000, 4000, domain=(1, 0), seed=2)]
    network.train()
    network.fit_residuals(batches)
    assert network.training  # as it was
    network.eval()
    for number, domains in enumerate(((0, -1), (1,))):
        total, vectors = np.zeros((BANDS, BANDS)), 0
        for batch in batches:
            assert batch.labels is not None
            rows = []
            for row, length in enumerate(batch.lengths.tolist()):
                if int(batch.labels.domain[row]) in domains:
                    x = stacks_of(batch.waveform[row, :length].numpy())
                    rows.append(x - rebuilt(network, x)[0])
            part = np.concatenate(rows)
            vectors += len(part)
            frames = part.reshape(-1, BANDS)
            total += np.cov(frames.T, bias=True) * len(frames)
        np.testing.assert_allclose(network.covariance[number], total / (vectors - 1), rtol=2e-3, atol=2e-3)


def test_a_lone_domain_serves_both_and_few_vectors_are_enough() -> None:
    network = random_network()
    network.fit_residuals([make_batch(HOP * 5, domain=(1,))])  # two vectors for 12 bands: no inverse of its own
    torch.testing.assert_close(network.covariance[0], network.covariance[1])
    scores = SelectiveMahalanobis(network)(make_batch(4000, 900)).embedding
    assert torch.isfinite(scores).all()
    assert (scores > 0).all()


def test_without_residuals_or_labels_there_is_no_score() -> None:
    network = random_network()
    with pytest.raises(OffkeyError, match="fit_residuals"):
        SelectiveMahalanobis(network)(make_batch(900))
    with pytest.raises(OffkeyError, match="label"):
        network.fit_residuals([make_batch(900)])
    with pytest.raises(OffkeyError, match="no training clip"):
        network.fit_residuals([])


@pytest.mark.parametrize("lengths", [(4000, 900, 2500), (4000, 300, 1), (300, 1)])
def test_alone_or_in_company_a_clip_of_any_length_gets_the_same_answer(lengths: tuple[int, ...]) -> None:
    network = random_network()
    network.fit_residuals([make_batch(9000, 8000, domain=(0, 1), seed=4)])
    batch = make_batch(*lengths)
    batch = batch._replace(
        waveform=torch.nn.functional.pad(batch.waveform, (0, 999), value=0.3)
    )  # rubbish past the ends
    whole, scores, maps = network(batch), SelectiveMahalanobis(network)(batch).embedding, network.error_map(batch)
    assert whole.frame_error is not None
    for row, length in enumerate(lengths):
        alone = network(one(batch, row))
        count = max(1, length // HOP + 1 - 4)
        assert alone.frame_error is not None
        assert alone.frame_error.shape == (1, count)
        torch.testing.assert_close(whole.frame_error[row, :count], alone.frame_error[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(whole.embedding[row], alone.embedding[0], rtol=1e-4, atol=1e-4)
        alone_score = SelectiveMahalanobis(network)(one(batch, row)).embedding
        torch.testing.assert_close(scores[row], alone_score[0], rtol=1e-4, atol=1e-5)
        alone_map = network.error_map(one(batch, row))
        assert alone_map.shape == (1, BANDS, length // HOP + 1)
        torch.testing.assert_close(maps[row, :, : length // HOP + 1], alone_map[0], rtol=1e-3, atol=1e-2)
        assert not maps[row, :, length // HOP + 1 :].any()


def test_a_clip_of_too_few_frames_is_held_on_its_last_one() -> None:
    network = random_network()
    short = make_batch(300)  # three frames
    levels = MEL(short.waveform, short.lengths)
    held = torch.cat([levels, levels[..., -1:], levels[..., -1:]], dim=2)
    as_features = short._replace(lengths=torch.tensor([window_samples(5, HOP, 256)]), features=held)
    torch.testing.assert_close(network(short), network(as_features))


def test_levels_given_as_features_are_taken_for_the_waveform() -> None:
    network = random_network()
    batch = make_batch(4000, 900)
    given = batch._replace(
        waveform=torch.zeros(2, 0),
        lengths=window_samples(1, HOP, 256) + batch.lengths // HOP * HOP,
        features=MEL(batch.waveform, batch.lengths),
    )
    torch.testing.assert_close(network(given), network(batch))


def test_the_map_of_errors_shows_where_a_band_departs() -> None:
    network = random_network()
    levels = MEL(*make_batch(4000)[:2])
    changed = levels.clone()
    changed[0, 7, 20] += 60.0
    samples = torch.tensor([window_samples(levels.shape[2], HOP, 256)])
    batches = [make_batch(4000)._replace(lengths=samples, features=x) for x in (levels, changed)]
    before, after = (network.error_map(batch)[0] for batch in batches)
    where = int((after - before).argmax())
    assert divmod(where, before.shape[1]) == (7, 20)


def test_training_counts_only_own_vectors_and_takes_a_single_one() -> None:
    batch = make_batch(2500, 900)
    padded, plain = random_network().train(), random_network().train()
    padded(batch._replace(waveform=torch.nn.functional.pad(batch.waveform, (0, 3000))))
    plain(batch)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], tensor, msg=name)
    error = plain(make_batch(300)).frame_error
    assert error is not None
    error.mean().backward()
    assert all(weights.grad is not None for weights in plain.parameters())


def test_it_learns_to_rebuild() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DenseAutoencoder(MEL, SMALL).train()
    batch = make_batch(4000, 4000, 4000)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        error = network(batch).frame_error
        assert error is not None
        optimiser.zero_grad()
        error.mean().backward()
        optimiser.step()
        losses.append(float(error.mean().detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 5.0]), ("max", [3.0, 5.0]), ("top", [2.5, 5.0])])
def test_errors_are_pooled_over_a_clips_own_frames(pooling: str, expected: list[float]) -> None:
    error = torch.tensor([[1.0, 3.0, 2.0, 99.0], [5.0, 99.0, 99.0, 99.0]])
    assert pool_errors(error, torch.tensor([3, 1]), pooling, 2).tolist() == expected


def test_what_was_learnt_travels_with_the_weights() -> None:
    network = random_network()
    network.fit_residuals([make_batch(9000, 8000, domain=(0, 1), seed=4)])
    other = DenseAutoencoder(MEL, SMALL)
    other.load_state_dict(network.state_dict())
    batch = make_batch(4000)
    torch.testing.assert_close(SelectiveMahalanobis(other.eval())(batch), SelectiveMahalanobis(network)(batch))
