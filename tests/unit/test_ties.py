"""Connections that are cut because another server has taken over."""

from __future__ import annotations

import asyncio
import socket
from weakref import ref

from cacheaside.facts import ServerFacts
from cacheaside.ties import Ties, sever


class Line:
    """A connection of redis-py's, as far as it is looked at."""

    def __init__(self, port: int = 6379) -> None:
        self._sock, self.far = socket.socketpair()
        self._sock.settimeout(1.0)
        self.host, self.port = "localhost", port

    @property
    def cut(self) -> bool:
        self._sock.setblocking(False)
        try:
            return self._sock.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._sock.close()
        self.far.close()


def facts(line: Line, run_id: str = "a") -> ServerFacts:
    return ServerFacts(run_id=run_id, connection=ref(line))


def test_the_first_connection_to_another_server_cuts_those_to_the_one_before() -> None:
    ties, lines = Ties(), [Line() for _ in range(3)]
    ties.made(facts(lines[0]))
    ties.made(facts(lines[1]))
    assert [line.cut for line in lines] == [False, False, False]
    ties.made(facts(lines[2], "b"))
    assert [line.cut for line in lines] == [True, True, False]
    for line in lines:
        line.close()


def test_a_connection_that_was_made_again_is_not_cut_itself() -> None:
    ties, line = Ties(), Line()
    ties.made(facts(line))
    ties.made(facts(line, "b"))
    assert not line.cut
    line.close()


def test_a_connection_that_leads_elsewhere_is_known_by_its_address() -> None:
    ties, near, far = Ties(), Line(), Line(6380)
    ties.made(facts(near))
    ties.made(facts(far))
    assert ties.elsewhere(("localhost", 6379)) == [far]
    near.close()
    far.close()


def test_a_forked_child_cuts_nothing_of_its_parents() -> None:
    ties, line, own = Ties(), Line(), Line()
    ties.made(facts(line))
    ties.after_fork()
    ties.made(facts(own, "b"))
    assert not line.cut
    line.close()
    own.close()


def test_a_connection_that_is_closed_already_stays_so() -> None:
    line = Line()
    line.close()
    sever(line)
    assert line._sock.fileno() == -1


async def test_what_reads_on_a_loop_finds_its_connection_closed() -> None:
    line = Line()
    reader, line._writer = await asyncio.open_connection(sock=line._sock)  # type: ignore[attr-defined]
    reading = asyncio.ensure_future(reader.read(1))
    await asyncio.sleep(0)
    await asyncio.to_thread(sever, line)
    assert await asyncio.wait_for(reading, 1) == b""
    line._writer.close()  # type: ignore[attr-defined]
    line.far.close()
