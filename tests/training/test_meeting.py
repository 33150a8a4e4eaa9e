"""How workers meet, and how they part: sockets and threads, no TensorFlow."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest

from training.cluster.connection import Connection
from training.cluster.control import Control
from training.cluster.launcher import free_hosts
from training.cluster.meeting import meet
from training.cluster.place import Place, WorkersError, read_place

FACTS = {"batch_size": 8, "texts": "0" * 64}


def meet_all(places, facts=None):
    """Let all meet at once; return connections or error of each."""
    results = [None] * len(places)

    def one(number):
        try:
            results[number] = meet(places[number], (facts or {}).get(number, FACTS))
        except WorkersError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results


def three(wait_seconds=20.0):
    hosts = free_hosts(3)
    return [Place(hosts, index, wait_seconds) for index in range(3)]


@contextlib.contextmanager
def controls(places):
    """Give the control of each worker and the lines that it was told, once all have met."""
    connections = meet_all(places)
    lost = [[] for _ in places]
    try:
        yield (
            [Control(place, connections[i], lost[i].append) for i, place in enumerate(places)],
            lost,
            connections,
        )
    finally:
        for each in connections:
            for connection in each.values():
                connection.close()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_meet_whoever_comes_first():
    connections = meet_all(three())
    assert [sorted(each) for each in connections] == [[1, 2], [0], [0]]


def test_the_chief_leaves_its_port_to_tensorflow():
    places = three()
    with controls(places), socket.create_server(("127.0.0.1", int(places[0].hosts[0].rpartition(":")[2]))):
        pass


def test_a_stranger_that_connects_is_sent_away():
    places = three()
    results = []
    chief = threading.Thread(target=lambda: results.append(meet(places[0], FACTS)))
    chief.start()
    address = ("127.0.0.1", int(places[0].hosts[0].rpartition(":")[2]))
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "hello", "bytes": 1e99, "values": {}}\n', b"[]\n", b"7\n"):
        endpoint = None
        while endpoint is None:
            with contextlib.suppress(ConnectionRefusedError):
                endpoint = socket.create_connection(address)
        endpoint.sendall(words)
        endpoint.close()
    meet_all(places[1:])
    chief.join(timeout=20)
    assert sorted(results[0]) == [1, 2]


def test_a_difference_is_named_to_the_chief_and_to_the_worker():
    hosts = free_hosts(2)
    places = [Place(hosts, index, 20.0) for index in range(2)]
    chief, other = meet_all(places, {1: {**FACTS, "batch_size": 4}})
    assert chief == other
    assert "worker 1 (" in chief
    assert "batch_size is 4, the chief's is 8" in chief


def test_other_texts_are_named_without_their_hash():
    hosts = free_hosts(2)
    chief, _ = meet_all([Place(hosts, i, 20.0) for i in range(2)], {1: {**FACTS, "texts": "1" * 64}})
    assert "texts" in chief
    assert "1" * 64 not in chief


def test_a_worker_that_never_comes_is_named():
    places = three(wait_seconds=1.0)
    chief, other = meet_all(places[:2])
    assert chief.startswith(f"worker 2 ({places[0].hosts[2]}) did not come within 1 seconds")
    assert chief == other


def test_a_chief_that_never_comes_is_named():
    places = three(wait_seconds=1.0)
    with pytest.raises(WorkersError, match=r"the chief .* did not answer within 1 seconds"):
        meet(places[1], FACTS)


def test_two_workers_with_one_index_are_an_error():
    places = three()
    hosts = places[0].hosts
    results = []
    chief = threading.Thread(target=lambda: results.extend(meet_all([places[0]])))
    chief.start()
    plugs = []
    for _ in range(2):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                plugs.append(Connection(socket.create_connection(("127.0.0.1", int(hosts[0].rpartition(":")[2])))))
                break
        plugs[-1].send("hello", index=1, facts=FACTS)
    chief.join(timeout=20)
    assert "two workers have come with index 1" in results[0]
    assert plugs[1].receive().kind == "failed"


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_in_use_is_named(index):
    places = three(wait_seconds=1.0)
    port = int(places[index].hosts[index].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(WorkersError, match=f":{port}: the port is in use"):
        meet(places[index], FACTS)


def test_a_host_that_is_another_machine_is_named():
    place = Place(("192.0.2.1:2222", "192.0.2.2:2222"), 0, 1.0)
    with pytest.raises(WorkersError, match=r"192\.0\.2\.1:2222: is no address of this machine: is index 0 right"):
        meet(place, FACTS)


def test_a_name_that_does_not_resolve_is_named():
    place = Place(("127.0.0.1:2222", "no-such-host.invalid:2222"), 0, 1.0)
    with pytest.raises(WorkersError, match=r"no-such-host\.invalid:2222: there is no host of this name"):
        meet(place, FACTS)


def test_a_connection_that_breaks_ends_all_with_the_same_line():
    places = three()
    with controls(places) as (all_controls, lost, connections):
        connections[1][0].close()
        wait_until(lambda: lost[0] and lost[2])
        assert lost[0] == lost[2]
        assert lost[0][0].startswith(f"worker 1 ({places[0].hosts[1]}) was lost")
        with pytest.raises(WorkersError, match="worker 1"):
            all_controls[2].receive("done")


def test_a_worker_that_fails_tells_the_others_why():
    with controls(three()) as (all_controls, lost, _):
        all_controls[2].fail("worker 2 has ended: the disk is full")
        wait_until(lambda: lost[0] and lost[1])
        assert lost[0] == lost[1] == ["worker 2 has ended: the disk is full"]


def test_all_finish_together_and_nobody_is_lost():
    with controls(three()) as (all_controls, lost, _):
        threads = [threading.Thread(target=control.finish) for control in all_controls[1:]]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert all(thread.is_alive() for thread in threads)  # they wait for the chief
        all_controls[0].finish()
        for thread in threads:
            thread.join(timeout=10)
            assert not thread.is_alive()
        assert lost == [[], [], []]


def test_a_worker_that_is_lost_while_the_chief_writes_the_result_disturbs_nobody():
    with controls(three()) as (all_controls, lost, connections):
        all_controls[1].send("trained")
        time.sleep(0.2)
        connections[1][0].close()
        other = threading.Thread(target=all_controls[2].finish)
        other.start()
        time.sleep(0.2)
        all_controls[0].finish()
        other.join(timeout=10)
        assert lost[0] == lost[2] == []


def test_what_the_chief_sends_arrives_whole_and_in_order():
    content = bytes(range(256)) * 40_000
    arrived = [[], []]

    def take(number, control):
        for _ in range(5):
            message = control.receive("values")
            arrived[number].append((message.values["name"], bytes(message.content) == content))

    with controls(three()) as (all_controls, _, _):
        takers = [threading.Thread(target=take, args=pair) for pair in enumerate(all_controls[1:])]
        for taker in takers:
            taker.start()
        for number in range(5):
            all_controls[0].send("values", content, name=str(number))
        for taker in takers:
            taker.join(timeout=30)
    assert arrived == [[(str(number), True) for number in range(5)]] * 2


BESIDE_A_CHIEF = {"chief": ["a:1"], "worker": ["b:2"]}
TF_CONFIGS = {
    "nothing": (None, None, None),
    "one worker": ({"worker": ["a:1"]}, {"type": "worker", "index": 0}, None),
    "two workers": ({"worker": ["a:1", "b:2"]}, {"type": "worker", "index": 1}, 1),
    "a chief": (BESIDE_A_CHIEF, {"type": "chief", "index": 0}, 0),
    "a worker beside a chief": (BESIDE_A_CHIEF, {"type": "worker", "index": 0}, 1),
}
"""Name -> cluster, task, and which of a:1 and b:2 it is."""


@pytest.mark.parametrize("name", TF_CONFIGS)
def test_tf_config_says_where_a_process_stands(name):
    cluster, task, expected = TF_CONFIGS[name]
    place = read_place({} if cluster is None else {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})
    assert (None if place is None else (place.hosts, place.index)) == (
        None if expected is None else (("a:1", "b:2"), expected)
    )


BAD_TF_CONFIGS = {
    "hosts that are numbers": ('{"cluster": {"worker": [1, 2]}}', "expected JSON with cluster and task"),
    "a host that is a list": ('{"cluster": {"worker": [["a:1"], "b:2"]}}', "expected JSON with cluster and task"),
    "a type that is a list": ('{"cluster": {"worker": ["a:1"]}, "task": {"type": []}}', "expected JSON with cluster"),
    "an index without end": ('{"cluster": {"worker": ["a:1"]}, "task": {"index": 1e999}}', "expected JSON with"),
    "a huge index": ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"index": 1' + "0" * 99 + "}}", "an integer of"),
    "a huge port": ('{"cluster": {"worker": ["a:' + "1" * 5000 + '", "b:2"]}}', "a port from 1 to 65535"),
    "deep nesting": ("[" * 100_000, "expected JSON with cluster and task"),
    "a wait without end": ('{"cluster": {"worker": ["a:1", "b:2"]}, "wait_seconds": 1e999}', "expected seconds above"),
    "no JSON": ("{", "expected JSON"),
    "a list": ("[]", "expected JSON"),
    "a parameter server": ('{"cluster": {"ps": ["a:1"], "worker": ["b:2"]}}', "no tasks of type 'ps'"),
    "an evaluator": ('{"cluster": {"worker": ["b:2"]}, "task": {"type": "evaluator"}}', "no tasks of type 'evaluator'"),
    "too large an index": ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"index": 2}}', "expected 0 to 1"),
    "no port": ('{"cluster": {"worker": ["a", "b:2"]}}', "expected HOST:PORT"),
    "a port that is none": ('{"cluster": {"worker": ["a:99999", "b:2"]}}', "expected HOST:PORT"),
    "a host twice": ('{"cluster": {"worker": ["a:1", "a:1"]}}', "a:1 is there twice"),
}


@pytest.mark.parametrize("name", BAD_TF_CONFIGS)
def test_a_tf_config_that_cannot_be_used_is_one_line(name):
    text, message = BAD_TF_CONFIGS[name]
    with pytest.raises(WorkersError, match=message):
        read_place({"TF_CONFIG": text})
