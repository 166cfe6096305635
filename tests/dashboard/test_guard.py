"""Who is let in, what may be named, what may be asked for, and whose jobs are whose."""

import asyncio
import threading
import time

import pytest

import ctplab as ctp
from ctplab.app import limits
from ctplab.app.bench import Bench
from ctplab.app.guard import LARGEST, LOCAL, TOKEN, VISITOR, WAITING, Guard, cookies
from ctplab.app.jobs import EACH, Jobs
from ctplab.app.places import Places
from ctplab.app.toast import in_page
from ctplab.app.turns import Turns


def ask(guard, path="/", query="", **headers):
    """(status, headers as pairs) of one request."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": query.encode(), "client": ("10.0.0.9", 5),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]


async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def guarded(token=None, waiting=lambda visitor: 0):
    return Guard(page, hosts=LOCAL if token is None else None, token=token, waiting=waiting)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({}, 403),
        ({"host": "localhost:7860", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:7860", "origin": "http://localhost:8000"}, 403),
        ({"host": "localhost:7860", "origin": "null"}, 403),
        ({"host": "localhost:7860", "content_length": str(LARGEST + 1)}, 413),
        ({"host": "localhost:7860", "content_length": "-1"}, 413),
    ],
)
def test_strangers_are_refused(headers, status):
    assert ask(guarded(), **headers)[0] == status


def test_a_token_is_asked_for_and_kept_in_a_cookie():
    guard = guarded(token="secret")
    assert ask(guard, host="box.example")[0] == 401
    assert ask(guard, query="token=wrong", host="box.example")[0] == 401
    status, headers = ask(guard, query="q=a+b&token=secret", host="box.example")
    found = dict(headers)
    assert status == 303 and found["location"] == "/?q=a+b" and f"{TOKEN}=secret" in found["set-cookie"]
    assert "HttpOnly" in found["set-cookie"]
    assert ask(guard, host="box.example", cookie=f"{TOKEN}=secret")[0] == 200
    assert ask(guard, host="box.example", authorization="Bearer secret")[0] == 200
    assert ask(guard, host="box.example", authorization="Bearer secre")[0] == 401


def test_a_visitor_gets_a_name_once():
    _, headers = ask(guarded(), host="localhost")
    assert dict(headers)["set-cookie"].startswith(f"{VISITOR}=")
    assert "set-cookie" not in dict(ask(guarded(), host="localhost", cookie=f"{VISITOR}=me")[1])
    assert cookies("damaged;;;=") == {} and cookies(f"{VISITOR}=me; other=1")[VISITOR] == "me"


def test_one_visitor_does_not_fill_the_queue():
    seen = []

    def waiting(visitor):
        seen.append(visitor)
        return WAITING if visitor == "greedy" else 0

    guard = guarded(waiting=waiting)
    join = "/gradio_api/queue/join"
    assert ask(guard, join, host="localhost", cookie=f"{VISITOR}=greedy")[0] == 429
    assert ask(guard, join, host="localhost", cookie=f"{VISITOR}=other")[0] == 200
    assert ask(guard, "/", host="localhost", cookie=f"{VISITOR}=greedy")[0] == 200
    assert ask(guard, join, host="localhost")[0] == 200 and seen[-1] == "host 10.0.0.9"  # a program has no cookie


@pytest.mark.parametrize("value", [0, 11, "x", None, float("nan"), float("inf"), 10**400, True, [1], 1.5])
def test_numbers_have_bounds(value):
    with pytest.raises(ctp.InputError, match=r"^bins: give a") as caught:
        limits.whole(value, "bins", 1, 10)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 120


def test_names_are_names():
    assert limits.name(" my prompt-1.2+b ", "it") == "my prompt-1.2+b"
    for wrong in ("..", ".", "", "a/b", "a\\b", "a\nb", "-a", " ", "x" * 81, None, 3):
        with pytest.raises(ctp.InputError, match="a name of"):
            limits.name(wrong, "it")


def test_only_the_given_folders_may_be_named(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "text.txt").write_text("words")
    (inside / "link.txt").symlink_to(outside / "text.txt")
    places = Places([inside])
    places.check_corpus(f"file:{inside}/text.txt")
    places.check_corpus("atlas-web")
    places.check_model("some/model")  # a hub's
    said = []
    for path in (
        outside / "text.txt",
        outside / "nothing.txt",
        inside / "link.txt",
        inside / ".." / "out" / "text.txt",
    ):
        with pytest.raises(ctp.InputError) as caught:
            places.check_corpus(f"file:{inside}/text.txt,{path}")
        said.append(str(caught.value).replace(str(path), "PATH"))
    assert len(set(said)) == 1  # nothing tells what exists
    for wrong in (str(outside), "/etc/passwd", "../x", "~/x"):
        with pytest.raises(ctp.InputError, match="can allow it"):
            places.check_model(wrong)
    Places().check("/etc")  # a script is its own owner


def test_a_bench_asks_its_places(tmp_path):
    bench = Bench(tmp_path / "runs", places=Places([tmp_path]))
    for load in (bench.load_model, bench.load_prompt):
        with pytest.raises(ctp.InputError, match="can allow it"):
            load("/etc")
        with pytest.raises(ctp.InputError):
            load("x" * 2000)


def until(condition, patience=20.0):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_jobs_belong_to_who_started_them():
    jobs, go = Jobs(Turns()), threading.Event()

    def work(job):
        for _ in job.counted(range(1000)):
            go.wait(0.01)

    mine, second, other = (jobs.start("train", name, work, owner) for name, owner in zip("abc", "mmo", strict=True))
    until(lambda: mine.state == "running" and other.state == "running")
    assert second.state == "queued"  # one of each visitor's runs
    assert jobs.latest("train", "o") is other and jobs.mine("train", "m") is mine
    with pytest.raises(ctp.InputError, match="another visitor"):
        jobs.mine("train", "stranger")
    jobs.start("train", "d", work, "m")
    with pytest.raises(ctp.InputError, match=f"{EACH} of your jobs"):
        jobs.start("train", "e", work, "m")
    assert "another visitor" in mine.html("o") and "another visitor" not in mine.html("m")
    jobs.cancel_all()
    until(lambda: not any(job.active for job in jobs._all))
    assert mine.state == second.state == other.state == "cancelled"
    assert jobs.refused("train", "f", "too much", "m").state == "failed"


def test_errors_name_controls_that_exist():
    said = "128 prompt tokens + 9 text tokens; use a sequence length of at most 0"
    assert in_page(said).endswith("choose a shorter prompt or a model with a longer context")
    assert in_page("give a smaller sequence length") == "give a smaller 'Tokens a window'"
