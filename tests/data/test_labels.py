"""Classes follow from the training clips alone; what they do not know is -1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offkey.data.labels import LabelSpace
from offkey.types import ClipMeta, Content, Domain, OffkeyError

S, T, U = Domain.SOURCE, Domain.TARGET, Domain.UNKNOWN


def clip(machine: str = "fan", domain: Domain = S, section: str = "00", name: str = "a", **settings: str) -> ClipMeta:
    return ClipMeta(Path(name), machine, section, domain, attributes=tuple(settings.items()))


KNOWN = [
    clip(speed="1", mic="1"),
    clip(speed="2", mic="1"),
    clip(speed="1", mic="1", domain=T),
    clip("pump"),
    clip("pump", T),
    clip("valve", section="02", speed="9"),
]


def test_identity_is_the_setting_where_known_else_the_domain():
    space = LabelSpace.of(KNOWN)
    assert space.identities == (
        "fan/00/speed=1,mic=1", "fan/00/speed=2,mic=1", "pump/00/source", "pump/00/target", "valve/02/speed=9"
    )  # fmt: skip
    assert [space.encode(one)[0] for one in KNOWN] == [0, 1, 0, 2, 3, 4]


def test_one_clip_with_hidden_settings_is_classed_by_domain():
    clips = [*KNOWN, clip(domain=T)]
    space = LabelSpace.of(clips)
    assert space.identities[space.encode(clips[-1])[0]] == "fan/00/target"


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("domain", ("fan/00/source", "fan/00/target", "pump/00/source", "pump/00/target", "valve/02/source")),
        ("machine", ("fan/00", "pump/00", "valve/02")),
    ],
)
def test_identity_by_other_rules(rule, names):
    assert LabelSpace.of(KNOWN, rule).identities == names


def test_heads_are_settings_of_one_machine_with_two_values():
    space = LabelSpace.of([*KNOWN, clip("pump", speed="fast"), clip("pump", speed="slow")])
    assert space.attribute_heads == (("fan/speed", ("1", "2")), ("pump/speed", ("fast", "slow")))
    assert space.encode(clip(speed="2"))[1] == (1, -1)
    assert space.encode(clip("pump", speed="fast"))[1] == (-1, 0)
    assert space.encode(clip("pump", speed="unheard"))[1] == (-1, -1)


def test_domains_are_numbered():
    space = LabelSpace.of(KNOWN)
    assert [space.encode(clip(domain=domain))[2] for domain in (S, T, U)] == [0, 1, -1]


def test_what_training_did_not_have_is_unknown():
    space = LabelSpace.of(KNOWN)
    for stranger in (clip("drill"), clip(speed="3", mic="1"), clip("pump", U), clip("pump", section="01")):
        assert space.encode(stranger)[0] == -1


def test_noise_is_a_class_of_its_own():
    noise = replace(clip(speed="1"), content=Content.NOISE)
    space = LabelSpace.of([*KNOWN, noise])
    assert space.identities[space.encode(noise)[0]] == "noise"


def test_clusters_refine_identities():
    clips = [clip("pump", name=name) for name in "abcd"]
    space = LabelSpace.of(clips, pseudo={Path("a"): "0", Path("b"): "1", Path("c"): "1"})
    assert space.identities == ("pump/00/source", "pump/00/source#0", "pump/00/source#1")
    assert [space.encode(one)[0] for one in clips] == [1, 2, 2, 0]


def test_order_of_clips_does_not_matter():
    assert LabelSpace.of(KNOWN) == LabelSpace.of(KNOWN[::-1])


word = st.text(min_size=1, max_size=4)


@given(st.lists(st.tuples(word, st.sampled_from(Domain), st.sampled_from(["00", "01"]), word), min_size=1, max_size=8))
def test_a_space_survives_json(rows):
    clips = [clip(machine, domain, section, speed=speed) for machine, domain, section, speed in rows]
    space = LabelSpace.of(clips)
    back = LabelSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert back == space
    assert [back.encode(one) for one in clips] == [space.encode(one) for one in clips]
    assert all(0 <= space.encode(one)[0] < len(space.identities) for one in clips)


def test_no_clips_and_no_space_are_refused():
    with pytest.raises(OffkeyError, match="no clips"):
        LabelSpace.of([])
    for wrong in ({}, {**LabelSpace.of(KNOWN).to_dict(), "identity_by": "shape"}):
        with pytest.raises(OffkeyError, match="no description"):
            LabelSpace.from_dict(wrong)
