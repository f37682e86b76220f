"""What consumer groups have committed: positions and notes of readers that join no group.

Every group has a client of its own here, a consumer that reads nothing. The admin client could do it for all of them,
but its requests to a group's coordinator go on using what they have freed when the connection is lost meanwhile, and
abort the whole process: librdkafka's issue 4605, for which a repair was proposed (5397) and is in no release up to
2.16. Measured: of three processes that commit and three that look, the first restart of the broker ended all that
commit, the fourth the rest. To be taken back when that is released.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka.client import CONNECT_S, Reports, ask, open_client
from featurestream.kafka.config import group_settings
from featurestream.kafka.errors import PASSING, code_of

KEPT: Final = 64  # clients that stay open, with four idle threads each: opening one takes 70 ms, asking it 3 ms
THREADS: Final = 8  # that ask at once: nearly all of the time is waiting

Place = tuple[str, int]
_Question = Callable[[Consumer, float], list[TopicPartition]]


class Groups:
    """The clients of some consumer groups. Any number of threads may use it; close it.

    Questions are asked again while a cluster is starting or electing, for ``stall_s`` seconds (10 s where it has never
    answered); whatever else it answers passes as the KafkaException that it is.
    """

    def __init__(self, cluster: Cluster, client_id: str, stall_s: float) -> None:
        self._cluster = cluster
        self._client_id = client_id
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._idle: OrderedDict[str, tuple[Consumer, Reports]] = OrderedDict()

    def commit(self, group: str, offsets: Mapping[Place, int], note: str) -> list[TopicPartition]:
        """Commit the next offset of each place with a note beside it; return them, each with its own error, if any."""
        places = [TopicPartition(topic, lane, offset, metadata=note) for (topic, lane), offset in offsets.items()]

        def question(client: Consumer, _: float) -> list[TopicPartition]:
            # Its limit is the client's own: see group_settings.
            done = client.commit(offsets=places, asynchronous=False) or []
            for place in done:
                # A coordinator that is just starting refuses place by place: asked again, as it is for the whole.
                if place.error is not None and place.error.code() in PASSING:
                    raise KafkaException(place.error)
            return done

        # A commit takes its time where nobody answers, or a login is refused: a look is told so at once.
        return self._ask(group, question, greeting=places[:1])

    def committed(self, places: Mapping[str, Iterable[Place]]) -> dict[str, list[TopicPartition]]:
        """Return what each group has committed of the places named for it."""
        asked = {group: [TopicPartition(*place) for place in wanted] for group, wanted in places.items()}
        asked = {group: wanted for group, wanted in asked.items() if wanted}
        if not asked:
            return {}
        with ThreadPoolExecutor(min(THREADS, len(asked)), "groups") as pool:
            found = pool.map(lambda group: self._committed(group, asked[group]), asked)
            return {
                group: [place for place in answer if place.error is None and place.offset >= 0]
                for group, answer in zip(asked, found, strict=True)
            }

    def close(self) -> None:
        """Release the connections; idempotent, and what is asked afterwards opens new ones."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        for client, _ in idle.values():
            client.close()

    def _committed(self, group: str, places: Sequence[TopicPartition]) -> list[TopicPartition]:
        return self._ask(group, lambda client, look_s: client.committed(list(places), timeout=look_s))

    def _ask(
        self, group: str, question: _Question, greeting: list[TopicPartition] | None = None
    ) -> list[TopicPartition]:
        """Ask a group's client, which is nobody else's meanwhile; one that has no contact yet looks at ``greeting``."""
        with self._lock:
            taken = self._idle.pop(group, None)
        client, reports = taken or open_client(Consumer, group_settings(self._cluster, self._client_id, group))

        def allowed(what: _Question) -> Callable[[float], list[TopicPartition]]:
            return lambda look_s: _unless_refused(client, what, look_s)

        keep = True
        try:
            limit_s = self._stall_s if reports.contact else CONNECT_S
            if greeting is not None and not reports.contact:
                ask(client, reports, limit_s, allowed(lambda one, look_s: one.committed(greeting, timeout=look_s)))
            return ask(client, reports, limit_s, allowed(question))
        except KafkaException as error:
            if code_of(error) == KafkaError.GROUP_AUTHORIZATION_FAILED:  # which a client is told once
                keep = False
            raise
        except BrokerError:
            keep = False  # it may be lost, see kafka/client.py
            raise
        finally:
            with self._lock:
                surplus = [self._idle.pop(group, None)]
                if keep:
                    self._idle[group] = (client, reports)
                else:
                    surplus.append((client, reports))
                while len(self._idle) > KEPT:
                    surplus.append(self._idle.popitem(last=False)[1])
            for one in surplus:
                if one is not None:
                    one[0].close()


def _unless_refused(client: Consumer, question: _Question, look_s: float) -> list[TopicPartition]:
    """Return the answer; a group that is refused is told aside, while the question itself waits for a coordinator."""
    try:
        return question(client, look_s)
    except KafkaException as error:
        message = client.poll(0)
        refusal = None if message is None else message.error()
        if refusal is not None and refusal.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            raise KafkaException(refusal) from error
        raise
