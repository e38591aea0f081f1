"""The network of a system, put together from its settings: for training, and again for scoring."""

from __future__ import annotations

from offkey.audio.cache import ArrayCache, default_cache_dir
from offkey.audio.mel import LogMel
from offkey.encoders import encoder_class, load_encoder
from offkey.encoders.base import Encoder
from offkey.encoders.cache import FeatureCache
from offkey.encoders.weights import find
from offkey.models.config import DiscriminativeConfig, ReconstructiveConfig, RetrievalConfig
from offkey.models.dense_autoencoder import DenseAutoencoder
from offkey.models.discriminative import Discriminative
from offkey.models.encoder_frames import EncoderFrames
from offkey.models.reconstructive import Reconstructive, frozen_frames
from offkey.models.retrieval import Retrieval, RetrievalError
from offkey.objectives.config import MultiTaskConfig
from offkey.systems.config import SystemConfig
from offkey.training.augmentation import SpecAugment, StreamExchange

__all__ = [
    "FRAME_CACHE_BYTES",
    "Network",
    "build_network",
    "check_encoder",
    "discriminative_network",
    "encoder_of",
    "frame_cache",
    "pretrained_encoder",
    "reconstructive_network",
    "retrieval_network",
]

Network = Discriminative | Reconstructive | DenseAutoencoder | Retrieval

FRAME_CACHE_BYTES = 20_000_000_000
"""Bound of the frozen frames on disk: 7 machines of 1200 clips take 1.6 GB, and a cache that is too small is no use."""


def check_encoder(config: SystemConfig) -> None:
    """Raise WeightsError, which says how to come by them, where the weights that `config` asks for are not at hand."""
    if config.encoder.name != "none":
        find(config.encoder.weights or encoder_class(config.encoder.name).usual_weights)


def pretrained_encoder(config: SystemConfig) -> Encoder | None:
    """The encoder that `config` asks for, with its published weights and all of them frozen; None where there is none.

    Raises WeightsError, which says how to come by the weights, or EncoderError where a file does not fit.
    """
    if config.encoder.name == "none":
        return None
    encoder = load_encoder(
        config.encoder.name, config.encoder.weights, classifier=False, checkpointing=config.encoder.checkpointing
    )
    return encoder.requires_grad_(False)


def build_network(config: SystemConfig, encoder: Encoder | None) -> Network:
    """A network with new layers around `encoder`; what learns in the encoder is settled elsewhere."""
    match config.model:
        case DiscriminativeConfig() as model:
            return discriminative_network(config, model, encoder)
        case ReconstructiveConfig() as model:
            return reconstructive_network(config, model, encoder)
        case RetrievalConfig() as model:
            return retrieval_network(config, model, encoder)
        case model:
            return DenseAutoencoder(LogMel(config.audio.rate, config.mel), model)


def discriminative_network(
    config: SystemConfig, model: DiscriminativeConfig, encoder: Encoder | None
) -> Discriminative:
    """The network of Approach 1. Frames of an encoder that stays as it was published are kept on disk."""
    streams = []
    if encoder is not None:
        published = config.encoder.unfreeze == "none" and not config.encoder.lora_rank
        streams.append(
            EncoderFrames(
                encoder,
                config.audio.rate,
                config.mel.hop,
                config.mel.n_mels,
                cache=frame_cache() if published and config.encoder.cache else None,
                cache_training=not config.varies_waveforms,
                layer_decay=config.encoder.layer_decay,
            )
        )
    return Discriminative(
        LogMel(config.audio.rate, config.mel),
        model,
        SpecAugment(config.augmentation.spec_augment),
        streams,
        tell_modalities=isinstance(config.objective, MultiTaskConfig) and config.objective.modality_mmd_weight > 0,
        stream_exchange=StreamExchange(config.augmentation.featex) if config.augmentation.featex.enabled else None,
    )


def reconstructive_network(
    config: SystemConfig, model: ReconstructiveConfig, encoder: Encoder | None
) -> Reconstructive:
    """The network of Approach 2. Frames of its frozen encoder are kept on disk."""
    mel = LogMel(config.audio.rate, config.mel)
    if encoder is None:
        return Reconstructive(mel, model)
    cache = frame_cache() if config.encoder.cache else None
    return Reconstructive(
        mel, model, [frozen_frames(encoder, config.audio.rate, config.mel.hop, cache)], [encoder.dimension]
    )


def retrieval_network(config: SystemConfig, model: RetrievalConfig, encoder: Encoder | None) -> Retrieval:
    """The network of a retrieval system: a frozen encoder and its pooling. Pooled vectors are kept on disk.

    Raises RetrievalError without an encoder, or where it has no such layer.
    """
    if encoder is None:
        raise RetrievalError("a retrieval system listens with a pretrained encoder, and there is none")
    return Retrieval(encoder, model, config.audio.rate, frame_cache() if config.encoder.cache else None)


def encoder_of(network: Network) -> Encoder | None:
    """The pretrained encoder that a network listens with, if there is one."""
    return None if isinstance(network, DenseAutoencoder) else network.encoder


def frame_cache() -> FeatureCache:
    """Where frames that a frozen encoder heard are kept on disk."""
    return FeatureCache(ArrayCache(default_cache_dir() / "frames", FRAME_CACHE_BYTES))
