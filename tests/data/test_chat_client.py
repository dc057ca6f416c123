"""The real openai client over real HTTP: whatever goes wrong, the answers are those of an untroubled run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mplus_cli.data.chat import (
    AnswerCache,
    Budget,
    ChatRequest,
    ChatSettings,
    DryRun,
    Price,
    Purse,
    ask_all,
    load_price,
    open_backend,
)
from mplus_cli.data.chat.asking import UnusableAnswerError
from mplus_cli.data.chat.cost import CostLimitError
from mplus_cli.errors import MPlusError, UsageError
from tests.data.chat_server import ChatServer

pytest.importorskip("openai", reason="openai is not installed: pip install 'mplus[data]'")

KEY = "sk-test-1234567890"
LIST = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"], "additionalProperties": False}
PRICE = Price(input=1.0, output=10.0)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for variable in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest("Repeat the number.", f"number {n}", 50, 10, LIST, "numbers") for n in range(count)]


def echo(body: dict) -> str:
    return json.dumps({"n": body["messages"][-1]["content"]})


def parse(index: int, text: str) -> str:
    try:
        return json.loads(text)["n"]
    except (ValueError, KeyError) as error:
        raise UnusableAnswerError("malformed") from error


def settings(server: ChatServer, **changes) -> ChatSettings:
    quick = {"first_backoff": 0.005, "longest_backoff": 0.02, "timeout": 0.5, "batch_poll": 0.01, "concurrency": 4}
    return ChatSettings(model="tale-teller", base_url=server.url, **(quick | changes))


def ask(server: ChatServer, cache: Path, count: int = 12, batch: bool = False, budget: Budget | None = None, **changes):
    backend = open_backend(settings(server, **changes), AnswerCache(cache), budget or Budget(None), batch)
    return ask_all(backend, requests(count), parse), backend


def everything_in(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize(
    "troubles",
    [
        ["429", "500", "503", "408", "502"],
        ["drop", "half", "garbage", "drop", "half"],
        ["slow", "slow"],
        ["empty", "malformed", "refused", "cut", "malformed"],
        ["429", "malformed", "drop", "refused", "500", "empty", "half", "garbage", "slow", "cut"],
    ],
    ids=["statuses", "connections", "timeouts", "answers", "everything"],
)
def test_trouble_changes_nothing(tmp_path, troubles):
    with ChatServer(say=echo) as server:
        calm, _ = ask(server, tmp_path / "calm")
    with ChatServer(troubles, say=echo) as server:
        rough, backend = ask(server, tmp_path / "rough")
        assert server.troubles == []
        assert len(server.bodies) == 12 + len(troubles)
    assert [asked.value for asked in rough] == [asked.value for asked in calm] == [f"number {n}" for n in range(12)]


def test_the_body_asks_for_structured_output_and_says_who_is_asked(tmp_path):
    with ChatServer(say=echo) as server:
        ask(server, tmp_path, count=1)
        body = server.bodies[0]
    assert body["model"] == "tale-teller" and body["temperature"] == 0.0
    assert body["response_format"]["json_schema"] == {"name": "numbers", "strict": True, "schema": LIST}


def test_a_rerun_asks_nothing_and_a_crash_loses_nothing(tmp_path):
    with ChatServer(["", "", "", "401"], say=echo) as server:
        with pytest.raises(UsageError):
            ask(server, tmp_path, concurrency=1)
        assert len(server.bodies) == 4
        first, _ = ask(server, tmp_path)
        assert len(server.bodies) == 4 + 9  # three answers were kept
        again, backend = ask(server, tmp_path)
        assert len(server.bodies) == 13
    assert [a.value for a in again] == [a.value for a in first]
    assert backend.budget.spent.requests == 0


def test_a_damaged_cache_file_is_asked_again(tmp_path):
    with ChatServer(say=echo) as server:
        ask(server, tmp_path, count=2)
        next(tmp_path.rglob("*.json")).write_text('{"answer": {')
        results, _ = ask(server, tmp_path, count=2)
        assert len(server.bodies) == 3
    assert [a.value for a in results] == ["number 0", "number 1"]


def test_answers_that_stay_unusable_are_set_aside_with_the_reason_and_more_attempts_ask_on(tmp_path):
    with ChatServer(say=lambda body: "" if body["messages"][-1]["content"] == "number 1" else echo(body)) as server:
        results, _ = ask(server, tmp_path, count=3)
        assert [a.fault for a in results] == [None, "empty", None] and results[1].attempts == 3
        assert len(server.bodies) == 5
        ask(server, tmp_path, count=3)
        assert len(server.bodies) == 5  # also bad answers are kept
        ask(server, tmp_path, count=3, attempts=4)
        assert len(server.bodies) == 6
        seeds = [body["seed"] for body in server.bodies if body["messages"][-1]["content"] == "number 1"]
        assert seeds == [0, 1, 2, 3]


def test_a_request_against_policy_is_set_aside_as_refused(tmp_path):
    with ChatServer(["policy"] * 3, say=echo) as server:
        results, _ = ask(server, tmp_path, count=1)
    assert results[0].fault == "refused"


def test_retry_after_is_honoured_by_all_requests(tmp_path):
    def slowly(body):  # the second request is still under way when the first is told to wait
        time.sleep(0.1)
        return echo(body)

    with ChatServer(["429"], say=slowly) as server:
        server.retry_after = "0.4"
        results, backend = ask(server, tmp_path, count=8, concurrency=2)
        after = [moment - server.times[0] for moment in server.times]
    assert all(a.value for a in results) and backend.retried == 1
    assert not [moment for moment in after if 0.1 < moment < 0.39]  # the other one under way had begun already
    assert len([moment for moment in after if moment >= 0.39]) >= 7


def test_a_pause_of_hours_stops_the_run(tmp_path):
    with ChatServer(["429"], say=echo) as server:
        server.retry_after = "7200"
        started = time.monotonic()
        with pytest.raises(MPlusError, match="7,200 s"):
            ask(server, tmp_path, count=1)
    assert time.monotonic() - started < 5


def test_concurrency_is_limited(tmp_path):
    def slowly(body):
        time.sleep(0.05)
        return echo(body)

    with ChatServer(say=slowly) as server:
        ask(server, tmp_path, count=12, concurrency=3)
        assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("status", "words"), [("401", "refuses the API key"), ("404", "does not know tale-teller"), ("422", "refuses the")]
)
def test_what_another_try_would_not_change_ends_at_once_without_the_key(tmp_path, status, words):
    with ChatServer([status] * 50, say=echo) as server:
        with pytest.raises(UsageError, match=words) as caught:
            ask(server, tmp_path)
        assert len(server.bodies) <= 4
    assert KEY not in f"{caught.value.message} {caught.value.hint}"
    assert "***" in caught.value.message


def test_a_server_that_keeps_failing_ends_the_run(tmp_path):
    with ChatServer(["500"] * 50, say=echo) as server, pytest.raises(MPlusError, match="kept failing, 3 times: 500"):
        ask(server, tmp_path, count=1, retries=2)


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    with ChatServer() as server:
        gone = settings(server, retries=1)
    with pytest.raises(MPlusError, match="connection failed"):
        ask_all(open_backend(gone, AnswerCache(tmp_path), Budget(None)), requests(1), parse)


def test_the_key_is_sent_and_never_stored(tmp_path):
    with ChatServer(["500"], say=echo) as server:
        ask(server, tmp_path, count=2)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in everything_in(tmp_path)


def test_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="no API key") as caught:
        open_backend(ChatSettings(), AnswerCache(tmp_path), Budget(None))
    assert "OPENAI_API_KEY" in caught.value.hint
    with ChatServer(say=echo) as server:
        assert ask(server, tmp_path, count=1)[0][0].value == "number 0"


def test_passwords_in_the_address_stay_out_of_what_is_stored():
    assert ChatSettings(base_url="http://me:secret@host:81/v1/?key=1").server == "http://host:81/v1"
    with pytest.raises(UsageError, match="not an address"):
        ChatSettings(base_url="localhost:8000").server  # noqa: B018


# --- money ---


def test_the_cost_limit_holds_and_a_larger_one_continues(tmp_path):
    with ChatServer(say=echo) as server:
        server.usage = (40, 20)  # $0.00024 an answer, of at most about 60 tokens in and 50 out
        budget = Budget(PRICE, limit=0.003)
        with pytest.raises(CostLimitError, match="max-cost"):
            ask(server, tmp_path, count=20, budget=budget)
        paid = len(server.bodies)
        assert budget.cost == pytest.approx(0.00024 * paid)
        assert 0.003 - 2 * 0.00056 < budget.cost <= 0.003
        results, _ = ask(server, tmp_path, count=20, budget=Budget(PRICE, limit=1.0))
        assert len(server.bodies) == 20 and all(a.value for a in results)


def test_prices():
    assert load_price("gpt-4o") == load_price("gpt-4o-2024-08-06") == Price(2.5, 10.0)
    assert load_price("gpt-4o", batch=True) == Price(1.25, 5.0)
    assert load_price("my-own-model") is None
    with pytest.raises(UsageError, match="needs a price"):
        Budget(load_price("my-own-model"), limit=1.0)


@pytest.mark.parametrize("text", ["[]", "{", '{"models": {"m": {"input": "a", "output": 1}}}', '{"models": {"m": 3}}'])
def test_a_table_of_prices_that_is_none(tmp_path, text):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(UsageError, match="not a table of prices"):
        load_price("m", tmp_path / "prices.json")


def test_two_models_share_one_limit(tmp_path):
    with ChatServer(say=echo) as server:
        server.usage = (40, 20)
        purse = Purse(0.003)
        one, other = Budget(PRICE, purse=purse), Budget(Price(2.0, 20.0), purse=purse)
        ask(server, tmp_path / "one", count=4, budget=one)
        with pytest.raises(CostLimitError, match="max-cost"):
            ask(server, tmp_path / "other", count=20, budget=other)
        assert one.cost + other.cost == pytest.approx(purse.spent) and purse.spent <= 0.003
        assert other.cost == pytest.approx(2 * 0.00024 * other.spent.requests) and other.spent.requests > 0


def test_a_dry_run_asks_nothing_and_counts_each_request_once(tmp_path):
    with ChatServer(["malformed"], say=echo) as server:
        ask(server, tmp_path, count=1)
        dry = DryRun(settings(server), AnswerCache(tmp_path), Budget(PRICE))
        found = ask_all(dry, requests(3), parse)
        assert (found[0].value, found[0].attempts) == ("number 0", 2)
        assert found[1].answer is found[2].answer is None and len(server.bodies) == 2
        plan = dry.plan(3, estimated=False)
    assert (plan.requests, plan.cached, plan.usage.requests, plan.usage.output_tokens) == (3, 1, 2, 20)
    assert plan.cost == pytest.approx((plan.usage.input_tokens + 10 * 20) / 1e6)


# --- the Batch API ---


def test_a_batch_gives_what_live_requests_give(tmp_path):
    with ChatServer(say=echo) as server:
        live, _ = ask(server, tmp_path / "live")
        batched, backend = ask(server, tmp_path / "batch", batch=True)
        assert len(server.batches) == 1 and backend.budget.spent.requests == 12
    assert [a.value for a in batched] == [a.value for a in live]
    assert not list((tmp_path / "batch" / "batches").rglob("*.json*"))


def test_lost_and_broken_lines_of_a_batch_go_into_another(tmp_path):
    with ChatServer(say=echo) as server:
        server.batch_troubles = ["lost", "garbage", "malformed"]
        results, _ = ask(server, tmp_path, batch=True)
        assert [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches.values()] == [
            12,
            2,
            1,
        ]
    assert [a.value for a in results] == [f"number {n}" for n in range(12)]


@pytest.mark.parametrize("forget_id", [False, True], ids=["while waiting", "before its id was written down"])
def test_a_killed_process_finds_its_batch_again(tmp_path, forget_id):
    with ChatServer(say=echo) as server:
        server.polls_needed = 10**9
        backend = open_backend(settings(server), AnswerCache(tmp_path), Budget(None), batch=True)

        def killed(count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask_all(backend, requests(5), parse, lambda done, total: killed(done) if server.batches else None)
        if forget_id:
            record = next((tmp_path / "batches").rglob("*.json"))
            record.write_text('{"id": null}')
        server.polls_needed = 1
        results, _ = ask(server, tmp_path, count=5, batch=True)
        assert len(server.batches) == 1 and len(server.bodies) == 5
    assert [a.value for a in results] == [f"number {n}" for n in range(5)]


def test_a_batch_over_the_cost_limit_is_not_sent(tmp_path):
    with ChatServer(say=echo) as server:
        with pytest.raises(CostLimitError):
            ask(server, tmp_path, count=20, batch=True, budget=Budget(PRICE, limit=0.005))
        assert not server.batches and not server.files
