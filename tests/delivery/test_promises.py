"""What is claimed of many queues of one destination fits there, whatever they hold; one queue alone gets all."""

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from mailerd.delivery.destination import Key
from mailerd.delivery.promises import Promises
from mailerd.delivery.tls_policy import TlsPolicy
from mailerd.queue.mail import Queue

KEY: Key = ("mx.example.net", TlsPolicy(), False, "", "", "")


@given(st.integers(1, 5_000), st.integers(1, 1_000), st.floats(1.0, 20.0))
def test_all_shares_together_fit(room: int, queues: int, each: float) -> None:
    promises = Promises(each)
    found = {}
    for number in range(queues):
        left = ceil(room - promises.of(KEY))
        if left > 0:
            queue = Queue(f"transactional/default/t/d{number}.example", 1, "t", "default")
            promises.make(queue, KEY, left)
            found[queue] = left
    shares = [min(left, promises.share(queue, left)) for queue, left in found.items()]
    assert len(shares) == min(queues, ceil(room / each))
    assert sum(shares) <= room + each + len(shares)  # rounded up
    assert sum(shares) >= min(room, len(shares) * each)
    assert min(shares) >= 1


def test_of_a_queue_whose_way_is_not_known_all_that_was_found_is_claimed() -> None:
    assert Promises(1.0).share(Queue("transactional/default/t/d.example", 1, "t", "default"), 20) == 20
