"""Python `websockets` against a real gateway: init first, a snapshot per slot, pings, 4408.

A plain asyncio script without a test framework: all cases run side by side on one gateway with the embedded
backplane and take as long as the longest (about 135 s). Exit code 0 and a last line `N passed, 0 failed`, or 1.

GATEWAY_BIN names the binary (default: the debug build of this repository).
"""

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import sys
import time
import traceback
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

TICK_S = 5
PING_S = 30
PONG_TIMEOUT_S = 10
# What the contract allows on top: the sweeper's second and the first ping's own.
SWEEP_S = 2
# Two processes on a busy machine do not see a moment at the same time; this is about them, not about the gateway.
SCHEDULING_S = 0.75
INIT_WITHIN_S = 0.1
START_TIMEOUT_S = 30
TOKEN = "websockets-test-token"
BINARY = os.environ.get("GATEWAY_BIN") or Path(__file__).resolve().parents[3] / "target/debug/gateway"
INIT = re.compile(r'\{"type":"init","data":\{"active_visitors":\d+,"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"\}\}')


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Gateway:
    """One real gateway on ports of its own."""

    def __init__(self):
        self.port, self.internal_port = free_port(), free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws/analytics"

    async def __aenter__(self):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "REDIS_", "OTEL_"))}
        env |= {
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "GATEWAY_INTERNAL_LISTEN": f"127.0.0.1:{self.internal_port}",
            "GATEWAY_INGEST_TOKEN": TOKEN,
        }
        # Its log goes to our standard error: shown by whoever runs this, and never a full pipe that stops it.
        self.process = await asyncio.create_subprocess_exec(BINARY, env=env, stdout=sys.stderr, stderr=sys.stderr)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(self._ready):
            if self.process.returncode is not None:
                raise RuntimeError(f"the gateway ended with {self.process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the gateway was not ready within {START_TIMEOUT_S} s")
            await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def _ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.internal_port}/readyz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def post(self, *events):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/events",
            data=json.dumps(events).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 202, answer.status
            assert json.load(answer)["accepted"] == len(events)


class Client:
    """A socket that answers pings, or does not, and dates what it gets in seconds since open."""

    def __init__(self, gateway, answer_pings):
        self.gateway, self.answer_pings = gateway, answer_pings

    async def __aenter__(self):
        # Neither library-level pings nor their timeout: only what the contract says may keep or end this socket.
        self.socket = await connect(self.gateway.url, ping_interval=None)
        self.opened = time.monotonic()
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def next(self, timeout=2 * TICK_S):
        """The next message as (seconds since open, text, parsed)."""
        text = await asyncio.wait_for(self.socket.recv(), timeout)
        at = time.monotonic() - self.opened
        assert isinstance(text, str), "a binary message"
        message = json.loads(text)
        if message["type"] == "ping" and self.answer_pings:
            await self.socket.send(json.dumps({"type": "pong", "timestamp": message["timestamp"]}))
        return at, text, message


def assert_consecutive(messages):
    """Inv. SLOT: each slot once, none left out."""
    slots = [int(datetime.fromisoformat(message["data"]["timestamp"]).timestamp()) // TICK_S for message in messages]
    assert slots == list(range(slots[0], slots[0] + len(slots))), slots


async def init_comes_first_and_within_100_ms(gateway):
    delays = []
    for _ in range(5):
        async with Client(gateway, answer_pings=False) as client:
            at, text, _message = await client.next()
            assert INIT.fullmatch(text), text
            delays.append(at)
    # The median decides: one hiccup of a busy machine is not the gateway's. Ten times that is a fault whatever it does.
    assert statistics.median(delays) <= INIT_WITHIN_S, delays
    assert max(delays) <= 10 * INIT_WITHIN_S, delays


async def one_that_answers_is_there_after_two_minutes(gateway):
    beyond = 4 * PING_S + PONG_TIMEOUT_S
    pings, updates = [], []
    async with Client(gateway, answer_pings=True) as client:
        at = 0.0
        while at < beyond:
            at, _text, message = await client.next()
            if message["type"] == "ping":
                pings.append(at)
            if message["type"] == "realtime_update":
                updates.append((at, message))
    assert len(pings) == 4, pings
    assert len(updates) >= 25, len(updates)
    assert_consecutive([message for _, message in updates])
    gaps = [later - earlier for (earlier, _), (later, _) in zip(updates, updates[1:])]
    assert abs(statistics.median(gaps) - TICK_S) < 0.1, gaps
    assert TICK_S / 2 < min(gaps) and max(gaps) < 1.5 * TICK_S, gaps


async def one_that_never_answers_is_closed_with_4408(gateway):
    pings = 0
    async with Client(gateway, answer_pings=False) as client:
        try:
            while True:
                _at, _text, message = await client.next()
                pings += message["type"] == "ping"
        except ConnectionClosed as closed:
            at = time.monotonic() - client.opened
            assert closed.rcvd is not None and closed.rcvd.code == 4408, closed
    least = PING_S + PONG_TIMEOUT_S
    assert least - SCHEDULING_S <= at <= least + SWEEP_S + SCHEDULING_S, f"closed after {at:.2f} s"
    assert pings == 1, pings


async def events_arrive_without_what_a_viewer_may_not_see(gateway):
    """Inv. ANON: the query, the visitor and whatever else an event carried stay behind."""
    async with Client(gateway, answer_pings=True) as client:
        _at, _text, message = await client.next()
        assert message["type"] == "init", message
        event = {"event_type": "page_view", "page_url": "/cv?token=secret", "visitor_id": "secret-id", "extra": "secret"}
        await asyncio.to_thread(gateway.post, event)
        while message["type"] != "new_event":
            _at, text, message = await client.next()
        assert list(message["data"]) == ["event_type", "page_url", "timestamp"], message
        assert message["data"]["page_url"] == "/cv" and "secret" not in text, text


CASES = [
    init_comes_first_and_within_100_ms,
    one_that_answers_is_there_after_two_minutes,
    one_that_never_answers_is_closed_with_4408,
    events_arrive_without_what_a_viewer_may_not_see,
]


async def main():
    async with Gateway() as gateway:
        outcomes = await asyncio.gather(*(case(gateway) for case in CASES), return_exceptions=True)
    failed = 0
    for case, outcome in zip(CASES, outcomes):
        print("ok    " if outcome is None else "FAILED", case.__name__.replace("_", " "))
        if outcome is not None:
            failed += 1
            traceback.print_exception(outcome, file=sys.stdout)
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
