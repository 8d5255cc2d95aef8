"""More requests than a gateway has room for, and very many of them: clean refusals, nobody hangs, memory stays."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from clients.local_gateway import GatewayProcess
from clients.local_swarm import LocalSwarm
from tests.clients.gateway.bytes_tokenizer import VOCAB, save_tokenizer
from tests.models import tiny_model

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

QUEUE, RUNNING = 64, 16
AT_ONCE = 200
REQUESTS = 5000
TOGETHER = 32  # of these
ANSWER_SECONDS = 120.0
ALLOWED = 16 << 20  # bytes: what the allocator of a process may keep in pieces


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A process before two real peers of a tiny model."""
    folder = tmp_path_factory.mktemp("soak")
    model, cache = tiny_model("llama", folder / "tiny", vocab_size=VOCAB), folder / "cache"
    save_tokenizer(model)
    with LocalSwarm(str(model), cache) as swarm:
        swarm.start("one", "--blocks", "0:2", "--host", "127.0.0.1", "--port", "0")
        swarm.start("two", "--blocks", "2:4", "--host", "127.0.0.1", "--port", "0")
        swarm.wait_ready()
        way_in = ("--initial-peers", ",".join(swarm.addresses), "--cache-dir", str(cache), "--port", "0")
        room = ("--max-running", str(RUNNING), "--queue", str(QUEUE))
        with GatewayProcess([str(model), *way_in, *room], environment={"OMP_NUM_THREADS": "1"}) as process:
            process.wait_ready()
            yield process


async def ask(port: int, number: int, new: int) -> tuple[int, dict[str, str]]:
    """The status and the headers of an answer that was read to its end; every third is streamed."""
    messages = [{"role": "user", "content": f"Question {number}"}]
    body = json.dumps({"model": "tiny", "messages": messages, "max_tokens": new, "stream": number % 3 == 0}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        whole = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    first, *lines = whole.partition("\r\n\r\n")[0].split("\r\n")
    return int(first.split()[1]), {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def test_two_hundred_requests_at_once_are_answered_or_told_to_come_back(
    gateway: GatewayProcess, figures: list[str]
) -> None:
    port = gateway.ready.port

    async def main() -> list[tuple[int, dict[str, str]]]:
        return await asyncio.gather(*(ask(port, number, 32) for number in range(AT_ONCE)))

    answers = asyncio.run(main())
    statuses = Counter(status for status, _ in answers)
    assert statuses.keys() <= {200, 429}
    assert statuses[200] >= RUNNING + QUEUE
    assert statuses[429] > 0
    assert all(int(headers["retry-after"]) > 0 for status, headers in answers if status == 429)
    assert gateway.metric("swarm:num_requests_running") == gateway.metric("swarm:num_requests_waiting") == 0
    figures.append(f"{AT_ONCE} requests at once, {RUNNING} running and a queue of {QUEUE}: {dict(statuses)}")


def test_memory_is_flat_over_thousands_of_requests(gateway: GatewayProcess, figures: list[str]) -> None:
    """In the first half allocators and caches grow to what they need."""
    port, process = gateway.ready.port, psutil.Process(gateway.pid)
    sizes: list[int] = []

    async def main() -> None:
        numbers = iter(range(REQUESTS))
        statuses: Counter[int] = Counter()

        async def user() -> None:
            for number in numbers:
                statuses[(await ask(port, number, 4))[0]] += 1
                if number % (REQUESTS // 20) == 0:
                    sizes.append(process.memory_info().rss)

        async with asyncio.TaskGroup() as group:
            for _ in range(TOGETHER):
                group.create_task(user())
        assert statuses == {200: REQUESTS}

    asyncio.run(main())
    settled = sizes[len(sizes) // 2]
    figures.append(
        f"gateway over {REQUESTS} requests, {TOGETHER} at a time: {sizes[0] >> 20} MiB at first, {settled >> 20} MiB "
        f"after half of them, {sizes[-1] >> 20} MiB after all"
    )
    assert max(sizes[len(sizes) // 2 :]) - settled < ALLOWED
