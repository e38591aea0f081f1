"""What a system without training needs before its normal clips are embedded: a frozen encoder, settled settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offkey.models.config import RetrievalConfig
from offkey.models.retrieval import Retrieval
from offkey.scoring.bank import BankOptions
from offkey.systems.config import ScoringConfig, SystemConfig
from offkey.systems.network import Network, pretrained_encoder, retrieval_network

__all__ = ["encoder_facts", "frozen_network", "settle_parts"]


def frozen_network(config: SystemConfig) -> Retrieval | None:
    """The network of a retrieval system, which is ready without training; None for every other system.

    Raises WeightsError or EncoderError as `pretrained_encoder` does, RetrievalError for a layer that it has not.
    """
    if not isinstance(config.model, RetrievalConfig):
        return None
    return retrieval_network(config, config.model, pretrained_encoder(config)).eval()


def settle_parts(config: SystemConfig, network: Network | None) -> SystemConfig:
    """Settings in which no scorer leaves `parts` open: those of a network's embedding are as many as the network says.

    Raises RetrievalError where the embedding has no equal parts.
    """
    entries = []
    for entry in config.scoring.scorers:
        scorer = entry.scorer
        if isinstance(scorer, BankOptions) and scorer.parts == 0:
            says = network.parts if entry.view == "network" and isinstance(network, Retrieval) else 1
            entry = entry.model_copy(update={"scorer": scorer.model_copy(update={"parts": says})})
        entries.append(entry)
    if tuple(entries) == config.scoring.scorers:
        return config
    return config.model_copy(update={"scoring": ScoringConfig(scorers=tuple(entries))})


def encoder_facts(network: Retrieval) -> Mapping[str, Any]:
    """What the card tells of a frozen encoder and of what its patches become."""
    return {
        "name": network.encoder.name,
        "published": network.encoder.fingerprint(),
        "learnt": [],
        "layers": network.layers,
        "pooling": network.config.pooling,
        "bands": network.config.bands,
        "embedding": sum(network.blocks),
    }
