"""A value encoded in pieces has the same bytes, the same hash and the same packed form."""

from dataclasses import replace

import pytest

from babylon_rl.common.canonical import digest, pack, pack_with_digest, pieces, to_json, unpack
from babylon_rl.types import Trajectory, TrajectoryGroup
from babylon_rl_tests.factories import a_group, a_member, a_trajectory, a_turn

VALUES = [
    a_group(),
    replace(a_group("a", "ü\u2028", 'q"'), members=()),
    [a_group("a", "b"), None],
    (a_turn(), a_turn(user="😀")),
    [],
    (),
    {"b": 1, "a": [2.0]},
    "text",
    None,
    replace(a_group(), members=(replace(a_member("a"), archetype="trader"), a_member("b"))),
    {"group": [a_group()]},
]


@pytest.mark.parametrize("depth", range(6))
@pytest.mark.parametrize("value", VALUES)
def test_pieces_have_the_bytes_of_the_whole(value: object, depth: int) -> None:
    assert b"".join(pieces(value, depth)) == to_json(value)
    assert digest(value, depth=depth) == digest(value)
    assert pack(value, depth=depth) == pack(value)
    assert pack_with_digest(value) == (pack(value), digest(value))


def test_a_group_is_encoded_member_by_member() -> None:
    group = a_group(*(f"agent-{i}" for i in range(500)))
    assert max(map(len, pieces(group, 2))) < len(to_json(group)) / 100
    assert unpack(pack(group, depth=2), TrajectoryGroup) == group


def test_a_field_that_is_left_out_by_default_changes_no_bytes() -> None:
    plain, named = a_trajectory(), a_trajectory(archetype="trader")
    assert b"archetype" not in to_json([{"t": plain}]) + b"".join(pieces([plain], 3))
    assert to_json(named) == to_json(plain).replace(b'"decisions"', b'"archetype":"trader","decisions"')
    assert [unpack(pack(t), Trajectory) for t in (plain, named)] == [plain, named]
