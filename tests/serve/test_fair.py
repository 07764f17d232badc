"""Clients take turns, and nobody waits for another's long line."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from mmada_lite.serve.fair import FairQueue


def filled(lines: Sequence[tuple[str, int]]) -> FairQueue[tuple[str, int]]:
    queue = FairQueue[tuple[str, int]]()
    for client, count in lines:
        for number in range(count):
            queue.push((client, number), client)
    return queue


def test_one_request_does_not_wait_for_fifty_of_another_client() -> None:
    """Whenever it comes: while one of the fifty runs, it is the next."""
    for served in range(1, 50):
        queue = filled([("many", 50)])
        for _ in range(served):
            queue.pop()
        queue.push(("one", 0), "one")
        assert queue.pop() == ("one", 0)
        assert queue.pop() == ("many", served)


def test_a_client_who_asks_again_and_again_does_not_keep_others_waiting() -> None:
    queue = filled([("many", 10)])
    order = [queue.pop()[0]]
    for number in range(9):
        queue.push(("eager", number), "eager")
        order += [queue.pop()[0], queue.pop()[0]]
    assert order.count("many") == 10
    assert all(order[at : at + 2] != ["eager", "eager"] for at in range(len(order)))


def test_new_clients_without_end_do_not_starve_one() -> None:
    queue = filled([("many", 3)])
    queue.pop()
    served = []
    for number in range(8):
        queue.push((f"new {number}", 0), f"new {number}")
        served.append(queue.pop()[0])
    assert served.count("many") == 2


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 6)), min_size=1, max_size=6))
def test_of_one_client_the_first_is_first_and_lines_are_served_in_turn(lines: list[tuple[str, int]]) -> None:
    queue = filled(lines)
    total = sum(count for _, count in lines)
    assert len(queue) == total == len(list(queue))
    waiting = {client: sum(count for name, count in lines if name == client) for client, _ in lines}
    numbers = {client: [n for name, count in lines if name == client for n in range(count)] for client in waiting}
    while queue:
        round_of = [client for client, left in waiting.items() if left]
        served = [queue.pop() for _ in round_of]
        assert sorted(client for client, _ in served) == sorted(round_of)
        for client, number in served:
            assert number == numbers[client].pop(0)
            waiting[client] -= 1


def test_what_was_begun_is_before_all_and_who_leaves_is_gone() -> None:
    queue = filled([("a", 2), ("b", 1)])
    first = queue.pop()
    queue.push_again(first)
    assert queue.peek() == first == queue.pop()
    assert queue.remove(("b", 0))
    assert not queue.remove(("b", 0))
    assert [queue.pop()] == [("a", 1)]
    assert len(queue) == 0
