"""Conversations as prompts."""

import hashlib
import json
from dataclasses import replace

import pytest
from chat_case import student, teacher

from driftgate.data.benchmarks import content_sha256
from driftgate.data.problems import Problem, parse_problems
from driftgate.data.prompts import Prompt
from driftgate.errors import InputError
from driftgate.train.folder import fingerprint_of_problems

CONVERSATION = Problem(
    "a", "3+4", solution="7", messages=(("system", "5"), ("user", "1+2"), ("assistant", "3"), ("user", "3+4"))
)


@pytest.mark.parametrize(
    ("ours", "theirs", "seen"),
    [
        ({}, {}, ["*5*1+233+4=", "*5*1+233+4="]),
        ({"system": "8"}, {}, ["*5*1+233+4=", "*5*1+233+4="]),
        ({}, {"system": "9"}, ["*5*1+233+4=", "*9*1+233+4="]),
        ({}, {"system": ""}, ["*5*1+233+4=", "1+233+4="]),
        ({"template": "-{problem}"}, {"context": "{problem}={solution}"}, ["*5*1+23-3+4=", "*5*1+233+4=7="]),
        ({}, {"template_args": {"enable_thinking": False}}, ["*5*1+233+4=", "*5*1+233+4=0"]),
    ],
)
def test_a_conversation_is_a_prompt_that_each_role_sees_in_its_own_way(ours, theirs, seen):
    shown = student(**ours)
    assert [view.text(CONVERSATION) for view in (shown, teacher(shown, **theirs))] == seen


def test_a_conversation_without_a_system_message_gets_that_of_the_settings():
    turns = replace(CONVERSATION, messages=(("user", "1"), ("assistant", "2"), ("user", "3+4")))
    assert student(system="8").text(turns) == "*8*123+4="


def test_a_conversation_needs_chat_and_ends_with_the_user():
    with pytest.raises(InputError, match=r"problem 'a' is a conversation; set prompts.chat=true"):
        student(chat=False).encode(CONVERSATION)
    with pytest.raises(InputError, match=r"ends with a message of 'assistant'"):
        student().encode(replace(CONVERSATION, messages=(("user", "1"), ("assistant", "2"))))


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_conversations_are_read_and_the_assistants_last_turn_is_the_solution():
    asked = [("system", "5"), ("user", "1+2")]
    rows = [("a:1", {"messages": turns(*asked, ("assistant", "3"))}), ("a:2", {"messages": turns(*asked)})]
    first, second = parse_problems(rows)
    assert (first.problem, first.solution, first.messages) == ("1+2", "3", tuple(asked))
    assert (second.problem, second.solution, second.messages) == ("1+2", None, tuple(asked))
    kept = parse_problems([("a:1", rows[0][1] | {"solution": "4"})])[0]
    assert (kept.solution, kept.messages) == ("4", tuple(asked))
    both = parse_problems([("a:1", rows[0][1] | {"problem": "9"})])[0]
    assert (both.problem, both.messages) == ("9", None)
    chats = [("a:1", {"chat": turns(*asked)})]
    assert parse_problems(chats, {"problem": "chat"})[0].messages == tuple(asked)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hello", "a:1: 'messages' must be a list of objects"),
        ([{"role": "user", "content": "1", "tool_calls": [{"name": "add"}]}], "tools, images and other parts are not"),
        (turns(("tool", "3")), "with the roles system, user, assistant"),
        ([{"role": "user", "content": None}], "and a text each"),
        ([], "a:1: 'messages' must end with the user's message"),
        (turns(("user", "1"), ("assistant", "2"), ("assistant", "3")), "must end with the user's message"),
        (turns(("user", " ")), "'messages' must be a text that is not empty"),
    ],
)
def test_conversations_that_cannot_be_gone_on_with_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        parse_problems([("a:1", {"messages": given})])


def test_a_benchmark_of_conversations_is_known_by_all_turns():
    asked = Problem("a", "3+4", "7", messages=(("user", "1+2"), ("assistant", "3"), ("user", "3+4")))
    other = replace(asked, messages=(("user", "1+1"), *asked.messages[1:]))
    assert len({content_sha256([p]) for p in (asked, other, replace(asked, messages=None))}) == 3


def test_a_run_without_conversations_has_the_fingerprint_that_it_always_had():
    known = {"answer": "7", "id": "a", "problem": "3+4", "solution": None}
    plain = Problem("a", "3+4", "7")
    expected = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert fingerprint_of_problems([Prompt(plain, (), ())]) == expected
    assert fingerprint_of_problems([Prompt(replace(plain, messages=(("user", "3+4"),)), (), ())]) != expected
