"""The compact form: shared text is written once, and it reads back to the original messages to the byte."""

import json
import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_factories import Pair, a_pair, logged_size_group

from babylon_rl.judging.audit.synthetic_groups import make_synthetic_group
from babylon_rl.judging.ruler import prompt as prompts
from babylon_rl.judging.ruler.compact import observations_in, timeline_of
from babylon_rl.judging.ruler.prompt import messages_in, messages_of, write_forms, write_prompt
from babylon_rl.judging.ruler.tokens import _load_encoder, count_tokens, estimate_by_bytes


def pieces(seed: int) -> list[str]:
    """Observations made of few lines, so that they share text in every awkward way."""
    r = random.Random(seed)
    alphabet = [
        "a long line of the market that all may share\n",
        "x\n",
        "\n",
        '{"a": 1}, {"b": 22222222222222222222}, ',
        "no newline at the end",
        "\r\n",
        '\u2028<trajectory id="t1">\n',
        "v1",
        "b1\n",
        "\x00",
    ]
    return ["".join(r.choice(alphabet) for _ in range(r.randrange(0, 12))) for _ in range(r.randrange(1, 12))]


@pytest.mark.parametrize("seed", range(200))
def test_observations_read_back_to_the_byte(seed: int) -> None:
    texts = pieces(seed)
    timeline = timeline_of(texts)
    assert observations_in(timeline.entries, timeline.seen) == texts


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab\n},{ \r\x0b\u2029", max_size=60), min_size=1, max_size=6))
def test_no_text_is_lost_whatever_it_holds(texts: list[str]) -> None:
    timeline = timeline_of(texts)
    assert observations_in(timeline.entries, timeline.seen) == texts


def with_observations(texts: list[str]) -> Pair:
    group, h = a_pair()
    r = random.Random(len(texts))
    members = tuple(
        replace(
            m,
            turns=tuple(
                msgspec.structs.replace(t, user=r.choice(texts), system=r.choice(("S", "other"))) for t in m.turns
            ),
        )
        for m in group.members
    )
    return replace(group, members=members), h


@pytest.mark.parametrize("seed", range(60))
def test_both_prompt_forms_read_back_to_the_messages(seed: int) -> None:
    pair = (
        with_observations(pieces(seed))
        if seed % 2
        else _pair(make_synthetic_group(seed, agents=5, steps=3, note=seed % 4 == 0))
    )
    for compact in (False, True):
        written = write_prompt(*pair, rubric="r", key=f"k{seed}", compact=compact)
        assert messages_in(written) == messages_of(pair[0])


def test_the_compact_form_is_less_than_a_third_of_the_plain() -> None:
    synthetic = logged_size_group(1)
    forms = write_forms(synthetic.group, synthetic.hindsight, rubric="r", key="k")
    assert forms.compact is not None
    assert forms.compact_tokens is not None
    assert forms.plain_tokens > 100_000
    assert forms.compact_tokens <= 0.30 * forms.plain_tokens
    assert messages_in(forms.compact) == messages_of(synthetic.group)
    assert [name for name, _, _ in forms.by_preference()] == ["compact"]
    shown = synthetic.group.members[0].turns[7].user.splitlines()[5]
    assert (forms.plain.user.count(shown), forms.compact.user.count(shown)) == (8, 1)


def test_a_group_with_nothing_to_share_stays_plain() -> None:
    forms = write_forms(*a_pair(), rubric="r", key="k")
    assert forms.by_preference()[0][0] == "plain"


def test_a_compact_form_that_does_not_read_back_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compact prompt is read back before it is sent: were the writer wrong, the plain form would go out."""
    synthetic = make_synthetic_group(3)
    real = prompts.timeline_of

    def wrong(texts: list[str]) -> object:
        return real([t.replace("Step 2", "Step 3") for t in texts])

    monkeypatch.setattr(prompts, "timeline_of", wrong)
    forms = write_forms(synthetic.group, synthetic.hindsight, rubric="r", key="k")
    assert forms.compact is None
    assert [name for name, _, _ in forms.by_preference()] == ["plain"]


def test_counting_tokens_by_line_errs_by_less_than_a_percent() -> None:
    encode = _load_encoder()
    assert encode is not None
    synthetic = logged_size_group(2)
    texts = [
        write_prompt(synthetic.group, synthetic.hindsight, rubric="r", key="k", compact=c).user for c in (False, True)
    ]
    for text, counted in zip(texts, count_tokens(*texts), strict=True):
        assert counted == pytest.approx(len(encode(text)), rel=0.01)
        assert estimate_by_bytes(text) == pytest.approx(len(encode(text)), rel=0.5)


def actions_in(user: str) -> list[list[dict[str, object]]]:
    """The actions of each trajectory, as a judge reads them in either form."""
    found: list[list[dict[str, object]]] = []
    for line in user.split("\n"):
        if line.startswith("<trajectory "):
            found.append([])
        record = json.loads(line) if line.startswith("{") else {}
        if "action" in record:
            found[-1].append(record["action"])
        found[-1:] = (
            [[*found[-1], *({**record.get("usual", {}), **a} for a in record["actions"])]]
            if ("actions" in record)
            else found[-1:]
        )
    return found


ODD_ACTIONS = (
    ({"actionType": "HOLD", "success": True}, {"actionType": "HOLD", "success": 1}, {"actionType": "HOLD"}),
    ({"a": None}, {"a": None}, {"b": None}),
    ({"a": float("inf")}, {"a": 0}, {"a": False}, {"a": 0.0}, {"a": 0}),
    ({"usual": {"x": 1}}, {"usual": {"x": 1}}, {"usual": {}}),
    ({},),
)


@pytest.mark.parametrize("actions", ODD_ACTIONS)
def test_actions_told_shortly_say_exactly_what_was_recorded(actions: tuple[dict[str, object], ...]) -> None:
    group, h = a_pair()
    h = replace(h, members=(replace(h.members[0], decisions=actions), *h.members[1:]))
    plain, compact = (write_prompt(group, h, rubric="r", key="k", compact=c).user for c in (False, True))
    assert json.dumps(actions_in(compact), sort_keys=True) == json.dumps(actions_in(plain), sort_keys=True)
    assert json.dumps(list(actions), sort_keys=True) in [json.dumps(a, sort_keys=True) for a in actions_in(plain)]


def _pair(synthetic: object) -> Pair:
    return synthetic.group, synthetic.hindsight  # type: ignore[attr-defined]
